"""How the processes of a training hold its weights: each a copy of all, or each a share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pmmrec.blocks import TransformerBlock
from pmmrec.contracts import Batch
from pmmrec.encoders import Encoder
from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.models.recommender import Recommender
from pmmrec.train.accumulate import AccumulateConfig, refuse_batch_statistics
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.snapshot import TrainerState
from pmmrec.train.task import TrainingTask
from pmmrec.users import UserEncoder

WHOLE = (Spread.ONE, Spread.DDP)  # every process holds all weights


class Strategy(ABC):
    """A task on all processes. Every process must call each method, with the same arguments but for batch and loss.

    Gradients are means over processes, whatever the spread.
    """

    trainer_state: TrainerState
    optimizer: Any  # as Accelerate prepared it
    can_differentiate_twice = True  # whether gradients can be taken twice of one forward

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What the task says of this process's batch; in the precision of the run."""

    @abstractmethod
    def part(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one part of a step: gradients are exchanged with the last."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add this process's gradients."""

    @abstractmethod
    def clip(self) -> Tensor | float:
        """The norm of all gradients together, which are made as short as the recipe says. Once before each step.

        DeepSpeed takes the step here, unless the norm is not finite.
        """

    @abstractmethod
    def whole_state(self) -> dict[str, Tensor]:
        """The state dict of the task on the CPU of the main process; empty in the others."""

    @abstractmethod
    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the run, for what is computed outside of `forward`."""

    def in_reach(self) -> AbstractContextManager[None]:
        """Around whatever calls parts of the task otherwise than by `forward`, such as validation."""
        return nullcontext()


class Replicated(Strategy):
    """Every process holds all of it: one process, and DDP."""

    def __init__(
        self,
        processes: Processes,
        task: TrainingTask,
        optimizer: Optimizer,
        scheduler: LambdaLR,
        clip_norm: float | None,
    ) -> None:
        self._processes, self._accelerator, self._clip_norm = processes, processes.accelerator, clip_norm
        self._module, self.optimizer = self._accelerator.prepare(task, optimizer)
        self.trainer_state = TrainerState(processes, self._module, optimizer, scheduler)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        figures: dict[str, Tensor] = self._module(batch)  # in the precision that Accelerate gave it
        return figures

    def part(self, *, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_last else self._accelerator.no_sync(self._module)

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def clip(self) -> Tensor | float:
        norm: Tensor = self._accelerator.clip_grad_norm_(self._module.parameters(), self._clip_norm or math.inf)
        return norm

    def whole_state(self) -> dict[str, Tensor]:
        if not self._processes.is_main:
            return {}  # which holds the same
        state: dict[str, Any] = self._accelerator.get_state_dict(self._module)
        return {name: tensor.detach().cpu() for name, tensor in state.items()}

    def autocast(self) -> AbstractContextManager[None]:
        precision: AbstractContextManager[None] = self._accelerator.autocast()
        return precision


class Sharded(Strategy):
    """Every process holds a share of each tensor (FSDP2): torch's own `fully_shard`, on GPUs and on CPUs alike.

    Accelerate's way to it starts plain DDP on the CPU without a word, and shards what it finds by names of classes.
    Weights stay in float32; bf16 is autocast, as under DDP, so that both train the same.
    """

    def __init__(
        self,
        processes: Processes,
        task: TrainingTask,
        optimizer: Optimizer,
        scheduler: LambdaLR,
        clip_norm: float | None,
    ) -> None:
        """`task` after `shard`, `optimizer` made of its parameters afterwards."""
        if not isinstance(task, FSDPModule):
            raise TypeError("task: is not sharded; the optimiser must be made of its shards")
        self._task, self._root, self._processes, self._clip_norm = task, task, processes, clip_norm
        self.optimizer = processes.accelerator.prepare_optimizer(optimizer)
        self.trainer_state = TrainerState(processes, task, optimizer, scheduler)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self.autocast():
            figures: dict[str, Tensor] = self._task(batch)
        return figures

    @contextmanager
    def part(self, *, is_last: bool) -> Iterator[None]:
        self._root.set_requires_gradient_sync(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch

    def clip(self) -> Tensor | float:
        norm = nn.utils.clip_grad_norm_(self._task.parameters(), self._clip_norm or math.inf)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def whole_state(self) -> dict[str, Tensor]:
        return self.trainer_state.whole_model()

    def autocast(self) -> AbstractContextManager[None]:
        precision: AbstractContextManager[None] = self._processes.accelerator.autocast()
        return precision

    @contextmanager
    def in_reach(self) -> Iterator[None]:
        """What is no block is gathered for as long as this lasts; blocks gather themselves when they are called."""
        self._root.set_reshard_after_backward(False, recurse=False)
        self._task.awake()
        try:
            yield
        finally:
            self._root.set_reshard_after_backward(True, recurse=False)
            self._root.reshard()


def shard(task: TrainingTask, processes: Processes) -> None:
    """Cut the weights of a task into as many shares as there are processes, in place; each keeps its own.

    Each block of encoders, fusion and user encoder is gathered when it is called, what is outside of blocks for all of
    a step.
    """
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for block in blocks_of(task.recommender):
        fully_shard(block, mesh=mesh, reshard_after_forward=processes.reshards)
    fully_shard(task, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(task, TrainingTask.awake.__name__)


def blocks_of(recommender: Recommender) -> list[nn.Module]:
    """The blocks of all parts that hold weights: those that may carry adapters, and every block of our own."""
    found: dict[int, nn.Module] = {}
    for part in recommender.parts.values():
        host = part.host if isinstance(part, Encoder | UserEncoder) else None
        blocks = [host.sub(name) for name in host.blocks] if host is not None else []
        blocks += [module for module in part.modules() if isinstance(module, TransformerBlock)]
        found |= {id(block): block for block in blocks if any(True for _ in block.parameters())}
    return list(found.values())


def refuse_unfit(spread: Spread, machine: MachineConfig, accumulate: AccumulateConfig) -> None:
    """RecipeError for settings that weights in shares do not train with."""
    if spread in WHOLE:
        return
    if machine.precision == "fp16":
        raise RecipeError(
            f"machine.precision: fp16 trains on one process or under DDP, not under {spread.value}; set bf16 or fp32, "
            "or launch with ddp"
        )
    if accumulate.item_parts > 1:
        raise RecipeError(
            f"train.accumulate: exact runs the encoders anew on the way back, which {spread.value} cannot follow; set "
            "mode=plain or checkpoint_activations=true, or launch with ddp"
        )


def refuse_shared_batches(task: TrainingTask, spread: Spread, world: int) -> None:
    """RecipeError where a layer that learns keeps statistics of batches: no process would hear of those of another.

    torch's SyncBatchNorm, which would, knows no CPU.
    """
    if world > 1 or spread not in WHOLE:
        launch = f"launch with {spread.value} on {world} processes"
        refuse_batch_statistics(task.recommender.item_encoder, launch, "train in one process")


def prepare_to_spread(processes: Processes, task: TrainingTask) -> None:
    """Before the optimiser is made: the task on its device, and in shares where the optimiser is to know of those.

    Raises RecipeError where a layer keeps statistics of batches, which processes would share out.
    """
    task.to(processes.device)
    refuse_shared_batches(task, processes.spread, processes.world)
    if processes.spread is Spread.FSDP2:
        shard(task, processes)


def spread_out(
    processes: Processes, task: TrainingTask, optimizer: Optimizer, scheduler: LambdaLR, clip_norm: float | None
) -> Strategy:
    """The task on all processes, its optimiser made of what `prepare_to_spread` left of its parameters."""
    if processes.spread.is_deepspeed:
        from pmmrec.train.zero import Zero

        return Zero(processes, task, optimizer, scheduler, clip_norm)
    way = Sharded if processes.spread is Spread.FSDP2 else Replicated
    return way(processes, task, optimizer, scheduler, clip_norm)
