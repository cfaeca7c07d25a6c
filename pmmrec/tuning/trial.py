"""Follow a running trial by the events in its run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pmmrec.errors import DataError
from pmmrec.evaluation.outcome import Outcome, read_outcome
from pmmrec.processes import ChildProcess


class TrialProcess(ChildProcess):
    """The process of one trial; its failure does not affect others."""

    def __init__(self, folder: Path, command: Sequence[str], kept_open: int) -> None:
        """Start it.

        Args:
            folder: The run folder that the program makes; its output goes to `NAME.log` beside it.
            command: The program and its arguments.
            kept_open: The lock of the search, held while any process of the trial is alive.
        """
        super().__init__(command, folder.with_suffix(".log"), kept_open=kept_open)
        self.folder, self._events, self._offset = folder, folder / "events.jsonl", 0

    def new_epochs(self, metric: str) -> list[tuple[int, float]]:
        """Epoch and validation value of every epoch that ended since the last call."""
        if not self._events.is_file():
            return []
        with self._events.open("rb") as events:
            events.seek(self._offset)
            text = events.read()
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be incomplete
        self._offset += len(whole)
        found = [json.loads(line) for line in whole.splitlines()]
        return [_epoch_of(event, metric) for event in found if event["event"] == "validation"]

    def outcome(self) -> Outcome | None:
        """The outcome of the run; None if it wrote none."""
        try:
            return read_outcome(self.folder)
        except DataError:
            return None


def _epoch_of(event: Mapping[str, Any], metric: str) -> tuple[int, float]:
    return int(event["epoch"]), float(event["mean"][metric])
