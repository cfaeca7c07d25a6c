"""What `model_index.json` says: the parts of a checkpoint and the SHA-256 of every file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, StringConstraints

from pmmrec.settings import Config
from pmmrec.zoo import files


def _stays_inside(name: str) -> str:
    if not files.is_inside(name):
        raise ValueError(f"path {name!r} leaves the checkpoint; a path must be relative and stay in its folder")
    return name


InsidePath = Annotated[str, AfterValidator(_stays_inside)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PartName = Annotated[str, StringConstraints(pattern=r"^[\w -]+$")]


class PartEntry(Config):
    """One part on disk: what it is, where it stands, and the SHA-256 of each of its files."""

    family: str
    type: str
    folder: InsidePath
    files: dict[InsidePath, Sha256]
    sizes: tuple[NonNegativeInt, ...] | None = None  # numbers in each tensor, so that a part left behind is counted


class BaseEntry(Config):
    """The checkpoint that adapters stand on, and the parts of it that they need."""

    place: str
    revision: str | None = None
    sha256: Sha256  # of its index
    parts: dict[PartName, PartEntry]


class Index(Config):
    """`model_index.json`: everything that a checkpoint holds."""

    format: int
    system: str
    width: int = Field(gt=0)
    model: dict[str, Any]
    parts: dict[PartName, PartEntry]
    objectives: dict[PartName, PartEntry] = {}
    files: dict[InsidePath, Sha256]
    provenance: dict[str, Any] = {}
    base: BaseEntry | None = None  # None: the checkpoint is whole
    adapters: dict[str, Any] = {}  # settings of the adapters that stand on the base
    adapted: dict[PartName, PartEntry] = {}  # what was learned beside the tensors of the base, by part

    @property
    def all_files(self) -> dict[str, str]:
        """SHA-256 of each file of the checkpoint but the index, by its path in the checkpoint."""
        entries = (*self.parts.values(), *self.objectives.values(), *self.adapted.values())
        below = {f"{entry.folder}/{name}": digest for entry in entries for name, digest in entry.files.items()}
        return {**self.files, **below}

    def written(self) -> dict[str, Any]:
        """The tree that is written; of a whole checkpoint without what adapters alone need."""
        return self.model_dump(mode="json", exclude=None if self.base else {"base", "adapters", "adapted"})
