"""Capture and restore model, optimizer, schedule and random generators, so that training resumes bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pmmrec.errors import CheckpointError
from pmmrec.train.processes import Processes
from pmmrec.train.shards import like, whole
from pmmrec.train.state import State

Tensors = dict[str, Tensor]


class TrainerState:
    """The state of a training apart from its loop: model, optimizer, schedule, scaler, random generators."""

    def __init__(self, processes: Processes, model: nn.Module, optimizer: Optimizer, scheduler: LambdaLR) -> None:
        """`model` may be wrapped by Accelerate."""
        self._processes, self._scheduler = processes, scheduler
        self._model: nn.Module = processes.accelerator.unwrap_model(model)
        self._optimizer = optimizer

    def capture(self) -> State:
        """A copy with whole tensors on the CPU of the main process. Every process must call it."""
        tensors = self._tensors()
        of_processes: list[Tensors] = self._processes.gathered([random_tensors(self._processes.device)])
        for rank, generators in enumerate(of_processes):
            tensors |= {f"random/{rank}/{name}": tensor for name, tensor in generators.items()}
        scaler = self._processes.accelerator.scaler
        facts: dict[str, Any] = {
            "world": self._processes.world,
            "kept_as": self._kept_as,
            "rates": [group["lr"] for group in self._optimizer.param_groups],
            "scheduler": self._scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        return State(facts, tensors)

    def whole_model(self) -> Tensors:
        """The state dict of the model, copied as by `capture`."""
        return dict(self._whole(model_tensors(self._model)))

    def restore(self, state: State) -> None:
        """Restore a captured state. Every process must call it; their number may differ from before.

        If it does, dropout draws other random numbers than in a run that was not stopped: generators belong to
        processes. Raises CheckpointError if the state is of another model.
        """
        facts, processes = state.facts, self._processes
        if facts.get("kept_as") != self._kept_as:
            kept, ours = facts.get("kept_as") or "whole tensors", self._kept_as or "whole tensors"
            raise CheckpointError(f"state: kept as {kept}, and this launch reads {ours}; go on with the first launch")
        self._restore_tensors(state)
        for group, rate in zip(self._optimizer.param_groups, facts["rates"], strict=True):
            group["lr"] = rate
        self._scheduler.load_state_dict(facts["scheduler"])
        scaler = processes.accelerator.scaler
        if scaler is not None and facts["scaler"] is not None:
            scaler.load_state_dict(facts["scaler"])
        if facts["world"] == processes.world:
            restore_random(below(state.tensors, f"random/{processes.rank}"), processes.device)
        else:
            processes.seed((torch.initial_seed() + facts["step"]) % 2**31, same=True)  # initial seeds differ already

    @property
    def _kept_as(self) -> str | None:
        """The format on disk; None: whole tensors, which any number of processes can read."""
        return None

    def _tensors(self) -> Tensors:
        tensors = {f"model/{name}": tensor for name, tensor in self.whole_model().items()}
        optimizer = optimizer_tensors(self._model, self._optimizer)
        return tensors | {f"optimizer/{name}": tensor for name, tensor in self._whole(optimizer)}

    def _restore_tensors(self, state: State) -> None:
        restore_model(self._model, below(state.tensors, "model"))
        restore_optimizer(self._model, self._optimizer, below(state.tensors, "optimizer"))

    def _whole(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Whole copies, one at a time; all processes take part in gathering, only the main one keeps them."""
        for name, tensor in tensors:
            full = whole(tensor)
            if self._processes.is_main:
                yield name, full.detach().to("cpu", copy=True).contiguous()


def model_tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """The names and tensors of a model's state dict."""
    return model.state_dict().items()


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The state of an optimizer for each parameter, named `parameter:figure`."""
    for name, parameter in _learning(model, optimizer):
        for figure, value in optimizer.state[parameter].items():
            yield f"{name}:{figure}", value


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into a model, sharded or not. Raises CheckpointError if names or shapes differ."""
    own = model.state_dict()
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise CheckpointError(f"state: {len(odd)} tensors are only in the model or only in the state, such as {odd[0]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(_like(tensors[name], tensor, name))


def restore_optimizer(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state of an optimizer; empty if it had not stepped yet. Raises CheckpointError."""
    state_of: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, figure = key.rpartition(":")
        state_of.setdefault(name, {})[figure] = tensor
    named = _learning(model, optimizer)
    unknown = state_of.keys() - {name for name, _ in named}
    if unknown:
        raise CheckpointError(f"state: the optimizer does not train {min(unknown)}, which is in the state")
    tree = optimizer.state_dict()
    tree["state"] = {
        place: {figure: _of_parameter(value, parameter, name) for figure, value in state_of[name].items()}
        for place, (name, parameter) in enumerate(named)
        if name in state_of
    }
    optimizer.load_state_dict(tree)


def random_tensors(device: torch.device) -> Tensors:
    """The states of the global generators of this process: Python, NumPy, torch on the CPU and on `device`."""
    _, words, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global generator is what is captured
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), int(place), int(has_gauss)], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "cpu": torch.get_rng_state(),
    }
    return {**tensors, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else tensors


def restore_random(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the global generators of this process; that of a GPU stays as it is if the state comes from a CPU."""
    gauss = tensors["python_gauss"].tolist()
    random.setstate((3, tuple(tensors["python"].tolist()), gauss[0] if gauss else None))
    *keys, place, has_gauss = tensors["numpy"].tolist()
    cached = float(tensors["numpy_gauss"][0])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), place, has_gauss, cached))  # noqa: NPY002 - as above
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


def below(tensors: Mapping[str, Tensor], start: str) -> Tensors:
    """The tensors whose names begin with `start/`, with that prefix removed."""
    return {name[len(start) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{start}/")}


def _learning(model: nn.Module, optimizer: Optimizer) -> Sequence[tuple[str, nn.Parameter]]:
    """Names and parameters in the order in which the optimizer numbers them."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [(name_of[id(parameter)], parameter) for parameter in parameters]


def _like(value: Tensor, target: Tensor, name: str) -> Tensor:
    """A whole tensor, sharded like `target`."""
    if value.shape != target.shape:
        raise CheckpointError(f"state: {name} is {tuple(value.shape)} there and {tuple(target.shape)} in the model")
    return like(value, target)


def _of_parameter(value: Tensor, parameter: nn.Parameter, name: str) -> Any:
    """An optimizer figure: of the shape of its parameter, or a number such as the step count."""
    return value if value.ndim == 0 else _like(value, parameter.data, name)
