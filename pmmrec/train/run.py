"""A run from its first line to its last: processes, folder, log, trackers."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Protocol

from typing_extensions import Self

from pmmrec.train.log import RunLog
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.run_folder import environment, make_run_folder, write_json
from pmmrec.train.trackers import boards


class Runnable(Protocol):
    """What a run must know of its recipe."""

    @property
    def folder(self) -> Path: ...
    @property
    def machine(self) -> MachineConfig: ...
    @property
    def name(self) -> str: ...
    def to_yaml(self) -> str: ...


class Run:
    """An open run. Leaving it by an error before anything was logged takes its folder away again."""

    def __init__(self, folder: Path, processes: Processes, log: RunLog, *, ends_processes: bool = True) -> None:
        self.folder, self.processes, self.log = folder, processes, log
        self.weights: dict[str, str] = {}  # place and commit of pretrained weights from elsewhere, by part
        self._ends_processes = ends_processes

    @classmethod
    def start(cls, recipe: Runnable, *, beside: Run | None = None) -> Self:
        """Join the processes, make the folder, write down what was asked and on what machine.

        `beside`: a run that has trained already and ends later. It ends the processes of both; its model is let go.
        """
        machine = recipe.machine
        if beside is not None:
            beside.processes.let_go()
        openers = boards(machine.trackers, recipe.folder, machine.project, recipe.name, recipe.to_yaml())
        processes = Processes(machine)
        if processes.is_main:
            make_run_folder(recipe.folder)
            (recipe.folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
            write_json(recipe.folder / "environment.json", environment(processes.world, processes.device))
        processes.wait()
        log = RunLog(recipe.folder, is_main=processes.is_main, boards=openers)
        log.say(f"run {recipe.folder}  {processes.world} process(es) on {processes.device}, command: {_command()}")
        return cls(recipe.folder, processes, log, ends_processes=beside is None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.__exit__(kind, error, trace)
        events = self.folder / "events.jsonl"
        if error is not None:
            if self.processes.is_main and events.exists() and not events.stat().st_size:
                shutil.rmtree(self.folder, ignore_errors=True)
            return
        if self._ends_processes:
            self.processes.end()


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
