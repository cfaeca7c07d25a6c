"""Write one page with all results."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pmmrec.atomic import whole_file
from pmmrec.evaluation.scenarios import COLD_BELOW
from pmmrec.evaluation.significance import Interval, holm
from pmmrec.report.paired import shown_p
from pmmrec.report.tables import Percent, markdown
from pmmrec.tables import Cell, PlainTable
from pmmrec.tuning.results import short_names
from tests.real.evidence.cells import CellResult, Chosen, Cost, Results, Training
from tests.real.evidence.curves import Curve, SizeLine, draw, draw_by_size
from tests.real.evidence.measure import TESTS
from tests.real.evidence.plan import (
    BASELINES_OF,
    COSTS,
    METRICS,
    MODEL,
    BaselinesCell,
    EvidencePlan,
    Ordering,
    Picture,
    PlannedTable,
    domain_of,
    shown_reference,
)

HEADINGS = {
    "users": "users",
    "best_epoch": "epochs to best",
    "cpu": "CPU min",
    "wall": "wall min",
    "trainable": "trained parameters",
    "parameters": "all parameters",
    "multiply_adds": "multiply-adds of a user, M",
    "share": "share of all, %",
    "memory": "peak memory, MB",
    "epoch": "s per epoch",
}
WHOSE = {
    "all": "{which} targets of {users}",
    "regular": f"{{which}} targets that occur at least {COLD_BELOW} times in training, of {{users}}",
    "cold": f"{{which}} targets that occur fewer than {COLD_BELOW} times in training, of {{users}}",
    "new": "{which} targets that never occur in training, of {users}",
}
COST_OF: dict[str, Callable[[Cost], float | None]] = {
    "trainable": lambda cost: cost.trainable_parameters,
    "parameters": lambda cost: cost.total_parameters,
    "multiply_adds": lambda cost: None if cost.multiply_adds is None else cost.multiply_adds / 1e6,
    "share": lambda cost: cost.trainable_share,
    "memory": lambda cost: None if cost.peak_memory_bytes is None else cost.peak_memory_bytes / 1e6,
    "epoch": lambda cost: cost.seconds_per_epoch,
}
FEW_USERS = 100  # with so many, the 95 % interval of a share of 10 % is 12 points wide
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


ORDERINGS = (
    "Neighbours of an order are compared, paired over users. Shown: the first is above the second in every pair, and "
    "no interval contains 0. Contradicted: in some pair the second is above the first, and the interval does not "
    "contain 0. Not shown: anything else."
)


def verdict(intervals: Sequence[Interval | None]) -> str:
    """Whether an order shows, given the differences of its neighbours, the better one minus the other."""
    known = [one for one in intervals if one is not None]
    if any(one.high < 0 for one in known):
        return "contradicted"
    if len(known) < len(intervals):
        return "not measured"
    return "shown" if all(one.low > 0 for one in known) else "not shown"


@dataclass(frozen=True)
class Line:
    """One row of a table: a system."""

    label: str
    cell_id: str
    system: str
    result: CellResult | None  # None: not measured yet
    is_stale: bool
    tuning: str


class Page:
    """The page of a plan: a function of its text and of the results."""

    def __init__(self, plan: EvidencePlan, beside: Path, results: Results, stale: Collection[str]) -> None:
        """`beside`: the folder of included files. `stale`: cells to mark as stale."""
        self._plan, self._beside, self._results, self._stale = plan, beside, results, stale

    def write(self, path: Path) -> None:
        """Write the page, and its curves into the folder of results. The output is deterministic."""
        folder = self._results.folder / "curves"
        drawn = set()
        for name, table in self._plan.tables.items():
            if curves := self._curves(table):
                draw(folder / f"{name}.svg", curves)
                drawn.add(folder / f"{name}.svg")
        for name, picture in self._plan.pictures.items():
            if lines := self._by_size(picture):
                draw_by_size(folder / f"{name}.svg", lines, picture.axis, picture.metric)
                drawn.add(folder / f"{name}.svg")
        for old in set(folder.glob("*.svg")) - drawn:
            old.unlink()
        where = {place.stem: Path(os.path.relpath(place, path.parent)).as_posix() for place in drawn}
        with whole_file(path) as draft:
            draft.write_text(self.text(where), encoding="utf-8")

    def text(self, curves: dict[str, str]) -> str:
        """The page as Markdown. `curves`: for each picture, also of a table, its path relative to the page."""
        blocks = [f"# {self._plan.title}", self._included(self._plan.include)]
        for name, picture in self._plan.pictures.items():
            shown = f"![{picture.metric.upper()} by {picture.axis}]({curves[name]})" if name in curves else ""
            blocks += [f"## {picture.title}", picture.text, shown or "Not measured yet."]
        for name, table in self._plan.tables.items():
            blocks += self._section(name, table, curves.get(name))
        blocks += self._orderings()
        return "\n\n".join(block.strip("\n") for block in blocks if block) + "\n"

    def _section(self, name: str, table: PlannedTable, curve: str | None) -> Iterator[str]:
        lines = list(self._lines(table))
        yield f"## {table.title}"
        yield table.text
        yield self._included(table.include)
        yield _caption(table, lines, self._plan.targets)
        notes: list[str] = []
        yield markdown(_figures_table(table, lines, notes))
        yield markdown(differences) if (differences := self._differences(table, lines)).rows else ""
        yield f"![validation NDCG@10 by epoch, {name}]({curve})" if curve else ""
        yield "\n".join(f"- {_mark(place)} {note}" for place, note in enumerate(notes, 1))

    def _orderings(self) -> Iterator[str]:
        """What papers report of the order of systems, and whether it shows here."""
        if self._plan.orderings:
            yield "## The order of systems in papers and here"
            yield ORDERINGS
            columns = ["paper", "domain", "order, best first", "differences of neighbours here, points", "here", "why"]
            rows = [self._ordering(one, domain) for one in self._plan.orderings for domain in one.domains]
            yield markdown(PlainTable("", columns, rows))

    def _ordering(self, ordering: Ordering, domain: str) -> list[Cell]:
        kept = [self._results.difference(*self._names(pair)) for pair in ordering.pairs(domain)]
        intervals = [one.strata["all"].intervals.get(ordering.metric) if one else None for one in kept]
        order = " > ".join(str(self._plan.label_of(cell_id)) for cell_id in ordering.cells(domain))
        shown = "; ".join("-" if one is None else " ".join(Percent(one).pieces()) for one in intervals)
        return [ordering.paper, domain, order, f"{ordering.metric.upper()}: {shown}", verdict(intervals), ordering.why]

    def _names(self, pair: tuple[str, str]) -> tuple[str, str]:
        a, b = (shown_reference(*self._plan.resolve(side)) for side in pair)
        return a, b

    def _lines(self, table: PlannedTable) -> Iterator[Line]:
        for row in table.rows:
            cell_id, system = self._plan.resolve(row.cell)
            cell, result = self._plan.measured[cell_id], self._results.cell(cell_id)
            names = cell.names if isinstance(cell, BaselinesCell) else {}
            for one in names if names and system == MODEL else [system]:
                label = row.label or names[one]
                yield Line(label, cell_id, one, result, cell_id in self._stale, self._plan.tuning_of(cell_id))

    def _differences(self, table: PlannedTable, lines: Sequence[Line]) -> PlainTable:
        metrics = [column for column in table.columns if column in METRICS]
        labels = {(line.cell_id, line.system): line.label for line in reversed(lines)}
        results = {line.cell_id: line.result for line in lines}
        rows: list[list[Cell]] = []
        p_values: list[Mapping[str, float]] = []
        for planned in self._plan.differences:
            a, b = self._plan.resolve(planned.a), self._plan.resolve(planned.b)
            if a not in labels or b not in labels:
                continue
            kept = self._results.difference(shown_reference(*a), shown_reference(*b))
            intervals = kept.strata[table.stratum].intervals if kept else {}
            is_of_these = kept is not None and kept.is_of(results[a[0]], results[b[0]])
            is_old = kept is not None and (not is_of_these or {a[0], b[0]} & set(self._stale))
            label = f"{labels[a]} - {labels[b]}" + (" (stale)" if is_old else "")
            rows.append([label, *(Percent(intervals[m]) if m in intervals else None for m in metrics)])
            p_values.append(kept.p_values.get(table.tests, {}) if kept and table.tests else {})
        columns = ["difference", *map(str.upper, metrics)]
        if table.tests is not None:
            columns += [f"p, {test}" for test in TESTS]
            rows = [[*row, *shown] for row, shown in zip(rows, _adjusted(p_values), strict=True)]
        return PlainTable(_title_of_differences(table), columns, rows)

    def _curves(self, table: PlannedTable) -> list[Curve]:
        lines = [line for line in self._lines(table) if line.result is not None] if table.curves else []
        return [Curve(line.label, line.result.trainings) for line in lines if line.result and line.result.trainings]

    def _by_size(self, picture: Picture) -> list[SizeLine]:
        """The lines of a picture, each with the sizes at which its system was measured."""
        lines = []
        for label, system in picture.systems.items():
            points = []
            for size, reference in picture.references(system).items():
                cell_id, name = self._plan.resolve(reference)
                if result := self._results.cell(cell_id):
                    points.append((size, result.systems[name]["all"].intervals[picture.metric]))
            lines += [SizeLine(label, points)] if points else []
        return lines

    def _included(self, name: Path | None) -> str:
        return (self._beside / name).read_text(encoding="utf-8") if name is not None else ""


def _title_of_differences(table: PlannedTable) -> str:
    tested = (
        f"; p of {table.tests.upper()} by three tests, each adjusted by Holm over this table" if table.tests else ""
    )
    return f"differences in points, paired{tested}"


def _adjusted(p_values: Sequence[Mapping[str, float]]) -> list[list[Cell]]:
    """For each difference its p-value by each test, adjusted by Holm over those that were measured."""
    shown: list[list[Cell]] = [[] for _ in p_values]
    for test in TESTS:
        found = iter(holm([values[test] for values in p_values if test in values]))
        for values, cells in zip(p_values, shown, strict=True):
            cells.append(shown_p(next(found)) if test in values else None)
    return shown


def _figures_table(table: PlannedTable, lines: Sequence[Line], notes: list[str]) -> PlainTable:
    columns = ["system", *(HEADINGS.get(column, column.upper()) for column in table.columns)]
    rows: list[list[Cell]] = []
    for line in lines:
        note = _note(line)
        if note and note not in notes:
            notes.append(note)
        mark = f" {_mark(notes.index(note) + 1)}" if note else ""
        stale = " (stale)" if line.is_stale and line.result else ""
        rows.append([f"{line.label}{mark}{stale}", *(_shown(line, column, table.stratum) for column in table.columns)])
    return PlainTable("", columns, rows)


def _shown(line: Line, column: str, stratum: str) -> Cell:
    if line.result is None:
        return None
    figures, trainings = line.result.systems[line.system][stratum], line.result.trainings
    if column == "users":
        return figures.num_users
    if column in METRICS:
        return Percent(figures.intervals[column]) if column in figures.intervals else None
    if not trainings:
        return None
    return _cost(column, trainings) if column in COSTS else _time(column, trainings)


def _time(column: str, trainings: Sequence[Training]) -> Cell:
    if column == "best_epoch":
        return round(_mean([training.best_epoch for training in trainings]), 1)
    seconds = [training.cpu_s if column == "cpu" else training.wall_s for training in trainings]
    return round(_mean(seconds) / 60, 1)


def _cost(column: str, trainings: Sequence[Training]) -> Cell:
    """The mean over seeds; None unless all trainings have the value."""
    costs = [training.cost for training in trainings if training.cost is not None]
    values = [value for cost in costs if (value := COST_OF[column](cost)) is not None]
    if len(values) < len(trainings):
        return None
    if column == "share":
        return Percent(_mean(values))
    return round(_mean(values), 1) if column in ("epoch", "multiply_adds") else round(_mean(values))


def _caption(table: PlannedTable, lines: Sequence[Line], which: str) -> str:
    """A caption about the targets; empty if rows are of several domains or none is measured."""
    found = [line for line in lines if line.result is not None]
    if not found or found[0].result is None or len({domain_of(line.cell_id) for line in lines}) > 1:
        return ""
    num_users = found[0].result.systems[found[0].system][table.stratum].num_users
    whose = WHOSE[table.stratum].format(which=which, users=f"{num_users:,} user{'' if num_users == 1 else 's'}")
    few = " These are too few to tell systems apart." if num_users < FEW_USERS else ""
    return f"`{domain_of(found[0].cell_id)}`: {whose}, among {found[0].result.num_items:,} items, in %.{few}"


def _note(line: Line) -> str:
    """Seeds, tuning, pretraining and machine of a row; of baselines only what was chosen."""
    result = line.result
    if result is None or result.kind in BASELINES_OF:
        return "" if result is None or result.chosen is None else _of_search(result.chosen)
    facts = [f"Seeds {', '.join(map(str, result.seeds))}." if len(result.seeds) > 1 else ""]
    facts += [f"Seed {seed}." for seed in result.seeds if len(result.seeds) == 1]
    if result.pretraining is not None:
        facts.append(_of_pretraining(result.pretraining))
    facts.append(f"Tuning: {line.tuning.rstrip('.')}.")
    if result.chosen is not None:
        facts.append(_of_search(result.chosen))
    machines = [training.hardware.shown for training in result.trainings]
    machines += [result.hardware.shown] if result.hardware else []
    facts.append(f"On {'; '.join(dict.fromkeys(machines))}.")
    return " ".join(fact for fact in facts if fact)


def _of_pretraining(training: Training) -> str:
    return (
        f"Pretrained with seed {training.seed}, best after {training.best_epoch} of {training.num_epochs} epochs, "
        f"CPU {training.cpu_s / 60:.1f} min."
    )


def _of_search(chosen: Chosen) -> str:
    short = short_names(list(chosen.values))
    values = ", ".join(f"{short[path]} {_plain(value)}" for path, value in chosen.values.items())
    return f"Chosen by {chosen.trials} trials, CPU {chosen.cpu_s / 60:.1f} min: {values}."


def _plain(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _mark(place: int) -> str:
    return str(place).translate(RAISED)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
