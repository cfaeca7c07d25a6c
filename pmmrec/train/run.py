"""A run from start to end: its processes, folder, log and trackers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from typing_extensions import Self

from pmmrec.atomic import whole_file
from pmmrec.errors import PMMRecError, StoppedError
from pmmrec.models.build import ModelConfig
from pmmrec.train.log import RunLog
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.run_folder import (
    ENVIRONMENT_FILE,
    RECIPE_FILE,
    RunStatus,
    environment,
    is_requeued,
    run_folder,
    write_json,
)
from pmmrec.train.stop import StopSignals
from pmmrec.train.threads import ThreadChoice, choose_threads, using_threads
from pmmrec.train.trackers import tracker_openers

__all__ = ["Run", "Runnable", "is_requeued"]

Done = TypeVar("Done")


class Runnable(Protocol):
    """The fields of a recipe that a run needs."""

    @property
    def folder(self) -> Path: ...
    @property
    def machine(self) -> MachineConfig: ...
    @property
    def name(self) -> str: ...
    def to_yaml(self) -> str: ...
    def reread(self, text: str) -> str: ...


class Run:
    """An open run. An error before its first step removes its folder again."""

    def __init__(
        self,
        recipe: Runnable,
        processes: Processes,
        log: RunLog,
        status: RunStatus,
        threads: ThreadChoice,
        held: ExitStack,
        watching: ExitStack,
        *,
        ends_processes: bool = True,
    ) -> None:
        self.folder, self.processes, self.log = recipe.folder, processes, log
        self.weights: dict[str, str] = {}  # origin and commit of downloaded pretrained weights, by part
        self.signals = StopSignals()
        self.resumes, self.is_finished = status is RunStatus.STOPPED, status is RunStatus.FINISHED
        self.threads = threads
        self._recipe, self._held, self._watching, self._ends_processes = recipe, held, watching, ends_processes

    @classmethod
    def start(
        cls, recipe: Runnable, *, model: ModelConfig | None = None, resume: bool = False, beside: Run | None = None
    ) -> Self:
        """Join the processes, open the folder, and write the recipe and the environment into it.

        `model`: the model to train, which decides the number of threads.
        `resume`: go on with a run of this name, if there is one.
        `beside`: a run that has trained already and ends later; it closes the processes of both, and frees its model.
        """
        machine = recipe.machine
        if beside is not None:
            beside.processes.release_models()
        openers = tracker_openers(machine.trackers, recipe.folder, machine.project, recipe.name, recipe.to_yaml())
        processes = Processes(machine)
        if beside is not None:
            processes.watchdog = beside.processes.watchdog  # it is open
        threads = choose_threads(machine.threads, model, os.environ)
        with ExitStack() as watching, ExitStack() as stack:
            watching.enter_context(using_threads(threads.number))
            watching.enter_context(processes.watchdog.open())
            opened = by_main(processes, lambda: _opened(recipe, stack, resume=resume))
            status, record = processes.from_main(opened)
            threads = threads.kept(record)
            torch.set_num_threads(threads.number)
            log = RunLog(recipe.folder, is_main=processes.is_main, trackers=openers)
            log.say(f"run {recipe.folder}  {_machine(processes, threads.number)}, command: {_command()}")
            if status is RunStatus.FINISHED:
                log.say(f"run {recipe.folder} is finished: there is nothing to go on with")
            else:
                by_main(processes, lambda: _write_environment(recipe.folder, processes, threads))
            held, watched = stack.pop_all(), watching.pop_all()
        run = cls(recipe, processes, log, status, threads, held, watched, ends_processes=beside is None)
        run.signals.open()
        return run

    def limit_time(self, *, step_minutes: float, phase_hours: float) -> None:
        """Set the time limits of the watchdog: for a step or a silence, and for the time between steps."""
        self.processes.watchdog.set_limits(60 * step_minutes, 3600 * phase_hours)

    def use_threads(self, choice: ThreadChoice) -> None:
        """Compute with this number of threads from here on; say why, and record it. Every process must call it."""
        torch.set_num_threads(choice.number)
        self.threads = choice
        self.log.say(f"threads: {choice.number}, {choice.why}")
        self.by_main(lambda: _write_environment(self.folder, self.processes, choice))

    def write_recipe(self) -> None:
        """Write the recipe again, once the run is known to go on with it. For the main process."""
        _write_recipe(self._recipe)

    def by_main(self, work: Callable[[], Done]) -> Done | None:
        """Do work on the main process only; returns None in the others. Its error is raised in all processes."""
        return by_main(self.processes, work)

    def before_unlocking(self, work: Callable[[], object]) -> None:
        """Call `work` when the run ends, in any way, while its folder is still locked."""
        self._held.callback(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and not isinstance(error, StoppedError):
                self._watching.__exit__(kind, error, trace)  # first: the others may be waiting for this process
        finally:
            self._close(kind, error, trace)

    def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_stop = isinstance(error, StoppedError)
        if not is_stop:
            self.signals.close()
        self.log.__exit__(kind, error, trace)
        self._held.__exit__(kind, error, trace)
        if is_stop:
            self._end_with_the_others()
        self._watching.close()
        if error is None and self._ends_processes:
            self.processes.end()

    def _end_with_the_others(self) -> None:
        """Wait until the main process has closed everything: a launcher ends all once one process exits with 75."""
        if self.processes.world == 1:
            self.signals.close()
            return
        with suppress(RuntimeError):  # processes that are gone are not waited for
            self.processes.wait()
        self.signals.ignore()


def _machine(processes: Processes, threads: int) -> str:
    """Such as `2 processes on cpu:0, 4 threads each`."""
    several = "es" if processes.world > 1 else ""
    each = f"{threads} thread{'s' if threads > 1 else ''}{' each' if several else ''}"
    return f"{processes.world} process{several} on {processes.device}, {each}"


def by_main(processes: Processes, work: Callable[[], Done]) -> Done | None:
    """Do work on the main process only; returns its result there, None in the others. Every process must call it.

    A PMMRecError is raised in all processes, so that it is reported once and the main process does not seem lost.
    """
    done, error = None, None
    if processes.is_main:
        try:
            done = work()
        except PMMRecError as raised:
            error = raised
    kind = next((one for one in type(error).__mro__ if one.__module__ == PMMRecError.__module__), None)
    kind, message = processes.from_main((kind, str(error)))
    if error is not None:
        raise error
    if kind is not None:
        raise kind(message)
    return done


def _opened(recipe: Runnable, stack: ExitStack, *, resume: bool) -> tuple[RunStatus, Mapping[str, Any]]:
    """Open the folder of a run for as long as `stack` is open; its status, and the environment of a stopped run."""
    log = RunLog(None, is_main=True)  # there is no folder yet
    how: dict[str, Any] = {"resume": resume, "reread": recipe.reread, "warn": log.warn}
    status = stack.enter_context(run_folder(recipe.folder, recipe.to_yaml(), **how))
    if status is RunStatus.NEW:
        _write_recipe(recipe)
    record = recipe.folder / ENVIRONMENT_FILE
    return status, json.loads(record.read_text("utf-8")) if status is RunStatus.STOPPED and record.is_file() else {}


def _write_environment(folder: Path, processes: Processes, threads: ThreadChoice) -> None:
    found = environment(processes.world, processes.device)
    write_json(folder / ENVIRONMENT_FILE, {**found, **threads.record})


def _write_recipe(recipe: Runnable) -> None:
    with whole_file(recipe.folder / RECIPE_FILE) as draft:
        draft.write_text(recipe.to_yaml(), encoding="utf-8")


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
