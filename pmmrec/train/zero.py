"""Training under DeepSpeed, which shares out optimiser states, gradients and weights."""

from __future__ import annotations

import math
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
from pmmrec.train.spread import Strategy
from pmmrec.train.state import State
from pmmrec.train.task import TrainingTask

TAG = "zero"


class Zero(Strategy):
    """ZeRO-1, 2 and 3. Weights stay in float32; bf16 is autocast, as under DDP.

    A step whose gradients are not finite is left out by DeepSpeed itself, in all processes.
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
        self.can_differentiate_twice = processes.spread is not Spread.ZERO3  # its weights are let go on the way back
        accelerator = processes.accelerator
        config: dict[str, Any] = accelerator.state.deepspeed_plugin.deepspeed_config
        config["gradient_clipping"] = clip_norm or 0.0
        config["train_micro_batch_size_per_gpu"] = 1  # it wants to know; our losses are sums divided by their counts
        self._engine, self.optimizer = accelerator.prepare(task, optimizer)
        self.trainer_state = ZeroTrainerState(processes, self._engine, optimizer, scheduler)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self.autocast():
            figures: dict[str, Tensor] = self._engine(batch)
        return figures

    @contextmanager
    def part(self, *, is_last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def clip(self) -> Tensor | float:
        self._engine.step()
        norm: Tensor | float = self._engine.get_global_grad_norm()
        return math.inf if self.optimizer.step_was_skipped else norm

    def whole_state(self) -> dict[str, Tensor]:
        if not self._processes.is_main and self._processes.spread is not Spread.ZERO3:  # there all gather
            return {}
        state: dict[str, Tensor] | None = self._processes.accelerator.get_state_dict(self._engine)
        return {name: tensor.detach().cpu() for name, tensor in (state or {}).items()}  # ZeRO-3: None but on the main

    def autocast(self) -> AbstractContextManager[None]:
        processes = self._processes
        return torch.autocast(processes.device.type, torch.bfloat16, enabled=processes.machine.precision == "bf16")


class ZeroTrainerState(TrainerState):
    """Model and optimiser as DeepSpeed keeps them: a file for each process, which as many processes alone can read.

    Its files are pickles, and reading a pickle can run what stands in it. They are read from the state folder of the
    user's own run and nowhere else, and only after their checksums were found to be those that were written.
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
                f"state: {state.facts['kept_as']} kept it on {state.facts['world']} processes, and as many alone can "
                f"read it, not {self._processes.world}; start {state.facts['world']}"
            )
        if state.shares is None:
            raise CheckpointError("state: DeepSpeed's own files are not in it")
        path, _ = self._engine.load_checkpoint(str(state.shares), tag=TAG, load_lr_scheduler_states=False)
        if path is None:
            raise CheckpointError(f"{state.shares}: DeepSpeed finds nothing of its own there")


class _Disk:
    """DeepSpeed's way to files while it saves. What the disk refuses is kept for later instead of raised.

    Saving exchanges between processes after it has written, by an amount that depends on the stage. A process that left
    before the end would make the others wait without end.
    """

    def __init__(self, way: Any) -> None:
        self._way = way
        self.problem: Exception | None = None
        self.written: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._way, name)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._try(self._way.makedirs, path, exist_ok=exist_ok)

    def save(self, state_dict: Any, path: str) -> None:
        self._try(self._save, state_dict, path)

    def _save(self, state_dict: Any, path: str) -> None:
        self._way.save(state_dict, path)
        self.written.append(path)

    def _try(self, write: Callable[..., None], *what: Any, **how: Any) -> None:
        try:
            write(*what, **how)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by the latter
            self.problem = self.problem or error


def _write(processes: Processes, engine: Any, folder: Path) -> None:
    """Write this process's files.

    Raises MachineError, once all have saved, when the disk refuses it to this one, and in the main process where the
    files of another are not found.
    """
    own, disk = engine.checkpoint_engine, _Disk(engine.checkpoint_engine)
    engine.checkpoint_engine = disk
    engine._copy_recovery_script = _leave_out  # programs beside our data, which nobody runs and a full disk refuses
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


def _leave_out(save_path: str) -> None:
    """Copy nothing."""
