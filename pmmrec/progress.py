"""Show people how far long work has come: by bars on a terminal, elsewhere by a line now and then, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

LINE_EVERY_S = 60


class Progress(Protocol):
    """Called now and then during long work."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


class Lines:
    """Gives `say` a line a minute: how much of a kind of work is done, and how fast it goes."""

    def __init__(self, say: Callable[[str], None], every_s: float = LINE_EVERY_S) -> None:
        self._say, self._every_s = say, every_s
        self._started: dict[str, tuple[float, int]] = {}
        self._said_s = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        started_s, before = self._started.setdefault(stage, (now_s, done))
        if now_s - self._said_s < self._every_s:
            return
        self._said_s = now_s
        pace = f"  {(done - before) / (now_s - started_s):,.0f}/s" if now_s > started_s else ""
        self._say(f"{stage}: {done:,}/{total:,}{pace}")


def bars_or_lines(say: Callable[[str], None] | None) -> AbstractContextManager[Progress]:
    """Lines where somebody is told, else bars."""
    return bars() if say is None else nullcontext(Lines(say))


@contextmanager
def bars() -> Iterator[Progress]:
    """A function that draws one bar for each kind of work; the bars go when the block ends."""
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.text import Text

    class Pace(rich_progress.ProgressColumn):
        """How many a second."""

        def render(self, task: rich_progress.Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f}/s")

    console = Console(stderr=True)
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        Pace(),
        rich_progress.TimeRemainingColumn(),
    )
    started: dict[str, rich_progress.TaskID] = {}
    with rich_progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in started:
                started[stage] = progress.add_task(stage, total=total)
            progress.update(started[stage], completed=done, total=total)

        yield show
