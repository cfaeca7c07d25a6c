"""Train a small task in float64 until it ends or is stopped: `torchrun ... train_stopped.py DOMAIN OUT [options]`."""

from __future__ import annotations

import argparse
import copy
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from brittle import make_brittle
from safetensors.torch import save_file
from torch import Tensor
from train_shares import DRAWN, TERMS, reader_of, task_for

from pmmrec.contracts import Batch
from pmmrec.data.batches import DataConfig
from pmmrec.errors import DivergenceError, MachineError, StoppedError
from pmmrec.models.recommender import Recommender
from pmmrec.train import stop
from pmmrec.train.callbacks import KeepBest, RankEvery, ValidationConfig
from pmmrec.train.config import TrainConfig
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Batches, Sources
from pmmrec.train.processes import MachineConfig
from pmmrec.train.run import Run
from pmmrec.train.state import State
from pmmrec.train.states import States
from pmmrec.zoo import files

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

    def reread(self, text: str) -> str:
        return text

    def to_yaml(self) -> str:
        return f"name: {self.name}\n"


@dataclass
class Disturbance:
    """What happens to this process, once: a signal, or two, or a wait for ever, in one of the parts of a training."""

    where: str
    at: int | None  # the count, in this attempt, of that part
    signals: tuple[signal.Signals, ...]  # none: it hangs
    count: int = 0
    settle: Callable[[], object] = bool  # what must have come to an end before a second signal

    def comes(self, where: str) -> None:
        self.count += where == self.where
        if where != self.where or self.count != self.at:
            return
        for number, sign in enumerate(self.signals):
            if number:
                self.settle()
                stop.SAME_S = 0.0  # what comes now is no part of the first
            os.kill(os.getpid(), sign)
        if not self.signals:
            threading.Event().wait()


class Disturbed(Batches):
    """Batches in whose steps something happens."""

    disturbance: Disturbance

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        self.disturbance.comes("step")
        return super().to_device(batch, device)


class DisturbedLoop(Loop):
    """A loop that is disturbed while it takes a copy of all that a state holds, once half of it is there."""

    disturbance: Disturbance

    def snapshot(self) -> State:
        state = super().snapshot()
        self.disturbance.comes("keeping")
        return state


class RankSingle(RankEvery):
    """Ranks with a copy in single precision: catalogues are encoded so."""

    def epoch_ended(self, loop: Loop, epoch: int) -> None:
        task = loop.task
        loop.task = copy.deepcopy(task).float()
        try:
            super().epoch_ended(loop, epoch)
        finally:
            loop.task = task


def disturbed_while_ranking(recommender: Recommender, disturbance: Disturbance) -> None:
    """Items are encoded without gradients in evaluations alone."""

    def before(_module: torch.nn.Module, _arguments: object) -> None:
        if not torch.is_grad_enabled():
            disturbance.comes("ranking")

    recommender.item_encoder.register_forward_pre_hook(before)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("domain", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--where", choices=("step", "ranking", "saving", "keeping"), default="step")
    parser.add_argument("--at", type=int, help="of that part of this attempt, from 1, something happens to it")
    parser.add_argument("--comes", default="SIGUSR1", help="what comes, after another; none: it hangs")
    parser.add_argument("--rank", type=int, default=0, help="the process it happens to")
    parser.add_argument("--every-steps", type=int, help="keep a state so often")
    parser.add_argument("--blocked", action="store_true", help="no state can be written")
    parser.add_argument("--break-at", type=int, help="step whose loss is NaN in that process")
    parser.add_argument("--drawn", action="store_true", help="learn from drawn negatives alone")
    parser.add_argument("--skip", type=int, default=0, help="such steps may be left out")
    return parser.parse_args()


def main() -> None:
    """Leave the weights of every process; end with 75 where the run was stopped."""
    asked = options()
    signals = tuple(signal.Signals[name] for name in asked.comes.split(",") if name)
    rules = {"state": {"every_minutes": None, "every_steps": asked.every_steps}, "on_nonfinite": {"skip": asked.skip}}
    step_minutes = 30.0 if signals else 0.1
    config = TrainConfig.model_validate({**SETTINGS, **rules, "step_minutes": step_minutes})
    judge = ValidationConfig()
    with Run.start(Recipe(asked.out / "run"), resume=True) as run:
        is_chosen = run.processes.rank == asked.rank
        if asked.blocked and run.processes.is_main:
            (run.folder / "state").touch()
        disturbance = Disturbance(asked.where, asked.at if is_chosen else None, signals)
        sources = Sources.open([asked.domain])
        task, reader = task_for(sources, DRAWN if asked.drawn else TERMS), reader_of(sources, asked.out)
        if asked.break_at is not None:
            make_brittle(task, lambda: is_chosen and loop.step + 1 == asked.break_at)
        disturbed_while_ranking(task.recommender, disturbance)
        batches = Disturbed(
            DataConfig(), sources, reader, task, config.batch_users, 1, run.processes, run.log, config.gather
        )
        kept = run.folder / "checkpoint"

        def save(loop: Loop) -> None:
            best: dict[str, Tensor] = loop.state_dict()
            disturbance.comes("saving")
            if run.processes.is_main:
                with files.writing(kept, replace=True) as place:
                    (place / files.INDEX_NAME).write_text(f"epoch {max(loop.validation)}")
                    save_file(best, place / "best.safetensors")
            run.processes.wait()

        states = States.of(run, config.state, sources, started_from="none")
        disturbance.settle = lambda: states._thread.submit(bool).result()  # states before it are written
        callbacks = [RankSingle(judge, reader, sources.splits, sources.names), KeepBest(judge, save)]
        loop = DisturbedLoop(config, task, batches, run.processes, run.log, callbacks, states)
        loop.disturbance = batches.disturbance = disturbance
        try:
            loop.fit()
        except (StoppedError, DivergenceError, MachineError) as error:
            (asked.out / f"told-{run.processes.rank}.txt").write_text(str(error))
            raise SystemExit(error.exit_code) from error
        save_file(task.state_dict(), asked.out / f"{run.processes.rank}.safetensors")


if __name__ == "__main__":
    main()
