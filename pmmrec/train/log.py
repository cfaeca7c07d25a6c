"""The log of a run: events.jsonl, lines or a progress bar on the terminal, and trackers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typing_extensions import Self

from pmmrec.atomic import whole_file
from pmmrec.errors import MachineError
from pmmrec.tables import console_for
from pmmrec.train.trackers import BackgroundTracker, OpenTracker


class RunLog:
    """The log of one process; only the main process writes anything.

    `trackers`: a function to open each tracker, by name. One that fails or hangs is dropped with a warning.
    """

    def __init__(
        self, folder: Path | None, *, is_main: bool, trackers: Mapping[str, Callable[[], OpenTracker]] | None = None
    ) -> None:
        self._is_main, self.folder = is_main, folder if is_main else None
        self._console = console_for(os.environ, quiet=not is_main)
        self._file = (folder / "events.jsonl").open("a", encoding="utf-8") if folder and is_main else None
        self._started_s = time.monotonic()
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._warned: set[str] = set()
        self._trackers = {
            name: BackgroundTracker(name, opener, partial(self._drop_tracker, name))
            for name, opener in ((trackers or {}) if is_main else {}).items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_progress()
        if self._file is not None:
            with contextlib.suppress(OSError):  # a failed write has been reported
                self._file.close()
        for tracker in self._trackers.values():
            tracker.close()

    def event(self, kind: str, step: int, **figures: Any) -> None:
        """Append one line to events.jsonl and send its numbers to the trackers."""
        if not self._is_main:
            return
        if self._file is not None:
            record = {"event": kind, "step": step, "time_s": round(time.monotonic() - self._started_s, 3), **figures}
            with self._writing():
                self._file.write(json.dumps(_json_safe(record)) + "\n")
                self._file.flush()
        numbers = {f"{kind}/{name}": float(value) for name, value in flat(figures).items()}
        for tracker in self._trackers.values():
            tracker.show(numbers, step)

    def leave(self, name: str, record: Mapping[str, Any]) -> str | None:
        """Write a file beside events.jsonl. Returns its path, or None with a warning if it cannot be written."""
        if self._file is None:
            return None
        path = Path(self._file.name).with_name(name)
        try:
            with whole_file(path) as draft:
                draft.write_text(json.dumps(_json_safe(record), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except MachineError as error:
            self.warn(str(error))
            return None
        return str(path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = f"{self._file.name if self._file else ''}: cannot be written: {error.strerror}"
            raise MachineError(f"{problem}; mend that, then go on with --resume") from error

    def mark(self) -> dict[str, float]:
        """The size of events.jsonl, flushed to disk, and the seconds since the run started."""
        num_bytes = 0
        if self._file is not None:
            with self._writing():
                self._file.flush()
                os.fsync(self._file.fileno())
                num_bytes = os.fstat(self._file.fileno()).st_size
        return {"bytes": num_bytes, "seconds": time.monotonic() - self._started_s}

    def go_back(self, mark: Mapping[str, float]) -> None:
        """Remove the events after a mark; a resumed run writes them again."""
        self._started_s = time.monotonic() - mark["seconds"]
        if self._file is None:
            return
        size, wanted = os.fstat(self._file.fileno()).st_size, int(mark["bytes"])
        if size < wanted:
            self.warn(f"events.jsonl: {wanted - size} bytes that were written have gone; events are missing")
        self._file.truncate(min(size, wanted))

    def say(self, *words: RenderableType) -> None:
        """Print lines or tables."""
        for word in words:
            (self._progress.console if self._progress else self._console).print(word)

    def warn(self, text: str) -> None:
        """Print a warning, once."""
        if self._is_main and text not in self._warned:
            self._warned.add(text)
            print(f"warning: {text}", file=sys.stderr)

    def _drop_tracker(self, name: str, why: str) -> None:
        self.warn(f"{name} failed and is left out from here on, events.jsonl is complete: {why}")

    def begin_progress(self, what: str, total: int) -> None:
        """Show a progress bar, on a terminal only."""
        if self._is_main and self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
            self._bar = self._progress.add_task(what, total=total)

    def advance(self) -> None:
        """Advance the bar by one step."""
        if self._progress is not None and self._bar is not None:
            self._progress.advance(self._bar)

    def end_progress(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers by dotted name; other values are left out."""
    numbers: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{name}"] = float(value)
    return numbers


def _json_safe(value: Any) -> Any:
    """Replace numbers that are not finite by their names: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(name): _json_safe(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
