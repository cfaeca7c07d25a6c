"""A small training in this process that a test stops at any moment, and resumes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Container
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from brittle import make_brittle
from torch import Tensor

from pmmrec.data.batches import DataConfig
from pmmrec.data.items import ItemReader
from pmmrec.errors import StoppedError
from pmmrec.models.build import ModelConfig, build
from pmmrec.objectives import objectives
from pmmrec.settings import PartConfig
from pmmrec.train.callbacks import KeepBest, RankEvery, ValidationConfig
from pmmrec.train.config import TrainConfig
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Batches, Sources
from pmmrec.train.processes import MachineConfig
from pmmrec.train.run import Run
from pmmrec.train.state import State
from pmmrec.train.states import States
from pmmrec.train.task import TrainingTask

MODEL = {
    "width": 8,
    "item_encoder": {"type": "ids"},
    "user_encoder": {"type": "transformer", "num_layers": 1, "num_heads": 2, "dropout": 0.2},
}
TERMS = {"dap": {"type": "next_item"}, "nid": {"type": "noise_detection", "weight": 0.5}}
SETTINGS: dict[str, Any] = {
    "batch_users": 8,  # five steps an epoch
    "epochs": 3,
    "log_every": 2,
    "optimizer": {"learning_rate": 0.02, "schedule": "cosine", "warmup": 0.2},
    "state": {"every_minutes": None},
}


@dataclass(frozen=True)
class Recipe:
    """The fields of a recipe that a run needs."""

    folder: Path
    name: str = "one"
    seed: int = 1
    epochs: int = 3
    sources: tuple[str, ...] = ()
    machine: MachineConfig = field(default=MachineConfig(device="cpu"))

    def reread(self, text: str) -> str:
        return text

    def to_yaml(self) -> str:
        train, data = {"epochs": self.epochs}, {"sources": list(self.sources)}
        return yaml.safe_dump({"name": self.name, "seed": self.seed, "train": train, "data": data})


@dataclass
class Outcome:
    """The result of one attempt."""

    weights: dict[str, Tensor]
    loop: Loop
    users: list[str]  # in the order in which they were trained on, by this attempt
    best: dict[str, Tensor]  # the weights that KeepBest held last


class _Stop:
    """Sends this process a signal in a step, in an evaluation, while the best weights are saved, or a state is kept."""

    def __init__(
        self,
        at_step: int | None = None,
        at_epoch: int | None = None,
        saving: int | None = None,
        keeping: int | None = None,
    ) -> None:
        """`saving`: the epoch whose weights are saved; `keeping`: the step after which a state is kept."""
        self._step, self._epoch, self._saving, self._keeping = at_step, at_epoch, saving, keeping

    def __bool__(self) -> bool:
        return any(when is not None for when in (self._step, self._epoch, self._saving, self._keeping))

    def epoch_ended(self, _loop: Loop, epoch: int) -> None:
        self._send(epoch == self._epoch)

    def saves(self, epoch: int) -> None:
        self._send(epoch == self._saving)

    def keeps(self, step: int) -> None:
        self._send(step == self._keeping)

    def step_begins(self, step: int) -> None:
        self._send(step == self._step)

    def _send(self, now: bool) -> None:
        if now:
            signal.raise_signal(signal.SIGTERM)


class _Loop(Loop):
    stop: _Stop

    def snapshot(self) -> State:
        self.stop.keeps(self.step)
        return super().snapshot()


class _Watched(Batches):
    """Batches that remember the users they gave out."""

    users: list[str]
    stop: _Stop
    loop: Loop
    lost_worker_at: int | None

    def to_device(self, batch, device):
        self.users.extend(batch.user_id)
        self.stop.step_begins(self.loop.step + 1)
        if self.loop.step + 1 == self.lost_worker_at:
            for worker in multiprocessing.active_children():
                worker.kill()
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # the system has told of its end
        return super().to_device(batch, device)


Attempt = Callable[..., Outcome]


def _config(
    epochs: int, optimizer: dict[str, Any] | None, state: dict[str, Any] | None, average: dict[str, Any] | None
) -> TrainConfig:
    """`SETTINGS` with changes."""
    rules = {"state": {**SETTINGS["state"], **(state or {})}, "on_nonfinite": {"skip": 2}, "epochs": epochs}
    rules["average"] = average
    return TrainConfig.model_validate({**SETTINGS, **rules, "optimizer": optimizer or SETTINGS["optimizer"]})


def _task(sources: Sources, broken: Container[int] | None, step: Callable[[], int]) -> TrainingTask:
    """Fresh weights; `broken`: steps with a loss that is NaN."""
    recommender = build(ModelConfig.model_validate(MODEL), {}, sources.catalogues)
    task = TrainingTask.of(recommender, {n: objectives.config(t) for n, t in TERMS.items()}, 8)
    if broken is not None:
        make_brittle(task, lambda: step() + 1 in broken)
    return task


def _saver(run: Run, stop: _Stop, best: dict[str, Tensor]) -> Callable[[Loop], None]:
    """A function for `KeepBest` that copies the weights into `best`, and writes the epoch below the run."""

    def save(loop: Loop) -> None:
        stop.saves(max(loop.validation))
        best.update({name: tensor.clone() for name, tensor in loop.state_dict().items()})
        kept = run.folder / "checkpoint"
        kept.mkdir(exist_ok=True)
        (kept / "model_index.json").unlink(missing_ok=True)  # states share its bytes
        (kept / "model_index.json").write_text(f"epoch {max(loop.validation)}")

    return save


def _signal_while_ranking(encoder: torch.nn.Module, ranking: int | None) -> None:
    """Send this process a signal while it encodes the catalogue of this number, from 0."""
    catalogues = iter(range(99))

    def encoded(_module: torch.nn.Module, _arguments: object) -> None:
        if not torch.is_grad_enabled() and next(catalogues) == ranking:
            signal.raise_signal(signal.SIGTERM)

    encoder.register_forward_pre_hook(encoded)


def train(
    home: Path,
    world: Path,
    name: str,
    *,
    resume: bool = False,
    preparing: bool | None = None,
    ranking: int | None = None,
    is_blocked: bool = False,
    workers: int = 0,
    lost_worker_at: int | None = None,
    domain: str | tuple[str, ...] = "boutique",
    split: PartConfig | None = None,
    epochs: int = 3,
    optimizer: dict[str, Any] | None = None,
    average: dict[str, Any] | None = None,
    seed: int = 1,
    patience: int = 9,
    finish: bool = False,
    state: dict[str, Any] | None = None,
    broken: Container[int] | None = None,
    **when: int | None,
) -> Outcome:
    """Train in the folder `name` until it ends or is stopped; `broken`: steps with a loss that is NaN.

    `preparing`: it is stopped before it begins; `ranking`: while that catalogue is encoded, counted from 0; `when`: at
    other moments, see `_Stop`.
    """
    folders = [world / name for name in ((domain,) if isinstance(domain, str) else domain)]
    data = DataConfig() if split is None else DataConfig(split=split)
    sources, config, stop = Sources.open(folders, data), _config(epochs, optimizer, state, average), _Stop(**when)
    recipe = Recipe(home / name, seed=seed, epochs=epochs, sources=tuple(map(str, folders)))
    judge = ValidationConfig(metric="ndcg@10", patience=patience)
    best: dict[str, Tensor] = {}
    with Run.start(recipe, resume=resume) as run:
        if is_blocked:
            (run.folder / "state").touch()
        # A seed with which the first epoch is the best, also where dropout draws as it does here.
        run.processes.seed(4, same=True)
        task = _task(sources, broken, lambda: loop.step)
        reader = ItemReader(sources.domains, {}, home)
        batches = _Watched(DataConfig(workers=workers), sources, reader, task, 8, 1, run.processes, run.log)
        batches.users, batches.stop, batches.lost_worker_at = [], stop, lost_worker_at
        rank = RankEvery(judge, reader, sources.splits, sources.names)
        run.processes.seed(4, same=False)
        states = States.of(run, config.state, sources, started_from="none")
        callbacks = [rank, KeepBest(judge, _saver(run, stop, best)), stop]
        loop = _Loop(config, task, batches, run.processes, run.log, callbacks, states)
        batches.loop, loop.stop = loop, stop
        _signal_while_ranking(task.recommender.item_encoder, ranking)
        if preparing:
            signal.raise_signal(signal.SIGTERM)
        stops = not is_blocked and (stop or preparing or ranking is not None)
        with pytest.raises(StoppedError, match="ended by SIGTERM") if stops else nullcontext():
            loop.fit()
        if finish:
            states.finish()
        weights = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    return Outcome(weights, loop, batches.users, best)
