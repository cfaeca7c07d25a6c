"""What `model_index.json` says: the parts of a checkpoint, and the SHA-256 of every file and every tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, StringConstraints, model_validator
from typing_extensions import Self

from pmmrec.settings import Config
from pmmrec.zoo import files
from pmmrec.zoo.tensors import SUFFIX, Promise, TensorEntry, parse


def _stays_inside(name: str) -> str:
    if not files.is_inside(name):
        raise ValueError(f"path {name!r} leaves the checkpoint; a path must be relative and stay in its folder")
    return name


InsidePath = Annotated[str, AfterValidator(_stays_inside)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Tensor = Annotated[TensorEntry, BeforeValidator(parse), PlainSerializer(str)]
PartName = Annotated[str, StringConstraints(pattern=r"^[\w -]+$")]


class PartEntry(Config):
    """One part on disk: what it is, where it stands, the SHA-256 of each of its files, and what each tensor is."""

    family: str
    type: str
    folder: InsidePath
    files: dict[InsidePath, Sha256]
    tensors: dict[InsidePath, dict[str, Tensor]] | None = None  # by file and name; null: written before they were told

    @model_validator(mode="before")
    @classmethod
    def _pass_over_sizes(cls, value: Any) -> Any:
        """Numbers in each tensor, which some checkpoints tell where others tell the tensors themselves."""
        return {key: told for key, told in value.items() if key != "sizes"} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _tell_of_listed_files(self) -> Self:
        if self.tensors is not None and set(self.tensors) != {name for name in self.files if name.endswith(SUFFIX)}:
            raise ValueError("tensors must be told of every listed .safetensors file and of no other")
        return self

    @property
    def promises(self) -> dict[str, Promise]:
        """What is said of each file, by its path in the folder."""
        told = self.tensors or {}
        return {name: Promise(digest, told.get(name)) for name, digest in self.files.items()}

    @property
    def sizes(self) -> list[int] | None:
        """Numbers in each tensor; None where the tensors are not told."""
        if self.tensors is None:
            return None
        return [tensor.size for name in self.files for tensor in self.tensors.get(name, {}).values()]


class BaseEntry(Config):
    """The checkpoint that adapters stand on, and the parts of it that they need."""

    place: str
    revision: str | None = None
    sha256: Sha256  # of its index
    parts: dict[PartName, PartEntry]
    adapted: dict[PartName, PartEntry] = {}  # where it is itself adapters: what it holds


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
        return {path: promise.sha256 for path, promise in self.promises.items()}

    @property
    def promises(self) -> dict[str, Promise]:
        """What is said of each of those files."""
        return self.promises_of([*self.parts.values(), *self.objectives.values(), *self.adapted.values()])

    def promises_of(self, entries: Iterable[PartEntry]) -> dict[str, Promise]:
        """What is said of the files of some parts, and of those that belong to no part."""
        below = {f"{entry.folder}/{name}": told for entry in entries for name, told in entry.promises.items()}
        return {**{name: Promise(digest) for name, digest in self.files.items()}, **below}

    def written(self) -> dict[str, Any]:
        """The tree that is written; of a whole checkpoint without what adapters alone need."""
        return self.model_dump(mode="json", exclude=None if self.base else {"base", "adapters", "adapted"})
