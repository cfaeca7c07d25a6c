"""Read the plan: what is measured on which data, and how it is shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, StringConstraints, Tag

from pmmrec.data.cut import UserCut
from pmmrec.errors import RecipeError
from pmmrec.evaluation.baselines import BASELINES
from pmmrec.evaluation.metrics import CUTOFFS, MEASURES, metric_name
from pmmrec.evaluation.scenarios import Stratum
from pmmrec.settings import Config, Place, read_yaml, validate

METRICS = tuple(metric_name(measure, cutoff) for measure in MEASURES for cutoff in CUTOFFS)
TIMES = ("best_epoch", "cpu", "wall")
COSTS = ("trainable", "share", "memory", "epoch")
COLUMNS = ("users", *METRICS, *TIMES, *COSTS)
SCRATCH = "none"
MODEL = "model"  # the only system of a cell that is not of baselines

Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]
CellId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*){2}$", max_length=150)]
Text = Annotated[str, StringConstraints(min_length=1)]


def slug(baseline: str) -> str:
    """The name of a baseline in references and files, such as `last-item-markov`."""
    return baseline.lower().replace(" ", "-")


BASELINE_NAMES = {slug(name): name for name in BASELINES}


def _is_column(name: str) -> str:
    if name not in COLUMNS:
        raise ValueError(f"{name!r} is not a column; {_hint(name, COLUMNS)}")
    return name


def _are_distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{list(seeds)} repeats a seed; a second run with it adds nothing")
    return seeds


Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1), AfterValidator(_are_distinct)]


class PlannedDomain(Config):
    """How a domain is imported; paths are relative to the data folder."""

    folder: Place = Field(description="Folder of items.parquet and interactions.parquet.")
    images: Place | None = None
    k_core: int | None = Field(None, ge=1)
    cut: UserCut | None = Field(None, description="Half of the users; null: all.")
    text_vectors: Word | None = Field(
        None, description="Name under which vectors of the texts are stored, as a sentence encoder computes them."
    )


class Pretraining(Config):
    """A pretraining with one seed, from whose checkpoint cells may start."""

    recipe: Text = Field(description="A file, relative to the current folder, or a shipped recipe.")
    sources: tuple[Word, ...] = Field(min_length=1)
    overrides: tuple[str, ...] = ()
    seed: int = Field(1, ge=0, lt=2**31)


class BaselinesCell(Config):
    """Random, popularity, last-item Markov and item-kNN: nothing is trained."""

    kind: Literal["baselines"]


class _StartingCell(Config):
    model_config = ConfigDict(populate_by_name=True)

    start_from: str = Field(alias="from", description="A pretraining of the plan; none: from scratch.")
    tuning: Word = Field(description="One of the plan's `tunings`.")


class FinetuneCell(_StartingCell):
    """One training for each seed."""

    kind: Literal["finetune"]
    recipe: Text
    overrides: tuple[str, ...] = ()
    seeds: Seeds = (1, 2, 3)


class ZeroShotCell(_StartingCell):
    """A pretrained checkpoint without further training."""

    kind: Literal["zero_shot"]
    popularity: float | None = Field(None, ge=0, description="Weight of popularity; null: that of the checkpoint.")


class SameCell(Config):
    """An alias of a cell, so that several tables can show it."""

    same_as: CellId


MeasuredCell: TypeAlias = BaselinesCell | FinetuneCell | ZeroShotCell


def _kind_of(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return "same_as" if "same_as" in value else str(value.get("kind"))
    return str(getattr(value, "kind", "same_as"))


AnyCell: TypeAlias = Annotated[
    Annotated[BaselinesCell, Tag("baselines")]
    | Annotated[FinetuneCell, Tag("finetune")]
    | Annotated[ZeroShotCell, Tag("zero_shot")]
    | Annotated[SameCell, Tag("same_as")],
    Discriminator(
        _kind_of,
        custom_error_type="kind",
        custom_error_message="must have kind: baselines, finetune or zero_shot, or same_as: CELL",
    ),
]


class Difference(Config):
    """System a minus system b, paired over users and seeds: each a `CELL`, or `CELL@BASELINE` for one baseline."""

    a: Text
    b: Text


class Row(Config):
    """A row of a table; a cell of baselines without `@BASELINE` gives a row for each baseline."""

    cell: Text
    label: str | None = None


class PlannedTable(Config):
    """A table of the page; it also shows the planned differences between its rows."""

    title: Text
    text: str = ""
    include: Path | None = Field(None, description="Markdown file beside the plan, inserted unchanged.")
    stratum: Stratum = "all"
    columns: tuple[Annotated[str, AfterValidator(_is_column)], ...] = ("hr@10", "ndcg@10", "best_epoch", "cpu")
    rows: tuple[Row, ...] = Field(min_length=1)
    curves: bool = Field(True, description="Whether to draw learning curves of the trained rows.")


class EvidencePlan(Config):
    """The whole plan. `read_plan` also checks references between its parts."""

    title: Text
    include: Path | None = Field(None, description="Markdown file beside the plan: how to read the page.")
    tunings: dict[Word, Text] = Field({}, description="How the settings of rows were chosen, as text.")
    domains: dict[Word, PlannedDomain]
    pretrainings: dict[Word, Pretraining] = {}
    cells: dict[CellId, AnyCell]
    differences: tuple[Difference, ...] = ()
    tables: dict[Word, PlannedTable]

    @property
    def measured(self) -> dict[str, MeasuredCell]:
        """The cells that are not aliases."""
        return {cell_id: cell for cell_id, cell in self.cells.items() if not isinstance(cell, SameCell)}

    def resolve(self, reference: str) -> tuple[str, str]:
        """Resolve `CELL` or `CELL@BASELINE` to the id of the measured cell and its system."""
        cell_id, _, system = reference.partition("@")
        cell = self.cells[cell_id]
        return (cell.same_as if isinstance(cell, SameCell) else cell_id), system or MODEL

    def tuning_of(self, cell_id: str) -> str:
        """How the settings of a measured cell were chosen; empty for baselines, which have none."""
        cell = self.cells[cell_id]
        return self.tunings[cell.tuning] if isinstance(cell, _StartingCell) else ""

    def domains_of(self, cell_id: str) -> tuple[str, ...]:
        """The domain of a measured cell, then the sources of its checkpoint."""
        cell = self.cells[cell_id]
        start = getattr(cell, "start_from", SCRATCH)
        sources = self.pretrainings[start].sources if start != SCRATCH else ()
        return (domain_of(cell_id), *sources)


def domain_of(cell_id: str) -> str:
    """The middle of `TABLE/DOMAIN/ROW`."""
    return cell_id.split("/")[1]


def shown_reference(cell_id: str, system: str) -> str:
    """`CELL`, or `CELL@BASELINE`."""
    return cell_id if system == MODEL else f"{cell_id}@{system}"


def read_plan(path: Path) -> EvidencePlan:
    """Read a plan from a YAML file. RecipeError that lists every problem with its place."""
    plan = validate(EvidencePlan, read_yaml(path), str(path))
    problems = [*_of_pretrainings(plan), *_of_cells(plan), *_of_tables(plan), *_of_differences(plan)]
    problems += _of_files(plan, path.parent)
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
                yield f"pretrainings.{name}.sources: no domain {source!r}; {_hint(source, plan.domains)}"


def _of_cells(plan: EvidencePlan) -> Iterator[str]:
    for cell_id, cell in plan.cells.items():
        place, domain = f"cells.{cell_id}", domain_of(cell_id)
        if isinstance(cell, SameCell):
            yield from _of_same(plan, place, cell.same_as, domain)
            continue
        if domain not in plan.domains:
            yield f"{place}: no domain {domain!r}; {_hint(domain, plan.domains)}"
        if isinstance(cell, _StartingCell) and cell.tuning not in plan.tunings:
            yield f"{place}.tuning: no tuning {cell.tuning!r}; {_hint(cell.tuning, plan.tunings)}"
        start = getattr(cell, "start_from", SCRATCH)
        if start == SCRATCH:
            if isinstance(cell, ZeroShotCell):
                yield f"{place}.from: zero-shot needs a pretraining; {_hint('', plan.pretrainings)}"
        elif start not in plan.pretrainings:
            yield f"{place}.from: no pretraining {start!r}; {_hint(start, (*plan.pretrainings, SCRATCH))}"
        elif domain in plan.domains:
            yield from _of_shared_users(plan, place, domain, start)


def _of_same(plan: EvidencePlan, place: str, same_as: str, domain: str) -> Iterator[str]:
    if same_as not in plan.cells:
        yield f"{place}.same_as: no cell {same_as!r}; {_hint(same_as, plan.cells)}"
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


def _of_differences(plan: EvidencePlan) -> Iterator[str]:
    for index, difference in enumerate(plan.differences):
        place, is_broken = f"differences[{index}]", False
        for side, reference in (("a", difference.a), ("b", difference.b)):
            problem = _of_reference(plan, reference)
            if (
                not problem
                and "@" not in reference
                and isinstance(plan.cells[plan.resolve(reference)[0]], BaselinesCell)
            ):
                problem = f"{reference!r} holds several baselines; name one: {reference}@{next(iter(BASELINE_NAMES))}"
            if problem:
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
        seeds = [cell.seeds for cell in (plan.cells[a], plan.cells[b]) if isinstance(cell, FinetuneCell)]
        if len(set(seeds)) > 1:
            yield f"{place}: seeds {list(seeds[0])} and {list(seeds[1])}; pairs need the same ones"


def _of_reference(plan: EvidencePlan, reference: str) -> str | None:
    cell_id, at, system = reference.partition("@")
    if cell_id not in plan.cells:
        return f"no cell {cell_id!r}; {_hint(cell_id, plan.cells)}"
    measured = plan.resolve(cell_id)[0]
    if measured not in plan.measured:
        return f"{cell_id!r} is the same as {measured!r}, which is not measured"
    if not at:
        return None
    if not isinstance(plan.cells[measured], BaselinesCell):
        return f"{cell_id!r} holds one system; leave @{system} out"
    return None if system in BASELINE_NAMES else f"no baseline {system!r}; {_hint(system, BASELINE_NAMES)}"


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


def _hint(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"
