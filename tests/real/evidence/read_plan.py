"""Read a plan from a file, and check that its parts fit one another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from pmmrec.data.cut import UserCut
from pmmrec.errors import RecipeError
from pmmrec.settings import read_yaml, validate
from tests.real.evidence.plan import (
    METRICS,
    MODEL,
    SCRATCH,
    BaselinesCell,
    Difference,
    EvidencePlan,
    FinetuneCell,
    SameCell,
    StartingCell,
    ZeroShotCell,
    domain_of,
    hint,
)


def read_plan(path: Path) -> EvidencePlan:
    """Read a plan from a YAML file. RecipeError that lists every problem with its place."""
    plan = validate(EvidencePlan, read_yaml(path), str(path))
    problems = [
        *_of_pretrainings(plan),
        *_of_searches(plan),
        *_of_cells(plan),
        *_of_pictures(plan),
        *_of_tables(plan),
        *_of_differences(plan),
    ]
    problems += [*_of_orderings(plan), *_of_files(plan, path.parent)]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(f"{path}: {count}\n" + "\n".join(f"  {line}" for line in problems))
    return plan


def _of_pretrainings(plan: EvidencePlan) -> Iterator[str]:
    for name, pretraining in plan.pretrainings.items():
        if name == SCRATCH:
            yield f"pretrainings.{name}: 'none' means from scratch; choose another name"
        for source in pretraining.sources:
            if source not in plan.domains:
                yield f"pretrainings.{name}.sources: no domain {source!r}; {hint(source, plan.domains)}"
        judge = pretraining.judged_by
        if judge is not None and judge not in plan.domains:
            yield f"pretrainings.{name}.judged_by: no domain {judge!r}; {hint(judge, plan.domains)}"
        elif judge in pretraining.sources:
            yield f"pretrainings.{name}.judged_by: {judge!r} is a source; name a domain that is none"


def _of_searches(plan: EvidencePlan) -> Iterator[str]:
    for name, search in plan.searches.items():
        if search.domain is not None and search.domain not in plan.domains:
            yield f"searches.{name}.domain: no domain {search.domain!r}; {hint(search.domain, plan.domains)}"


def _of_cells(plan: EvidencePlan) -> Iterator[str]:
    for cell_id, cell in plan.cells.items():
        place, domain = f"cells.{cell_id}", domain_of(cell_id)
        if isinstance(cell, SameCell):
            yield from _of_same(plan, place, cell.same_as, domain)
            continue
        if domain not in plan.domains:
            yield f"{place}: no domain {domain!r}; {hint(domain, plan.domains)}"
        if isinstance(cell, FinetuneCell) and cell.search is not None and cell.search not in plan.searches:
            yield f"{place}.search: no search {cell.search!r}; {hint(cell.search, plan.searches)}"
        if isinstance(cell, StartingCell) and cell.tuning not in plan.tunings:
            yield f"{place}.tuning: no tuning {cell.tuning!r}; {hint(cell.tuning, plan.tunings)}"
        for tuned in cell.tuned if isinstance(cell, FinetuneCell) else ():
            if tuned not in plan.pretrainings:
                yield f"{place}.weights: no pretraining {tuned!r}; {hint(tuned, plan.pretrainings)}"
        start = getattr(cell, "start_from", SCRATCH)
        if start == SCRATCH:
            if isinstance(cell, ZeroShotCell):
                yield f"{place}.from: zero-shot needs a pretraining; {hint('', plan.pretrainings)}"
        elif start not in plan.pretrainings:
            yield f"{place}.from: no pretraining {start!r}; {hint(start, (*plan.pretrainings, SCRATCH))}"
        elif domain in plan.domains:
            yield from _of_shared_users(plan, place, domain, start)


def _of_same(plan: EvidencePlan, place: str, same_as: str, domain: str) -> Iterator[str]:
    if same_as not in plan.cells:
        yield f"{place}.same_as: no cell {same_as!r}; {hint(same_as, plan.cells)}"
    elif isinstance(plan.cells[same_as], SameCell):
        yield f"{place}.same_as: {same_as!r} is itself an alias; name the measured cell"
    elif domain_of(same_as) != domain:
        yield f"{place}.same_as: {same_as!r} has another domain than {domain!r}"


def _of_shared_users(plan: EvidencePlan, place: str, domain: str, start: str) -> Iterator[str]:
    target = plan.domains[domain]
    for name in plan.pretrainings[start].sources:
        source = plan.domains.get(name)
        if source is None or source.folder != target.folder:
            continue
        halves = (source.cut, target.cut)
        if None in halves or {cut.half for cut in halves if cut} != {"a", "b"} or not _same_draw(*halves):
            yield f"{place}.from: {start!r} has seen users of {domain!r} in {name!r}; cut both, salt and share alike"


def _same_draw(a: UserCut | None, b: UserCut | None) -> bool:
    return a is not None and b is not None and (a.salt, a.share) == (b.salt, b.share)


def _of_tables(plan: EvidencePlan) -> Iterator[str]:
    for name, table in plan.tables.items():
        if table.stratum != "all" and not plan.has_single_targets:
            yield f"tables.{name}.stratum: {table.stratum} is for splits that hold out one item of a user"
        if table.tests is not None and table.tests not in METRICS:
            yield f"tables.{name}.tests: {table.tests!r} is no metric; {hint(table.tests, METRICS)}"
        for index, row in enumerate(table.rows):
            place = f"tables.{name}.rows[{index}]"
            problem = _of_reference(plan, row.cell)
            if problem:
                yield f"{place}.cell: {problem}"
                continue
            cell_id, system = plan.resolve(row.cell)
            is_baselines = isinstance(plan.cells[cell_id], BaselinesCell)
            if is_baselines and system == MODEL and row.label is not None:
                yield f"{place}.label: each baseline has a label of its own; leave it out"
            elif not is_baselines and row.label is None:
                yield f"{place}.label: missing; what is this row called?"


def _of_pictures(plan: EvidencePlan) -> Iterator[str]:
    for name, picture in plan.pictures.items():
        if name in plan.tables:
            yield f"pictures.{name}: a table is called so too; both files would be {name}.svg"
        if picture.metric not in METRICS:
            yield f"pictures.{name}.metric: {picture.metric!r} is no metric; {hint(picture.metric, METRICS)}"
        if min(picture.tables) <= 0:
            yield f"pictures.{name}.tables: sizes are above 0"
        for label, system in picture.systems.items():
            for reference in picture.references(system).values():
                if problem := _of_one_system(plan, reference):
                    yield f"pictures.{name}.systems.{label}: {problem}"


def _of_differences(plan: EvidencePlan) -> Iterator[str]:
    for index, difference in enumerate(plan.differences):
        yield from _of_difference(plan, f"differences[{index}]", difference)


def _of_orderings(plan: EvidencePlan) -> Iterator[str]:
    for index, ordering in enumerate(plan.orderings):
        place = f"orderings[{index}]"
        if ordering.metric not in METRICS:
            yield f"{place}.metric: {ordering.metric!r} is no metric; {hint(ordering.metric, METRICS)}"
        for domain in ordering.domains:
            for cell_id in ordering.cells(domain):
                if cell_id in plan.cells and plan.label_of(cell_id) is None:
                    yield f"{place}: {cell_id} stands in no table, so it has no label"
            for a, b in ordering.pairs(domain):
                yield from _of_difference(plan, place, Difference(a=a, b=b))


def _of_difference(plan: EvidencePlan, place: str, difference: Difference) -> Iterator[str]:
    is_broken = False
    for side, reference in (("a", difference.a), ("b", difference.b)):
        if problem := _of_one_system(plan, reference):
            is_broken = True
            yield f"{place}.{side}: {problem}"
    if not is_broken:
        yield from _of_pair(plan, place, difference)


def _of_pair(plan: EvidencePlan, place: str, difference: Difference) -> Iterator[str]:
    (a, system_a), (b, system_b) = plan.resolve(difference.a), plan.resolve(difference.b)
    if (a, system_a) == (b, system_b):
        yield f"{place}: both sides are the same measurement"
    elif domain_of(a) != domain_of(b):
        yield f"{place}: {domain_of(a)!r} and {domain_of(b)!r} differ in users; only cells of one domain can be paired"
    else:
        seeds = [seeds for side in (a, b) if (seeds := getattr(plan.cells[side], "seeds", None))]
        if len(set(seeds)) > 1 and min(map(len, seeds)) > 1:
            both = " and ".join(str(list(some)) for some in seeds)
            yield f"{place}: seeds {both}; pairs need the same ones, unless one has a single seed"


def _of_one_system(plan: EvidencePlan, reference: str) -> str | None:
    problem = _of_reference(plan, reference)
    cell = None if problem or "@" in reference else plan.cells[plan.resolve(reference)[0]]
    if isinstance(cell, BaselinesCell):
        return f"{reference!r} holds several baselines; name one: {reference}@{next(iter(cell.names))}"
    return problem


def _of_reference(plan: EvidencePlan, reference: str) -> str | None:
    cell_id, at, system = reference.partition("@")
    if cell_id not in plan.cells:
        return f"no cell {cell_id!r}; {hint(cell_id, plan.cells)}"
    measured = plan.resolve(cell_id)[0]
    if measured not in plan.measured:
        return f"{cell_id!r} is the same as {measured!r}, which is not measured"
    if not at:
        return None
    cell = plan.cells[measured]
    if not isinstance(cell, BaselinesCell):
        return f"{cell_id!r} holds one system; leave @{system} out"
    return None if system in cell.names else f"no baseline {system!r}; {hint(system, cell.names)}"


def _of_files(plan: EvidencePlan, beside: Path) -> Iterator[str]:
    includes = {"include": plan.include} | {
        f"tables.{name}.include": table.include for name, table in plan.tables.items()
    }
    for place, include in includes.items():
        if include is not None and not (beside / include).is_file():
            yield f"{place}: no file {beside / include}"
    for (one, a), (other, b) in combinations(plan.domains.items(), 2):
        if a == b:
            yield f"domains.{other}: the same as {one!r}; one of them is enough"
