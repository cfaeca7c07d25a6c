"""The plan: what is measured on which data, and how it is shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator
from typing_extensions import Self

from pmmrec.data.cut import UserCut
from pmmrec.data.splits import HoldoutName, SplitField
from pmmrec.data.splits.leave_one_out import LeaveOneOutConfig
from pmmrec.evaluation.baselines import BASELINES
from pmmrec.evaluation.metrics import CUTOFFS, MEASURES, OF_SEVERAL, metric_name
from pmmrec.evaluation.scenarios import Stratum
from pmmrec.evaluation.tuned_baselines import TUNED_BASELINES
from pmmrec.settings import Config, Place
from pmmrec.shipped import shipped_file

METRICS = tuple(metric_name(measure, cutoff) for measure in (*MEASURES, *OF_SEVERAL) for cutoff in CUTOFFS)
TIMES = ("best_epoch", "cpu", "wall")
COSTS = ("trainable", "parameters", "share", "memory", "epoch", "multiply_adds")
COLUMNS = ("users", *METRICS, *TIMES, *COSTS)
SCRATCH = "none"
MODEL = "model"  # the only system of a cell that is not of baselines

Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]
CellId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*){2}$", max_length=150)]
Text = Annotated[str, StringConstraints(min_length=1)]


def slug(baseline: str) -> str:
    """The name of a baseline in references and files, such as `last-item-markov`."""
    return baseline.lower().replace(" ", "-")


def hint(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"


# The kinds of cells in which nothing is trained -> what they measure, by reference.
BASELINES_OF: Mapping[str, Mapping[str, str]] = {
    "baselines": {slug(name): name for name in BASELINES},
    "tuned_baselines": {slug(name): name for name in TUNED_BASELINES},
}


def _is_column(name: str) -> str:
    if name not in COLUMNS:
        raise ValueError(f"{name!r} is not a column; {hint(name, COLUMNS)}")
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
    text_states: Word | None = Field(None, description="The same of the states of all layers of that encoder.")
    text_codes: Word | None = Field(None, description="The same of codes of `text_vectors`, as VQRec reads them.")
    image_vectors: Word | None = Field(
        None, description="Name under which vectors of the images are stored, as EfficientNet-Lite0 computes them."
    )

    @model_validator(mode="after")
    def _codes_are_of_vectors(self) -> Self:
        if self.text_codes is not None and self.text_vectors is None:
            raise ValueError("text_codes: are made of text_vectors; name these too")
        return self

    @model_validator(mode="after")
    def _vectors_are_of_images(self) -> Self:
        if self.image_vectors is not None and self.images is None:
            raise ValueError("image_vectors: are made of images; name their folder too")
        return self


class Pretraining(Config):
    """A pretraining with one seed, from whose checkpoint cells may start."""

    recipe: Text = Field(description="A file, relative to the current folder, or a shipped recipe.")
    sources: tuple[Word, ...] = Field(min_length=1)
    overrides: tuple[str, ...] = ()
    seed: int = Field(1, ge=0, lt=2**31)
    judged_by: Word | None = Field(
        None, description="The domain whose validation targets choose the epoch; null: the sources."
    )


class PlannedSearch(Config):
    """A search for the settings of a cell, by validation targets, before its seeds are run.

    Cells of one recipe and the same overrides whose search is on one domain share it.
    """

    domain: Word | None = Field(None, description="The domain whose validation targets decide; null: that of the cell.")
    space: Text = Field(description="A file, relative to the current folder, or a shipped one.")
    trials: int = Field(ge=1)
    seed: int = Field(1, ge=0)

    @property
    def file(self) -> Path:
        """The file of the space. RecipeError where there is none."""
        path = Path(self.space)
        return path if path.is_file() else shipped_file(self.space)


class BaselinesCell(Config):
    """Random, popularity, last-item Markov and item-kNN; or EASE and item-kNN, tuned on the validation targets."""

    kind: Literal["baselines", "tuned_baselines"]
    users: int | None = Field(None, ge=1, description="As of a training; each of `seeds` draws its own users.")
    seeds: Seeds | None = None

    @model_validator(mode="after")
    def _draws_have_seeds(self) -> Self:
        if (self.users is None) != (self.seeds is None):
            raise ValueError("users and seeds: go together; name both or none")
        if self.users is not None and self.kind == "tuned_baselines":
            raise ValueError("users: have no effect on tuned baselines here; leave them out")
        return self

    @property
    def names(self) -> Mapping[str, str]:
        """What is measured, by reference."""
        return BASELINES_OF[self.kind]


class StartingCell(Config):
    model_config = ConfigDict(populate_by_name=True)

    start_from: str = Field(alias="from", description="A pretraining of the plan; none: from scratch.")
    blend: bool = Field(
        False, description="Whether item-kNN and popularity are added, with weights by the validation targets."
    )
    tuning: Word = Field(description="One of the plan's `tunings`.")


class FinetuneCell(StartingCell):
    """One training for each seed."""

    kind: Literal["finetune"]
    recipe: Text
    overrides: tuple[str, ...] = ()
    seeds: Seeds = (1, 2, 3)
    users: int | None = Field(
        None, ge=1, description="Size of the sample of users that trains, which each seed draws anew; null: all."
    )
    search: Word | None = Field(None, description="One of the plan's `searches`; null: the settings as they are.")
    weights: dict[Word, Text] = Field(
        {}, description="Name of weights in the recipe -> PRETRAINING/PART, an encoder that a pretraining tuned."
    )

    @model_validator(mode="after")
    def _weights_are_not_searched_with(self) -> Self:
        if self.weights and self.search is not None:
            raise ValueError("weights: a search does not take them; leave one of them out")
        return self

    @property
    def tuned(self) -> tuple[str, ...]:
        """The pretrainings that its weights come from."""
        return tuple(dict.fromkeys(place.partition("/")[0] for place in self.weights.values()))


class ZeroShotCell(StartingCell):
    """A pretrained checkpoint without further training."""

    kind: Literal["zero_shot"]
    popularity: float | None = Field(None, ge=0, description="Weight of popularity; null: that of the checkpoint.")

    @model_validator(mode="after")
    def _a_blend_has_popularity(self) -> Self:
        if self.blend and self.popularity is not None:
            raise ValueError("popularity: has no effect with blend; leave it out")
        return self


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
    | Annotated[BaselinesCell, Tag("tuned_baselines")]
    | Annotated[FinetuneCell, Tag("finetune")]
    | Annotated[ZeroShotCell, Tag("zero_shot")]
    | Annotated[SameCell, Tag("same_as")],
    Discriminator(
        _kind_of,
        custom_error_type="kind",
        custom_error_message="must have kind: baselines, tuned_baselines, finetune or zero_shot, or same_as: CELL",
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


class Ordering(Config):
    """An order of systems that a paper reports, and whether it shows on some domains here."""

    paper: Text = Field(description="The paper, its table and the figures that it reports.")
    table: Word = Field(description="The first word of the cells, TABLE/DOMAIN/SYSTEM.")
    domains: tuple[Word, ...] = Field(min_length=1)
    systems: tuple[Word, ...] = Field(min_length=2, description="The last words of the cells, the best one first.")
    metric: Text = "hr@10"
    why: str = Field("", description="Why it shows here or does not, in one sentence.")

    def cells(self, domain: str) -> list[str]:
        """The cells on a domain, the best one first."""
        return [f"{self.table}/{domain}/{system}" for system in self.systems]

    def pairs(self, domain: str) -> list[tuple[str, str]]:
        """Neighbours on a domain, the better one first."""
        return list(pairwise(self.cells(domain)))


class Picture(Config):
    """A picture of a metric by a size of the target, such as the users that train; a line for each system."""

    title: Text
    text: str = ""
    axis: Text = Field(description="What the sizes count.")
    domain: Word
    tables: dict[float, Word] = Field(
        min_length=2, description="By size: the first word of cells, TABLE/DOMAIN/SYSTEM."
    )
    systems: dict[Text, Text] = Field(min_length=1, description="By label: the last word of cells, or CELL@BASELINE.")
    metric: Text = "hr@10"

    def references(self, system: str) -> dict[float, str]:
        """The cell of a system at each size, `CELL` or `CELL@BASELINE`."""
        return {size: f"{table}/{self.domain}/{system}" for size, table in sorted(self.tables.items())}


class PlannedTable(Config):
    """A table of the page; it also shows the planned differences between its rows."""

    title: Text
    text: str = ""
    include: Path | None = Field(None, description="Markdown file beside the plan, inserted unchanged.")
    stratum: Stratum = "all"
    columns: tuple[Annotated[str, AfterValidator(_is_column)], ...] = ("hr@10", "ndcg@10", "best_epoch", "cpu")
    rows: tuple[Row, ...] = Field(min_length=1)
    curves: bool = Field(True, description="Whether to draw learning curves of the trained rows.")
    tests: str | None = Field(
        None, description="A metric whose differences have p-values, adjusted by Holm over the table; null: none."
    )


class EvidencePlan(Config):
    """The whole plan. `read_plan` also checks references between its parts."""

    title: Text
    include: Path | None = Field(None, description="Markdown file beside the plan: how to read the page.")
    targets: HoldoutName = Field(
        "test", description="Which targets all cells rank; validation: to choose among them, the test is not touched."
    )
    split: SplitField = Field(
        LeaveOneOutConfig(), description="How targets are held out; recipes of cells hold out the same ones."
    )
    tunings: dict[Word, Text] = Field({}, description="How the settings of rows were chosen, as text.")
    domains: dict[Word, PlannedDomain]
    pretrainings: dict[Word, Pretraining] = {}
    searches: dict[Word, PlannedSearch] = {}
    cells: dict[CellId, AnyCell]
    differences: tuple[Difference, ...] = ()
    pictures: dict[Word, Picture] = Field({}, description="They stand above the tables.")
    tables: dict[Word, PlannedTable]
    orderings: tuple[Ordering, ...] = ()

    @property
    def compared(self) -> tuple[Difference, ...]:
        """The planned differences, and those between neighbours of orderings."""
        pairs = [Difference(a=a, b=b) for one in self.orderings for d in one.domains for a, b in one.pairs(d)]
        return tuple(dict.fromkeys((*self.differences, *pairs)))

    @property
    def has_single_targets(self) -> bool:
        """Whether each user has one target, which belongs to a stratum."""
        return isinstance(self.split, LeaveOneOutConfig)

    @property
    def tested(self) -> tuple[str, ...]:
        """The metrics whose differences have p-values."""
        return tuple(dict.fromkeys(table.tests for table in self.tables.values() if table.tests is not None))

    def search_of(self, cell_id: str) -> PlannedSearch | None:
        """The search for the settings of a measured cell, with its domain; None where there is none."""
        cell = self.cells[cell_id]
        if not isinstance(cell, FinetuneCell) or cell.search is None:
            return None
        planned = self.searches[cell.search]
        return planned.model_copy(update={"domain": planned.domain or domain_of(cell_id)})

    def label_of(self, cell_id: str) -> str | None:
        """What the tables call the system of a cell; None where none shows it."""
        labels = [row.label for table in self.tables.values() for row in table.rows if row.cell == cell_id]
        return next((label for label in labels if label is not None), None)

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
        return self.tunings[cell.tuning] if isinstance(cell, StartingCell) else ""

    def domains_of(self, cell_id: str) -> tuple[str, ...]:
        """The domain of a measured cell, the sources of its checkpoint, and the domain of its search."""
        cell = self.cells[cell_id]
        start = getattr(cell, "start_from", SCRATCH)
        tuned = cell.tuned if isinstance(cell, FinetuneCell) else ()
        before = [self.pretrainings[name] for name in (start, *tuned) if name in self.pretrainings]
        sources = [name for one in before for name in (*one.sources, one.judged_by) if name is not None]
        search = self.search_of(cell_id)
        searched = () if search is None or search.domain is None else (search.domain,)
        return tuple(dict.fromkeys((domain_of(cell_id), *sources, *searched)))


def domain_of(cell_id: str) -> str:
    """The middle of `TABLE/DOMAIN/ROW`."""
    return cell_id.split("/")[1]


def shown_reference(cell_id: str, system: str) -> str:
    """`CELL`, or `CELL@BASELINE`."""
    return cell_id if system == MODEL else f"{cell_id}@{system}"
