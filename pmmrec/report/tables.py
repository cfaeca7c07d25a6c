"""How are results, parameters and statistics laid out for people, in a terminal and in Markdown?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from pmmrec.evaluation.metrics import CUTOFFS, metric_name
from pmmrec.evaluation.significance import Interval

SHOWN_MEASURES = ("hr", "ndcg")
ABSENT = "-"  # nothing was measured; 0.0 would claim that something was
MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>|~&$])")


@dataclass(frozen=True)
class Percent:
    """A share in 0..1, shown as `12.3` or, with its interval, `12.3 [11.0, 13.6]`."""

    share: Interval | float


Cell = str | int | float | Percent | None


@dataclass(frozen=True)
class ResultRow:
    """One system in a table of results."""

    system: str
    metrics: Mapping[str, Interval | float]  # by name (`hr@10`), in 0..1
    best_epoch: float | None = None  # epochs of training up to the best validation; None: nothing was trained
    seen_target: float | None = None  # share of the users, 0..1, whose target was seen before: nobody can hit these


@dataclass(frozen=True)
class PlainTable:
    """Any table, of parameters or of statistics too: columns, and rows of as many cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for place, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: row {place}: {len(row)} cells, {len(self.columns)} columns")


def results(
    rows: Sequence[ResultRow],
    cutoffs: Sequence[int] = CUTOFFS,
    *,
    measures: Sequence[str] = SHOWN_MEASURES,
    title: str = "",
) -> PlainTable:
    """Results as plain cells. Columns that no row fills (epochs, seen targets) are left out."""
    names = [metric_name(measure, cutoff) for measure in measures for cutoff in cutoffs]
    columns = ["system", *(name.upper() for name in names)]
    cells: list[list[Cell]] = [[row.system, *(_percent(row.metrics.get(name)) for name in names)] for row in rows]
    optional: dict[str, list[Cell]] = {
        "epochs to best": [row.best_epoch for row in rows],
        "seen targets": [_percent(row.seen_target) for row in rows],
    }
    for column, values in optional.items():
        if any(value is not None for value in values):
            columns.append(column)
            cells = [[*line, value] for line, value in zip(cells, values, strict=True)]
    return PlainTable(title, columns, cells)


def result_table(rows: Sequence[ResultRow], cutoffs: Sequence[int] = CUTOFFS, *, title: str = "") -> Table:
    """Results for a terminal: metrics in %, with their intervals where they have one."""
    return to_rich(results(rows, cutoffs, title=title))


def to_markdown(rows: Sequence[ResultRow], cutoffs: Sequence[int] = CUTOFFS, *, title: str = "") -> str:
    """Results for a README or a card: a table of pipes, metrics in %."""
    return markdown(results(rows, cutoffs, title=title))


def to_rich(table: PlainTable) -> Table:
    """The table for a terminal. Markup and control characters in its texts are not obeyed."""
    view = Table(title=Text(_visible(table.title)) if table.title else None)
    for column, is_text in zip(table.columns, are_texts(table), strict=True):
        view.add_column(Text(_visible(column)), justify="left" if is_text else "right")
    for row in table.rows:
        view.add_row(*(Text(shown(cell)) for cell in row))
    return view


def markdown(table: PlainTable) -> str:
    """The table with pipes, under its title if it has one. Signs that Markdown or HTML would obey are escaped."""
    lines = [f"**{_escaped(table.title)}**", ""] if table.title else []
    lines.append(_piped(_escaped(column) for column in table.columns))
    lines.append(_piped(":--" if is_text else "--:" for is_text in are_texts(table)))
    lines += [_piped(_escaped(cell) if isinstance(cell, str) else shown(cell) for cell in row) for row in table.rows]
    return "\n".join(lines) + "\n"


def _percent(share: Interval | float | None) -> Percent | None:
    return None if share is None else Percent(share)


def are_texts(table: PlainTable) -> list[bool]:
    """Which columns hold text, and so stand left."""
    return [any(isinstance(row[place], str) for row in table.rows) for place in range(len(table.columns))]


def shown(cell: Cell) -> str:
    """A cell as people read it, in one line."""
    if cell is None:
        return ABSENT
    if isinstance(cell, Percent):
        return _shown_percent(cell.share)
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else _visible(cell)


def _shown_percent(share: Interval | float) -> str:
    if isinstance(share, Interval):
        return f"{100 * share.mean:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    return f"{100 * share:.1f}"


def _visible(text: str) -> str:
    """One line without control characters."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _escaped(text: str) -> str:
    return MARKDOWN_SIGNS.sub(r"\\\1", _visible(text))


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
