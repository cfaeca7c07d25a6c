"""Train towers until the end or a signal, from a state where there is one: `... stop_spread.py HOME OUT [options]`."""

from __future__ import annotations

import argparse
import math
import os
import resource
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from brittle import make_brittle
from safetensors.torch import save_file
from torch import nn
from train_gathered import SCALED, SEED, reader_of, sources_of, task_of

from pmmrec.contracts import Batch
from pmmrec.data.batches import DataConfig
from pmmrec.errors import StoppedError
from pmmrec.terminal import errors_for_people
from pmmrec.train.config import TrainConfig
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Batches
from pmmrec.train.processes import MachineConfig
from pmmrec.train.run import Run
from pmmrec.train.states import States


@dataclass(frozen=True)
class Recipe:
    """What `Run.start` asks for."""

    folder: Path
    name: str = "stopped"
    machine: MachineConfig = field(default=MachineConfig(device="cpu"))

    def reread(self, text: str) -> str:
        return text

    def to_yaml(self) -> str:
        return f"name: {self.name}\n"


class Disturbed(Batches):
    """Batches at one of which the last process sends itself a signal, in the middle of a step."""

    signal_at: int | None = None
    count: int = 0
    fills_disk: bool = False  # from then on this process can write no file of more than 2 kB
    spoiled: nn.Module | None = None  # the widest weight of which holds a NaN once all steps are done

    def epoch(self, epoch: int, done: int = 0) -> Iterator[Batch]:
        yield from super().epoch(epoch, done)
        if self.spoiled is not None:
            held = [getattr(weight, "ds_tensor", weight.detach()) for weight in self.spoiled.parameters()]
            max(held, key=len).view(-1)[0] = math.nan

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        self.count += 1
        if self.count == self.signal_at and self.fills_disk:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        if self.count == self.signal_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().to_device(batch, device)


def options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--signal-at", type=int, help="step of this attempt")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--fills-disk", action="store_true", help="then the last process can write no large file")
    parser.add_argument("--own-disk", action="store_true", help="what the last process writes, the others do not find")
    parser.add_argument("--spoil", action="store_true", help="the last update leaves a NaN in the last process's share")
    parser.add_argument("--break-at", type=int, help="step whose loss is NaN in the last process; it is left out")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Leave the weights; end with 75 where the run was stopped."""
    asked = options(words)
    rates = {"learning_rate": 0.01, "eps": 1e-3, "warmup": 0.3, "schedule": "cosine"}
    rules = {"batch_users": 5, "epochs": 1, "log_every": 1, "clip_norm": 0.5, "optimizer": rates}
    config = TrainConfig.model_validate({**rules, "state": {"every_minutes": None}, "on_nonfinite": {"skip": 1}})
    with errors_for_people(), Run.start(Recipe(asked.out / "run"), resume=True) as run:
        sources = sources_of(asked.home)
        task = task_of(asked.home, SCALED, sources)
        if run.processes.spread.is_deepspeed:
            task.float()
        for module in task.modules():
            if isinstance(module, nn.Dropout):
                module.p = asked.dropout
        run.processes.seed(SEED, same=False)
        reader = reader_of(asked.home, task, sources)
        data = DataConfig()
        is_last = run.processes.rank == run.processes.world - 1
        if asked.own_disk and is_last:
            own = asked.out.absolute() / "own"
            own.mkdir()
            os.chdir(own)
        if asked.break_at is not None:
            make_brittle(task, lambda: is_last and loop.step + 1 == asked.break_at)
        batches = Disturbed(data, sources, reader, task, config.batch_users, SEED, run.processes, run.log)
        states = States.of(run, config.state, sources, started_from="none")
        loop = Loop(config, task, batches, run.processes, run.log, states=states)
        batches.signal_at, batches.fills_disk = asked.signal_at if is_last else None, asked.fills_disk
        batches.spoiled = task if asked.spoil and is_last else None
        try:
            loop.fit()
        except StoppedError as error:
            raise SystemExit(StoppedError.exit_code) from error
        if weights := loop.state_dict():
            save_file(weights, asked.out / f"weights-{run.processes.rank}.safetensors")


if __name__ == "__main__":
    main()
