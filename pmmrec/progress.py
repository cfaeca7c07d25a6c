"""Show people how far long work has come: by bars on a terminal, elsewhere by a line now and then."""

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
    """Gives `say` a line a minute: how much of a kind of work is done, how fast it goes, and how long it will take."""

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
        pace = (done - before) / (now_s - started_s) if now_s > started_s else 0.0
        told = f"  {pace:,.0f}/s  ETA {duration((total - done) / pace)}" if pace else ""
        self._say(f"{stage}: {done:,}/{total:,}{told}")


def duration(seconds: float) -> str:
    """Such as `0:00:12` or `27:05:00`, in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def bars_or_lines(say: Callable[[str], None] | None) -> AbstractContextManager[Progress]:
    """Lines where somebody is told, else bars."""
    return bars() if say is None else nullcontext(Lines(say))


@contextmanager
def bars(*, is_shown: bool = True) -> Iterator[Progress]:
    """A function that draws one bar for each kind of work on stderr; the bars go when the block ends.

    Where stderr is no terminal it gets lines. `is_shown`: False in all processes of a run but one.
    """
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.text import Text

    class PaceColumn(rich_progress.ProgressColumn):
        """How many a second."""

        def render(self, task: rich_progress.Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f}/s")

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, quiet=not is_shown)
    if not console.is_terminal:
        yield Lines(console.print)
        return
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        PaceColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    started: dict[str, rich_progress.TaskID] = {}
    with rich_progress.Progress(*columns, console=console, transient=True, disable=not is_shown) as progress:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in started:
                started[stage] = progress.add_task(stage, total=total)
            progress.update(started[stage], completed=done, total=total)

        yield show
