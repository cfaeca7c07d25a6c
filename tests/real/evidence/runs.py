"""Execute one run of the plan in its own process; a complete run is kept, an incomplete one is repeated."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmmrec.atomic import whole_file
from pmmrec.errors import DataError, MachineError, RecipeError
from pmmrec.evaluation.outcome import METRICS_FILE, Outcome, read_outcome
from pmmrec.processes import ChildProcess, end_all
from pmmrec.settings import Config, validate
from pmmrec.train.run_folder import package_version
from pmmrec.zoo import files
from tests.real.evidence.cells import Cost, Hardware, Point, Training
from tests.real.evidence.identity import Identity

STAMP = "evidence.json"  # file in a complete run folder: its identity and cost
RANKS_FILE = "ranks.parquet"
EVALUATION_FOLDER = "evaluation"  # in a run folder: ranks of its checkpoint that training does not write
PMMREC = (sys.executable, "-c", "from pmmrec.cli import app; app()")
CPU_NAMES = Path("/proc/cpuinfo")


class Stamp(Config):
    """The record in a run folder whose process has succeeded."""

    identity: dict[str, Any]
    cpu_s: float
    wall_s: float
    hardware: Hardware
    checkpoint: str | None = None  # sha256 of the index it started from; None also in older stamps


@dataclass(frozen=True)
class Run:
    """A process that makes one folder: of a run, or of a search."""

    label: str  # for people
    folder: Path
    arguments: tuple[str, ...]  # of the `pmmrec` command
    identity: Identity
    after: tuple[str, ...] = ()  # arguments of a second command, which ranks the targets of the plan
    needs: tuple[str, ...] = ()  # the labels of the runs it depends on
    keeps_checkpoint: bool = False
    made: str = METRICS_FILE  # the file that a complete run has written last
    resumes: bool = False  # whether the same command goes on where it was stopped
    start: Path | None = None  # the checkpoint it starts from

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def ranks(self) -> Path:
        """The file of the ranks of the plan's targets."""
        return (self.folder / EVALUATION_FOLDER if self.after else self.folder) / RANKS_FILE

    def stamp(self) -> Stamp | None:
        """The stamp in the folder; None unless it is complete and belongs to this run."""
        path = self.folder / STAMP
        if not path.is_file() or not (self.folder / self.made).is_file():
            return None
        try:
            stamp = validate(Stamp, json.loads(path.read_text(encoding="utf-8")), str(path))
        except (ValueError, RecipeError):
            return None
        now = self.checkpoint_hash()
        is_of_another = stamp.checkpoint is not None and now is not None and stamp.checkpoint != now
        return None if is_of_another or self.identity.changes_since(stamp.identity) else stamp

    def prepare(self) -> None:
        """Remove what an earlier run left, unless the same run can go on with it."""
        begun = self.folder.with_name(f"{self.folder.name}.begun.json")
        identity = json.dumps(self.identity.tree, sort_keys=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.resumes and begun.is_file() and begun.read_text(encoding="utf-8") == identity:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.resumes:
            with whole_file(begun) as draft:
                draft.write_text(identity, encoding="utf-8")

    def checkpoint_hash(self) -> str | None:
        """The hash of the checkpoint that it starts from, as it is now."""
        return None if self.start is None else checkpoint_hash(self.start)


class Processes:
    """The running processes; all are ended together with this one."""

    def __init__(self, environment: Mapping[str, str], kept_open: int | None = None) -> None:
        """`environment`: that of the processes, including their threads. `kept_open`: a lock they hold."""
        self._environment, self._kept_open = environment, kept_open
        self._lock, self._active, self._is_over = threading.Lock(), set[ChildProcess](), False

    def work(self, run: Run) -> Stamp:
        """Execute a run from the start and stamp it. MachineError with the last message of a command that fails."""
        run.prepare()
        checkpoint = run.checkpoint_hash()
        cpu_s = wall_s = 0.0
        for arguments in (run.arguments, run.after):
            if not arguments:
                continue
            with self._started(run, arguments) as process:
                code = process.wait()
            if code:
                raise MachineError(f"{run.label}: {process.failure()} (see {process.log})")
            cpu_s, wall_s = cpu_s + process.cpu_s, wall_s + process.seconds
        stamp = Stamp(
            identity=run.identity.tree,
            cpu_s=round(cpu_s, 1),
            wall_s=round(wall_s, 1),
            hardware=hardware_of(run.folder, self._environment),
            checkpoint=checkpoint,
        )
        if not run.keeps_checkpoint:
            shutil.rmtree(run.folder / "checkpoint", ignore_errors=True)
        with whole_file(run.folder / STAMP) as draft:
            draft.write_text(stamp.model_dump_json(indent=1), encoding="utf-8")
        return stamp

    def end(self) -> None:
        """End all processes, and start no more."""
        with self._lock:
            self._is_over = True
            active = list(self._active)
        end_all(active)

    @contextmanager
    def _started(self, run: Run, arguments: tuple[str, ...]) -> Iterator[ChildProcess]:
        """Start a process of a run; it counts as running inside the block."""
        with self._lock:
            if self._is_over:
                raise MachineError("stopped")
            command, log = [*PMMREC, *arguments], run.log
            if arguments == run.after:
                log = log.with_suffix(f".{EVALUATION_FOLDER}.log")
            process = ChildProcess(command, log, environment=self._environment, kept_open=self._kept_open)
            self._active.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._active.discard(process)


def checkpoint_hash(folder: Path) -> str | None:
    """SHA-256 of the index of a checkpoint, which covers every file; None if there is no checkpoint."""
    index = files.current(folder) / files.INDEX_NAME
    return files.sha256_of(index) if index.is_file() else None


def training_of(run: Run, seed: int, stamp: Stamp, multiply_adds: int | None = None) -> Training:
    """The cost and validation curve of a finished training. `multiply_adds`: of one user's forward."""
    outcome = read_outcome(run.folder)
    return Training(
        seed=seed,
        best_epoch=outcome.best_epoch or 0,
        num_epochs=outcome.num_epochs or 0,
        cpu_s=stamp.cpu_s,
        wall_s=stamp.wall_s,
        training_s=outcome.training_s or 0.0,
        hardware=stamp.hardware,
        validation=tuple(_points(run.folder / "events.jsonl")),
        cost=_cost(outcome, multiply_adds),
    )


def hardware_of(folder: Path, environment: Mapping[str, str]) -> Hardware:
    """The hardware of the run in `folder`, which has just ended on this machine."""
    path = folder / "environment.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    cores = os.cpu_count() or 1
    threads = told.get("threads") or int(environment.get("OMP_NUM_THREADS", cores))
    torch = package_version("torch") or "unknown"
    return Hardware(cpu=cpu_name(), cores=cores, threads=threads, device=told.get("device", "cpu"), torch=torch)


def cpu_name() -> str:
    """The model name of the CPU, as Linux reports it."""
    lines = CPU_NAMES.read_text(encoding="utf-8").splitlines() if CPU_NAMES.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "an unnamed processor"


def _cost(outcome: Outcome, multiply_adds: int | None) -> Cost | None:
    """The cost recorded by a run; None if there is none."""
    trainable, total = outcome.trainable_parameters, outcome.total_parameters
    if trainable is None or not total:
        return None
    return Cost(
        trainable_parameters=trainable,
        total_parameters=total,
        peak_memory_bytes=outcome.peak_memory_bytes,
        seconds_per_epoch=outcome.seconds_per_epoch,
        multiply_adds=multiply_adds,
    )


def _points(path: Path) -> list[Point]:
    try:
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as events: {error}; remove its folder and run again") from error
    means = [(event["epoch"], event["mean"]) for event in events if event["event"] == "validation"]
    return [Point(epoch=epoch, ndcg=mean["ndcg@10"], hr=mean["hr@10"]) for epoch, mean in means]
