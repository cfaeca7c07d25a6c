"""Distribute a task over processes: replicated (one process, DDP), sharded (FSDP2), or by DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pmmrec.blocks import TransformerBlock
from pmmrec.contracts import Batch
from pmmrec.encoders import Encoder
from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.models.recommender import Recommender
from pmmrec.train.accumulate import AccumulateConfig, refuse_batch_statistics
from pmmrec.train.compiled import compile_blocks
from pmmrec.train.log import RunLog
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.rowwise import dense_gradients
from pmmrec.train.shards import whole
from pmmrec.train.snapshot import TrainerState
from pmmrec.train.strategy import Strategy
from pmmrec.train.task import TrainingTask
from pmmrec.train.zero import Zero
from pmmrec.users import UserEncoder

WHOLE = (Spread.ONE, Spread.DDP)  # every process holds all weights


class Replicated(Strategy):
    """Every process holds all weights: one process, and DDP."""

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

    def gradient_sync(self, *, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_last else self._accelerator.no_sync(self._module)

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def clip_gradients(self) -> Tensor | float | None:
        tensors = list(dense_gradients(self._module.parameters()))
        norm: Tensor = self._accelerator.clip_grad_norm_(tensors, self._clip_norm or math.inf)
        return norm

    def whole_state(self) -> dict[str, Tensor]:
        if not self._processes.is_main:
            return {}  # it holds the same weights as the main process
        state: dict[str, Any] = self._accelerator.get_state_dict(self._module)
        return {name: tensor.detach().cpu() for name, tensor in state.items()}

    def autocast(self) -> AbstractContextManager[None]:
        precision: AbstractContextManager[None] = self._accelerator.autocast()
        return precision


class Sharded(Strategy):
    """Every process holds a shard of each tensor (FSDP2), by torch's `fully_shard`, on GPUs and CPUs.

    Accelerate is not used: on the CPU it silently starts plain DDP, and it chooses what to shard by class name. FSDP is
    imported here alone, since that takes half a second.
    Weights stay in float32; bf16 is autocast, as under DDP, so that both train alike.
    """

    def __init__(
        self,
        processes: Processes,
        task: TrainingTask,
        optimizer: Optimizer,
        scheduler: LambdaLR,
        clip_norm: float | None,
    ) -> None:
        """`task` is sharded by `shard`, and `optimizer` is built from its parameters afterwards."""
        from torch.distributed.fsdp import FSDPModule

        if not isinstance(task, FSDPModule):
            raise TypeError("task: is not sharded; build the optimizer from its shards")
        self._task, self._root, self._processes, self._clip_norm = task, task, processes, clip_norm
        self._is_synced = True  # whether a backward exchanges gradients
        self.optimizer = processes.accelerator.prepare_optimizer(optimizer)
        self.trainer_state = TrainerState(processes, task, optimizer, scheduler)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self.autocast():
            figures: dict[str, Tensor] = self._task(batch)
        return figures

    @contextmanager
    def gradient_sync(self, *, is_last: bool) -> Iterator[None]:
        if is_last is not self._is_synced:  # the call visits every module
            self._root.set_requires_gradient_sync(is_last)
            self._is_synced = is_last
        yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch

    def clip_gradients(self) -> Tensor | float | None:
        norm = nn.utils.clip_grad_norm_(self._task.parameters(), self._clip_norm or math.inf)
        return whole(norm)

    def whole_state(self) -> dict[str, Tensor]:
        return self.trainer_state.whole_model()

    def autocast(self) -> AbstractContextManager[None]:
        precision: AbstractContextManager[None] = self._processes.accelerator.autocast()
        return precision

    @contextmanager
    def gathered_parameters(self) -> Iterator[None]:
        """Keep the parameters outside blocks gathered; blocks gather their own when they are called."""
        self._root.set_reshard_after_backward(False, recurse=False)
        self._task.awake()
        try:
            yield
        finally:
            self._root.set_reshard_after_backward(True, recurse=False)
            self._root.reshard()


def shard(task: TrainingTask, processes: Processes) -> None:
    """Shard the weights of a task over all processes, in place.

    The blocks of encoders, fusion and user encoder are gathered when they are called; weights outside blocks stay
    gathered for the whole step.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for block in blocks_of(task.recommender):
        fully_shard(block, mesh=mesh, reshard_after_forward=processes.reshards)
    fully_shard(task, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(task, TrainingTask.awake.__name__)


def blocks_of(recommender: Recommender) -> list[nn.Module]:
    """The blocks with weights of all parts: those that may carry adapters, and every `TransformerBlock`."""
    found: dict[int, nn.Module] = {}
    for part in recommender.parts.values():
        host = part.host if isinstance(part, Encoder | UserEncoder) else None
        blocks = [host.sub(name) for name in host.blocks] if host is not None else []
        blocks += [module for module in part.modules() if isinstance(module, TransformerBlock)]
        found |= {id(block): block for block in blocks if any(True for _ in block.parameters())}
    return list(found.values())


def refuse_unfit(spread: Spread, machine: MachineConfig, accumulate: AccumulateConfig) -> None:
    """RecipeError for settings that do not work with sharded weights."""
    if spread in WHOLE:
        return
    if machine.precision == "fp16":
        raise RecipeError(
            f"machine.precision: fp16 trains on one process or under DDP, not under {spread.value}; set bf16 or fp32, "
            "or launch with ddp"
        )
    if accumulate.item_parts > 1:
        raise RecipeError(
            f"train.accumulate: exact runs the encoders again in backward, which {spread.value} cannot follow; set "
            "mode=plain or checkpoint_activations=true, or launch with ddp"
        )


def refuse_shared_batches(task: TrainingTask, spread: Spread, world: int) -> None:
    """RecipeError if a trainable layer keeps batch statistics, which each process would compute from its own batch.

    torch's SyncBatchNorm, which exchanges them, does not run on CPUs.
    """
    if world > 1 or spread not in WHOLE:
        launch = f"launch with {spread.value} on {world} processes"
        refuse_batch_statistics(task.recommender.item_encoder, launch, "train in one process")


def prepare_task(processes: Processes, task: TrainingTask, log: RunLog) -> None:
    """Move the task to its device, compile its blocks if the recipe asks for it, and shard it where the strategy does.

    Call it before the optimizer is built.

    Raises RecipeError if a layer keeps batch statistics and there are several processes.
    """
    task.to(processes.device)
    refuse_shared_batches(task, processes.spread, processes.world)
    if processes.machine.compile:
        log.say(compile_blocks(blocks_of(task.recommender), processes.device, processes.spread))
    if processes.spread is Spread.FSDP2:
        shard(task, processes)


def build_strategy(
    processes: Processes, task: TrainingTask, optimizer: Optimizer, scheduler: LambdaLR, clip_norm: float | None
) -> Strategy:
    """The strategy of this launch, for an optimizer built from the parameters that `prepare_task` left."""
    if processes.spread.is_deepspeed:
        return Zero(processes, task, optimizer, scheduler, clip_norm)
    strategy = Sharded if processes.spread is Spread.FSDP2 else Replicated
    return strategy(processes, task, optimizer, scheduler, clip_norm)
