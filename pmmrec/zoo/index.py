"""The schema of `model_index.json`: parts of a checkpoint, SHA-256 of every file and every tensor."""

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
    """One part on disk: family and type, folder, SHA-256 of each file, description of each tensor."""

    family: str
    type: str
    folder: InsidePath
    files: dict[InsidePath, Sha256]
    tensors: dict[InsidePath, dict[str, Tensor]] | None = None  # by file and name; null in older checkpoints

    @model_validator(mode="before")
    @classmethod
    def _ignore_sizes(cls, value: Any) -> Any:
        """Ignore `sizes`, which older checkpoints hold in place of `tensors`."""
        return {key: entry for key, entry in value.items() if key != "sizes"} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _describe_listed_files(self) -> Self:
        if self.tensors is not None and set(self.tensors) != {name for name in self.files if name.endswith(SUFFIX)}:
            raise ValueError("tensors must describe every listed .safetensors file and no other")
        return self

    @property
    def promises(self) -> dict[str, Promise]:
        """What the index says about each file, by its path in the folder."""
        tensors = self.tensors or {}
        return {name: Promise(digest, tensors.get(name)) for name, digest in self.files.items()}

    @property
    def sizes(self) -> list[int] | None:
        """Number of elements of each tensor; None if the index does not describe the tensors."""
        if self.tensors is None:
            return None
        return [tensor.size for name in self.files for tensor in self.tensors.get(name, {}).values()]


class BaseEntry(Config):
    """The base checkpoint of adapters, and those of its parts that they need."""

    place: str
    revision: str | None = None
    sha256: Sha256  # of its index
    parts: dict[PartName, PartEntry]
    adapted: dict[PartName, PartEntry] = {}  # if the base is itself made of adapters: what it holds


class Index(Config):
    """`model_index.json`: everything a checkpoint holds."""

    format: int
    system: str
    width: int = Field(gt=0)
    model: dict[str, Any]
    parts: dict[PartName, PartEntry]
    objectives: dict[PartName, PartEntry] = {}
    files: dict[InsidePath, Sha256]
    provenance: dict[str, Any] = {}
    base: BaseEntry | None = None  # None: the checkpoint is whole
    adapters: dict[str, Any] = {}  # the adapter plan
    adapted: dict[PartName, PartEntry] = {}  # adapters and heads trained beside the base, by part

    @property
    def all_files(self) -> dict[str, str]:
        """SHA-256 of each file except the index, by its path in the checkpoint."""
        return {path: promise.sha256 for path, promise in self.promises.items()}

    @property
    def promises(self) -> dict[str, Promise]:
        """What the index says about each of those files."""
        return self.promises_of([*self.parts.values(), *self.objectives.values(), *self.adapted.values()])

    def promises_of(self, entries: Iterable[PartEntry]) -> dict[str, Promise]:
        """What the index says about the files of some parts, and about those that belong to no part."""
        below = {f"{entry.folder}/{name}": promise for entry in entries for name, promise in entry.promises.items()}
        return {**{name: Promise(digest) for name, digest in self.files.items()}, **below}

    def written(self) -> dict[str, Any]:
        """The JSON value to write; without the fields for adapters if the checkpoint has none."""
        return self.model_dump(mode="json", exclude=None if self.base else {"base", "adapters", "adapted"})
