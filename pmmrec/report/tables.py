"""Lay out results as tables for a terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pmmrec.evaluation.metrics import metric_name
from pmmrec.evaluation.significance import Interval
from pmmrec.tables import Cell, PlainTable, are_texts, shown, visible

SHOWN_MEASURES, SHOWN_CUTOFF = ("hr", "ndcg"), 10
MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>|~&$])")


@dataclass(frozen=True)
class Percent:
    """A share in 0..1, shown as `12.3` or, with its interval, `12.3 [11.0, 13.6]`."""

    share: Interval | float

    def pieces(self) -> tuple[str, ...]:
        if isinstance(self.share, Interval):
            mean, low, high = (f"{100 * one:.1f}" for one in (self.share.mean, self.share.low, self.share.high))
            return (mean, f"[{low}, {high}]")
        return (f"{100 * self.share:.1f}",)


@dataclass(frozen=True)
class ResultRow:
    """One system in a table of results."""

    system: str
    metrics: Mapping[str, Interval | float]  # by name (`hr@10`), in 0..1
    best_epoch: float | None = None  # epochs to the best validation; None: nothing was trained
    num_seeds: int = 1
    seen_target: float | None = None  # share of users, in 0..1, whose target was seen before and cannot be hit

    @property
    def label(self) -> str:
        """The system, and the number of seeds that were averaged."""
        return self.system if self.num_seeds == 1 else f"{self.system} ({self.num_seeds} seeds)"


def results(rows: Sequence[ResultRow], names: Sequence[str], *, title: str = "") -> PlainTable:
    """A table of the named metrics. Optional columns (epochs, seen targets) are left out if empty."""
    columns = ["system", *(name.upper() for name in names)]
    cells: list[list[Cell]] = [[row.label, *(_percent(row.metrics.get(name)) for name in names)] for row in rows]
    optional: dict[str, list[Cell]] = {
        "epochs to best": [row.best_epoch for row in rows],
        "seen targets": [_percent(row.seen_target) for row in rows],
    }
    for column, values in optional.items():
        if any(value is not None for value in values):
            columns.append(column)
            cells = [[*line, value] for line, value in zip(cells, values, strict=True)]
    return PlainTable(title, columns, cells)


def to_markdown(rows: Sequence[ResultRow], names: Sequence[str], *, title: str = "") -> str:
    """A Markdown table of the named metrics for a README or a card, in %."""
    return markdown(results(rows, names, title=title))


def shown_measures(metrics: Iterable[str]) -> tuple[str, ...]:
    """The measures to show: recall instead of the hit rate where queries have several targets."""
    return ("recall", "ndcg") if any(name.startswith("recall@") for name in metrics) else SHOWN_MEASURES


def cutoffs_of(metrics: Iterable[str]) -> tuple[int, ...]:
    """The cut-offs of NDCG among these metrics, rising."""
    return tuple(sorted(int(name.partition("@")[2]) for name in metrics if name.startswith("ndcg@")))


def shown_names(metrics: Iterable[str], cutoff: int | None = None) -> tuple[str, ...]:
    """The metrics that tables and comparisons show: two measures at `cutoff`, else at 10 or at the smallest one."""
    names = tuple(metrics)
    cutoffs = cutoffs_of(names)
    if cutoff is None:
        cutoff = SHOWN_CUTOFF if SHOWN_CUTOFF in cutoffs or not cutoffs else cutoffs[0]
    return tuple(metric_name(measure, cutoff) for measure in shown_measures(names))


def names_at_all(metrics: Iterable[str]) -> tuple[str, ...]:
    """The same measures at every cut-off."""
    names = tuple(metrics)
    return tuple(metric_name(measure, cutoff) for measure in shown_measures(names) for cutoff in cutoffs_of(names))


def markdown(table: PlainTable) -> str:
    """A Markdown table under its title. Signs with a meaning in Markdown or HTML are escaped."""
    lines = [f"**{_escaped(table.title)}**", ""] if table.title else []
    lines.append(_piped(_escaped(column) for column in table.columns))
    lines.append(_piped(":--" if is_text else "--:" for is_text in are_texts(table)))
    lines += [_piped(_escaped(cell) if isinstance(cell, str) else shown(cell) for cell in row) for row in table.rows]
    return "\n".join(lines) + "\n"


def _percent(share: Interval | float | None) -> Percent | None:
    return None if share is None else Percent(share)


def _escaped(text: str) -> str:
    return MARKDOWN_SIGNS.sub(r"\\\1", visible(text))


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
