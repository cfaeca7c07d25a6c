"""Describe and check checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pmmrec.errors import CheckpointError, PMMRecError
from pmmrec.homes import expanded
from pmmrec.tables import Cell, PlainTable
from pmmrec.zoo.base import place_of
from pmmrec.zoo.card import ITEM_TABLE, USER_TABLE
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender, open_checkpoint
from pmmrec.zoo.hub import find_checkpoint, list_places

_PREFIX = "://"


def hub_table(hub: Path | str) -> PlainTable:
    """The checkpoints of a folder hub, below a URL or of `hf://user`: system, width, parts, source domains.

    A `Path` is a hub, which need not exist yet. RecipeError for any other folder that does not exist.
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
    """A part of a checkpoint, or the head of an objective."""

    name: str
    family: str
    type: str
    num_tensors: int
    num_parameters: int


@dataclass(frozen=True)
class BaseFacts:
    """The base checkpoint of adapters."""

    place: str
    sha256: str


@dataclass(frozen=True)
class CheckpointFacts:
    """The parts of a checkpoint and its provenance."""

    place: str
    system: str
    width: int
    learned_from: tuple[str, ...]
    started_from: str | None  # None: unknown
    base: BaseFacts | None  # None: it has no adapters
    parts: tuple[PartFacts, ...]

    @classmethod
    def read(cls, place: str, hub: Path, warn: Callable[[str], None] = lambda _: None) -> CheckpointFacts:
        """Read the facts of a local or remote checkpoint; no tensor is downloaded."""
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
        """A table of the parts with their numbers of tensors and parameters."""
        learned_from = ", ".join(self.learned_from) or "nothing"
        title = (
            f"{self.place}: {self.system}, width {self.width}, learned from {learned_from}, started from "
            f"{self.started_from or 'unknown'}"
        )
        if self.base is not None:
            title += f", adapters of {self.base.place} (sha256 {self.base.sha256})"
        rows: list[list[Cell]] = [[one.name, one.type, one.num_tensors, one.num_parameters] for one in self.parts]
        return PlainTable(title, ["part", "type", "tensors", "parameters"], rows)


def checkpoint_problems(place: str, hub: Path, warn: Callable[[str], None] = lambda _: None) -> tuple[Path, list[str]]:
    """The folder of a checkpoint and the problems of its files, or of its tensors if all files are sound.

    A model with item or user ids can only be built for its own domains, so for it only the files are checked.
    """
    checkpoint = Checkpoint.open(find_checkpoint(place, hub, warn=warn))
    problems = checkpoint.verify() or checkpoint.broken_numbers()
    knows_ids = ITEM_TABLE in checkpoint.parts or any(e.type == USER_TABLE for e in checkpoint.parts.values())
    if not problems and not knows_ids:
        try:
            load_recommender(checkpoint)
        except CheckpointError as error:
            problems = str(error).splitlines()
    return checkpoint.folder, problems
