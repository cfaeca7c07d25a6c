"""How does one trial run? In a process of its own, whose failure is no one else's."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pmmrec.errors import DataError
from pmmrec.evaluation.outcome import Outcome, read_outcome

GRACE_S = 10.0  # between being asked to end and being ended


class TrialProcess:
    """One run of a program, followed through the events of its run folder."""

    def __init__(self, folder: Path, command: Sequence[str], kept_open: int) -> None:
        """Start it.

        Args:
            folder: The run folder that the program makes; what it says goes beside it, to `NAME.log`.
            command: The program and its arguments.
            kept_open: A file that stays open while any process of the trial lives: the lock of the search.
        """
        self.folder, self.log = folder, folder.with_suffix(".log")
        self._events, self._offset = folder / "events.jsonl", 0
        self._started_s = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its helpers are in its group and end with it; Ctrl-C reaches us alone
                pass_fds=(kept_open,),
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started_s

    def exit_code(self) -> int | None:
        """None while it runs; below 0: the signal that ended it."""
        return self._process.poll()

    def new_epochs(self, metric: str) -> list[tuple[int, float]]:
        """Epoch and validation value of every epoch that ended since the last call."""
        if not self._events.is_file():
            return []
        with self._events.open("rb") as events:
            events.seek(self._offset)
            text = events.read()
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be half written
        self._offset += len(whole)
        found = [json.loads(line) for line in whole.splitlines()]
        return [_epoch_of(event, metric) for event in found if event["event"] == "validation"]

    def outcome(self) -> Outcome | None:
        """What the run says it found; None where it says nothing."""
        try:
            return read_outcome(self.folder)
        except DataError:
            return None

    def stop(self) -> None:
        """End the process and all it started: ask, wait, then end it."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, sign)
            except ProcessLookupError:
                break
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                continue
            break
        self._process.wait()

    def complaint(self) -> str:
        """Why it failed, in one line: its own error message, or its last words."""
        code = self._process.returncode
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.rstrip() for line in lines if line.strip()]
        starts = [place for place, line in enumerate(said) if line.startswith("error: ")]
        if starts:
            first, *rest = said[starts[-1] :]
            details = itertools.takewhile(lambda line: line.startswith("  "), rest)
            return "; ".join([first.removeprefix("error: "), *(line.strip() for line in details)])
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
            return f"ended by {name}{hint}"
        return said[-1] if said else f"ended with exit code {code} and said nothing"


def _epoch_of(event: Mapping[str, Any], metric: str) -> tuple[int, float]:
    return int(event["epoch"]), float(event["mean"][metric])
