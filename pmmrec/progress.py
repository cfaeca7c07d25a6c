"""Show people on a terminal how far long work has come; say nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called now and then during long work."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


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
