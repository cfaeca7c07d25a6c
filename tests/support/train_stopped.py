"""Train a small task in float64 until it ends or is stopped: `torchrun ... train_stopped.py DOMAIN OUT [options]`."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from train_shares import TERMS, reader_of, task_for

from pmmrec.contracts import Batch
from pmmrec.data.batches import DataConfig
from pmmrec.errors import StoppedError
from pmmrec.train.loop import Loop, TrainConfig
from pmmrec.train.prepare import Batches, Sources
from pmmrec.train.processes import MachineConfig
from pmmrec.train.run import Run
from pmmrec.train.states import States

SETTINGS: dict[str, Any] = {
    "batch_users": 8,  # five steps an epoch
    "epochs": 2,
    "log_every": 1,
    "clip_norm": 0.5,
    "optimizer": {"learning_rate": 0.02, "warmup": 0.3, "schedule": "cosine"},
    "state": {"every_minutes": None},
}
assert len(TERMS) > 1  # so that more than one loss is spread


@dataclass(frozen=True)
class Recipe:
    """What `Run.start` asks for."""

    folder: Path
    name: str = "stopped"
    machine: MachineConfig = field(default=MachineConfig(device="cpu"))

    def to_yaml(self) -> str:
        return f"name: {self.name}\n"


class Disturbed(Batches):
    """Batches of which one makes this process send itself a signal, or wait for ever."""

    signal_at: int | None
    hang_at: int | None
    step: int

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        self.step += 1
        if self.step == self.signal_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        if self.step == self.hang_at:
            threading.Event().wait()
        return super().to_device(batch, device)


def main() -> None:
    """Leave the weights of every process; end with 75 where the run was stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("domain", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--signal-at", type=int, help="step of this attempt in which a signal comes")
    parser.add_argument("--hang-at", type=int, help="step of this attempt that never ends")
    parser.add_argument("--rank", type=int, default=0, help="in which process")
    asked = parser.parse_args()
    step_minutes = 30.0 if asked.hang_at is None else 0.1
    config = TrainConfig.model_validate({**SETTINGS, "step_minutes": step_minutes})
    with Run.start(Recipe(asked.out / "run"), resume=True) as run:
        sources = Sources.open([asked.domain])
        task, reader = task_for(sources), reader_of(sources, asked.out)
        rules = (DataConfig(), sources, reader, task, config.batch_users, 1)
        batches = Disturbed(*rules, run.processes, run.log, config.gather)
        is_chosen = run.processes.rank == asked.rank
        batches.signal_at = asked.signal_at if is_chosen else None
        batches.hang_at = asked.hang_at if is_chosen else None
        states = States.of(run, config.state, sources, started_from="none")
        loop = Loop(config, task, batches, run.processes, run.log, states=states)
        batches.step = 0
        try:
            loop.fit()
        except StoppedError as error:
            (asked.out / f"told-{run.processes.rank}.txt").write_text(str(error))
            raise SystemExit(StoppedError.exit_code) from error
        save_file(task.state_dict(), asked.out / f"{run.processes.rank}.safetensors")


if __name__ == "__main__":
    main()
