"""Train under DeepSpeed, which shards optimizer states (ZeRO-1), gradients (ZeRO-2) and weights (ZeRO-3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pmmrec.contracts import Batch
from pmmrec.errors import CheckpointError, MachineError
from pmmrec.launch import Spread
from pmmrec.train.processes import Processes
from pmmrec.train.snapshot import Tensors, TrainerState
from pmmrec.train.state import State
from pmmrec.train.strategy import StepOptimizer, Strategy
from pmmrec.train.task import TrainingTask

TAG = "zero"


class EngineOptimizer:
    """The optimizer of a DeepSpeed engine under the usual names, which Accelerate makes do nothing."""

    def __init__(self, engine: Any, prepared: StepOptimizer) -> None:
        """`prepared`: as Accelerate made it."""
        self._engine, self._prepared, self.optimizer = engine, prepared, prepared.optimizer

    @property
    def step_was_skipped(self) -> bool:
        return self._prepared.step_was_skipped

    def step(self) -> None:
        """Clip the gradients, update the weights and clear the gradients, unless one of them is not finite."""
        self._engine.step()

    def zero_grad(self) -> None:
        """Nothing: the engine has cleared the gradients in its step."""


class Zero(Strategy):
    """ZeRO-1, 2 and 3. Weights stay in float32; bf16 is autocast, as under DDP.

    DeepSpeed itself leaves out a step whose gradients are not finite, in all processes.
    """

    def __init__(
        self,
        processes: Processes,
        task: TrainingTask,
        optimizer: Optimizer,
        scheduler: LambdaLR,
        clip_norm: float | None,
    ) -> None:
        self._processes = processes
        self.can_differentiate_twice = processes.spread is not Spread.ZERO3  # it releases weights during backward
        accelerator = processes.accelerator
        config: dict[str, Any] = accelerator.state.deepspeed_plugin.deepspeed_config
        config["gradient_clipping"] = clip_norm or 0.0
        config["train_micro_batch_size_per_gpu"] = 1  # required; our losses, sums divided by counts, do not use it
        self._engine, prepared = accelerator.prepare(task, optimizer)
        if hasattr(prepared.optimizer, "check_grad_overflow"):
            prepared.optimizer.check_grad_overflow = True  # in fp32 it would not check
        self.optimizer = EngineOptimizer(self._engine, prepared)
        self.trainer_state = ZeroTrainerState(processes, self._engine, optimizer, scheduler)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self.autocast():
            figures: dict[str, Tensor] = self._engine(batch)
        return figures

    @contextmanager
    def gradient_sync(self, *, is_last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def clip_gradients(self) -> None:
        """Nothing: the engine clips in its step, by `gradient_clipping`."""

    def whole_state(self) -> dict[str, Tensor]:
        if not self._processes.is_main and self._processes.spread is not Spread.ZERO3:  # under ZeRO-3 all must gather
            return {}
        state: dict[str, Tensor] | None = self._processes.accelerator.get_state_dict(self._engine)
        return {name: tensor.detach().cpu() for name, tensor in (state or {}).items()}  # None outside the main process

    def autocast(self) -> AbstractContextManager[None]:
        processes = self._processes
        return torch.autocast(processes.device.type, torch.bfloat16, enabled=processes.machine.precision == "bf16")


class ZeroTrainerState(TrainerState):
    """Model and optimizer in DeepSpeed's own files: one for each process, readable only by as many processes.

    These files are pickles, and reading a pickle can run code that it contains. They are read only from the state
    folder of the user's own run, and only after their checksums have been verified.
    """

    def __init__(self, processes: Processes, engine: Any, optimizer: Optimizer, scheduler: LambdaLR) -> None:
        super().__init__(processes, engine, optimizer, scheduler)
        self._engine = engine

    @property
    def _kept_as(self) -> str | None:
        return self._processes.spread.value

    def _tensors(self) -> Tensors:
        return {}

    def capture(self) -> State:
        state = super().capture()
        return State(state.facts, state.tensors, write_shares=partial(_write, self._processes, self._engine))

    def _restore_tensors(self, state: State) -> None:
        if state.facts["world"] != self._processes.world:
            raise CheckpointError(
                f"state: {state.facts['kept_as']} saved it on {state.facts['world']} processes, and only as many can "
                f"read it, not {self._processes.world}; start {state.facts['world']}"
            )
        if state.shares is None:
            raise CheckpointError("state: DeepSpeed's own files are not in it")
        path, _ = self._engine.load_checkpoint(str(state.shares), tag=TAG, load_lr_scheduler_states=False)
        if path is None:
            raise CheckpointError(f"{state.shares}: DeepSpeed finds nothing of its own there")


class _TolerantCheckpointEngine:
    """DeepSpeed's checkpoint engine during a save; it remembers a write error instead of raising it.

    After writing, a save runs collectives, how many depends on the stage. A process that raised before their end would
    make the others wait forever.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.problem: Exception | None = None
        self.written: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._try(self._engine.makedirs, path, exist_ok=exist_ok)

    def save(self, state_dict: Any, path: str) -> None:
        self._try(self._save, state_dict, path)

    def _save(self, state_dict: Any, path: str) -> None:
        self._engine.save(state_dict, path)
        self.written.append(path)

    def _try(self, write: Callable[..., None], *what: Any, **how: Any) -> None:
        try:
            write(*what, **how)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
            self.problem = self.problem or error


def _write(processes: Processes, engine: Any, folder: Path) -> None:
    """Write this process's files.

    Raises MachineError, after all processes have saved, if this process could not write, and in the main process if
    it does not find the files of another.
    """
    own, disk = engine.checkpoint_engine, _TolerantCheckpointEngine(engine.checkpoint_engine)
    engine.checkpoint_engine = disk
    engine._copy_recovery_script = _copy_nothing  # scripts that nobody runs, and a full disk refuses
    try:
        engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
    finally:
        engine.checkpoint_engine = own
    written = processes.gathered(disk.written)
    if disk.problem is not None:
        raise MachineError(f"{folder}: cannot be written: {disk.problem}") from disk.problem
    missing = [path for path in written if processes.is_main and not Path(path).exists()]
    if missing:
        raise MachineError(
            f"{missing[0]}: another process wrote it, and it is not found here; runs={folder.parents[2]} must lie on a "
            "disk that all machines share"
        )


def _copy_nothing(save_path: str) -> None:
    """Copy nothing."""
