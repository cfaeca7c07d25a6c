"""What checkpoints hold, laid out for people, and how they are given away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pmmrec.errors import CheckpointError, PMMRecError
from pmmrec.homes import expanded
from pmmrec.tables import Cell, PlainTable
from pmmrec.zoo.base import place_of
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender, open_checkpoint
from pmmrec.zoo.hub import find_checkpoint, list_places

_PREFIX = "://"


def hub_table(hub: Path | str) -> PlainTable:
    """The checkpoints of a folder hub, below a URL or of `hf://user`: system, width, parts, what they learned from.

    A `Path` is a hub, which need not be there yet. RecipeError for another folder that is not there.
    """
    rows: list[list[Cell]] = []
    is_yet_to_come = isinstance(hub, Path) and not expanded(hub).exists()
    for place in () if is_yet_to_come else list_places(str(hub)):
        name = place if _PREFIX in place else Path(place).name
        try:
            checkpoint = open_checkpoint(place, Path(), parts=(), warn=lambda _: None)
        except PMMRecError as error:
            trouble = "cannot be read; see zoo verify" if isinstance(error, CheckpointError) else "cannot be had"
            rows.append([name, trouble, None, None, None])
            continue
        learned_from = ", ".join(checkpoint.learned_from)
        rows.append([name, checkpoint.system, checkpoint.index.width, ", ".join(checkpoint.held), learned_from])
    return PlainTable(str(hub), ["name", "system", "width", "parts", "learned from"], rows)


@dataclass(frozen=True)
class PartFacts:
    """A part of a checkpoint, or a head of an objective."""

    name: str
    family: str
    type: str
    num_tensors: int
    num_parameters: int


@dataclass(frozen=True)
class BaseFacts:
    """The checkpoint that adapters stand on."""

    place: str
    sha256: str


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint holds, and where it comes from."""

    place: str
    system: str
    width: int
    learned_from: tuple[str, ...]
    started_from: str | None  # None: it does not say
    base: BaseFacts | None  # None: it is whole
    parts: tuple[PartFacts, ...]

    @classmethod
    def read(cls, place: str, hub: Path, warn: Callable[[str], None] = lambda _: None) -> CheckpointFacts:
        """Those of a checkpoint wherever it is; of another machine no tensor is fetched."""
        checkpoint = open_checkpoint(place, hub, parts=(), warn=warn)
        entries = {**checkpoint.held, **{f"objectives/{name}": one for name, one in checkpoint.objectives.items()}}
        sizes = {name: checkpoint.sizes(entry) for name, entry in entries.items()}
        base, started_from = checkpoint.index.base, checkpoint.provenance.get("started_from")
        return cls(
            place=checkpoint.origin.pinned,
            system=checkpoint.system,
            width=checkpoint.index.width,
            learned_from=tuple(checkpoint.learned_from),
            started_from=None if started_from is None else str(started_from),
            base=None if base is None else BaseFacts(str(place_of(base)), base.sha256),
            parts=tuple(
                PartFacts(name, entry.family, entry.type, len(sizes[name]), sum(sizes[name]))
                for name, entry in entries.items()
            ),
        )

    def table(self) -> PlainTable:
        """The parts with their tensors and parameters."""
        learned_from = ", ".join(self.learned_from) or "nothing"
        title = (
            f"{self.place}: {self.system}, width {self.width}, learned from {learned_from}, started from "
            f"{self.started_from or 'unknown'}"
        )
        if self.base is not None:
            title += f", stands on {self.base.place} (sha256 {self.base.sha256})"
        rows: list[list[Cell]] = [[one.name, one.type, one.num_tensors, one.num_parameters] for one in self.parts]
        return PlainTable(title, ["part", "type", "tensors", "parameters"], rows)


def checkpoint_problems(place: str, hub: Path, warn: Callable[[str], None] = lambda _: None) -> tuple[Path, list[str]]:
    """What is wrong with the files of a checkpoint, or with its tensors where all files are sound.

    A model that knows items by id is built for its catalogue alone, so there the files are all that is checked.
    """
    checkpoint = Checkpoint.open(find_checkpoint(place, hub, warn=warn))
    problems = checkpoint.verify() or checkpoint.broken_numbers()
    if not problems and "item_table" not in checkpoint.parts:
        try:
            load_recommender(checkpoint)
        except CheckpointError as error:
            problems = str(error).splitlines()
    return checkpoint.folder, problems
