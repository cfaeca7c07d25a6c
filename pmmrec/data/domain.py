"""What a domain on disk holds: items with their texts and images, and the sequences of its users."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from pmmrec.contracts import Modality
from pmmrec.errors import DataError
from pmmrec.settings import Config

FORMAT = "pmmrec-domain"
FORMAT_VERSION = 1
INCOMPLETE = ".incomplete"  # ending of the folder that an import fills before it is renamed
DataFile = Literal["items.arrow", "images.arrow", "sequences.arrow", "rejected.parquet"]
DOMAIN_FILE = "domain.json"
ITEMS_FILE: Final = "items.arrow"
IMAGES_FILE: Final = "images.arrow"
SEQUENCES_FILE: Final = "sequences.arrow"
REJECTED_FILE: Final = "rejected.parquet"
NAME_PATTERN = r"^\w[\w.\-]{0,99}$"
MAX_INFO_BYTES = 10_000_000
MAX_SHOWN = 5

ITEM_FIELDS = (pa.field("item_id", pa.large_string()), pa.field("text", pa.large_string()))
IMAGES_SCHEMA = pa.schema([("jpeg", pa.large_binary()), ("source_sha256", pa.large_binary())])
SEQUENCE_FIELDS = (pa.field("user_id", pa.large_string()), pa.field("items", pa.large_list(pa.int32())))
TIMES_FIELD = pa.field("times", pa.large_list(pa.int64()))


class FileRecord(Config):
    """A file as it was when the domain was made."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_bytes: int = Field(ge=0)


class SourceFile(FileRecord):
    """A file that the domain was made from, without its folder."""

    file_name: str


class Filters(Config):
    """Which interactions were left out on purpose."""

    k_core: int | None = Field(None, ge=1, description="Users and items all have this many interactions; None: any.")


class ImportSummary(Config):
    """What an import read, kept and rejected. Every rejected row stands in rejected.parquet with its reason."""

    num_items_read: int = Field(ge=0)
    num_interactions_read: int = Field(ge=0)
    kept: dict[str, int]  # items, users, interactions, texts, images
    rejected: dict[str, dict[str, int]]  # kind (item, interaction, image, user) -> reason -> how many
    num_pictures_ignored: int = Field(ge=0)  # files that belong to no item, or are an item's second picture
    notes: tuple[str, ...] = ()  # what was done to times and the like

    def lines(self) -> list[str]:
        """The summary for people, a fact a line."""
        kept = ", ".join(f"{count:,} {what}" for what, count in self.kept.items())
        lines = [f"read {self.num_items_read:,} items, {self.num_interactions_read:,} interactions", f"kept {kept}"]
        for kind, reasons in self.rejected.items():
            lines += [f"rejected {count:,} x {kind}: {reason}" for reason, count in reasons.items()]
        if self.num_pictures_ignored:
            lines.append(f"ignored {self.num_pictures_ignored:,} pictures that belong to no item")
        return lines + list(self.notes)


class DomainInfo(Config):
    """What `domain.json` says of its domain."""

    format: Literal["pmmrec-domain"]
    format_version: Literal[1]
    name: str = Field(pattern=NAME_PATTERN)
    num_items: int = Field(ge=1)
    num_users: int = Field(ge=1)
    num_interactions: int = Field(ge=1)
    num_with: dict[Modality, int]  # items that have a text, items that have an image
    time_unit: Literal["as given", "milliseconds"] | None  # None: the source had no times, file order stands
    filters: Filters
    image_side: int | None  # longest that the shortest side of an image is; None: no images
    sources: dict[str, SourceFile]  # by role; the sha256 of each picture stands beside its image
    files: dict[DataFile, FileRecord]
    item_ids_fingerprint: str  # of the item ids in order
    fingerprint: str  # of items, images and sequences
    summary: ImportSummary


class Domain:
    """A domain mapped into memory: nothing is read before it is asked for, and rows are read at random."""

    def __init__(self, folder: Path, info: DomainInfo, items: pa.Table, images: pa.Table | None) -> None:
        self.folder, self.info = folder, info
        self.item_ids = items["item_id"]
        self._texts = _Column(items["text"])
        self._attributes = {name: items[name] for name in items.column_names if name not in ("item_id", "text")}
        self._images = _Column(images["jpeg"]) if images is not None else None
        has_image = images["jpeg"].is_valid().to_numpy() if images is not None else np.zeros(len(items), dtype=bool)
        self.has: Mapping[Modality, np.ndarray] = {
            Modality.TEXT: items["text"].is_valid().to_numpy(),
            Modality.IMAGE: has_image,
        }

    @classmethod
    def open(cls, folder: Path, *, streamed: bool = False) -> Domain:
        """The domain in `folder`. Raises DataError when there is none, or it is not whole.

        `streamed`: sequences are checked when they are first asked for, not now, which takes a pass over all users; for
        those who read them through `Histories`, which checks as it goes.
        """
        folder = Path(folder)
        info = read_info(folder)
        for name, record in info.files.items():
            _check_size(folder / name, record)
        items = _map_table(folder / ITEMS_FILE, ITEM_FIELDS, info.num_items)
        images = None
        if IMAGES_FILE in info.files:
            images = _map_table(folder / IMAGES_FILE, tuple(IMAGES_SCHEMA), info.num_items)
        domain = cls(folder, info, items, images)
        if not streamed:
            domain._check_num_interactions()
        return domain

    def __reduce__(self) -> tuple[Any, ...]:
        return Domain.open, (self.folder,)  # a worker process maps the files again

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def num_items(self) -> int:
        return self.info.num_items

    @property
    def num_users(self) -> int:
        return self.info.num_users

    @property
    def num_interactions(self) -> int:
        return self.info.num_interactions

    @property
    def fingerprint(self) -> str:
        """Changes whenever items, images or sequences do."""
        return self.info.fingerprint

    @property
    def item_ids_fingerprint(self) -> str:
        """Changes whenever an item id or the order of items does."""
        return self.info.item_ids_fingerprint

    @property
    def user_ids(self) -> pa.ChunkedArray:
        """Ids of the users, in the order of their rows."""
        return self._sequences["user_id"]

    @property
    def sequence_offsets(self) -> NDArray[np.int64]:
        """Where the sequence of each user begins and ends in `sequence_items`, `(users + 1,)`."""
        return self._flat_sequences[0]

    @property
    def sequence_items(self) -> NDArray[np.int32]:
        """Item rows of all sequences, one after another."""
        return self._flat_sequences[1]

    @cached_property
    def item_counts(self) -> NDArray[np.int64]:
        """Interactions of each item, held-out ones among them, `(N,)`: what a platform knows when it recommends."""
        return np.bincount(self.sequence_items, minlength=self.num_items).astype(np.int64, copy=False)

    @cached_property
    def _sequences(self) -> pa.Table:
        fields = SEQUENCE_FIELDS if self.info.time_unit is None else (*SEQUENCE_FIELDS, TIMES_FIELD)
        path = self.folder / SEQUENCES_FILE
        sequences = _map_table(path, fields, self.num_users)
        check_sequences(path, [sequences[field.name] for field in fields[1:]], self.num_items)
        return sequences

    @cached_property
    def _flat_sequences(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        return _flat(self._sequences["items"])

    @cached_property
    def _times(self) -> np.ndarray | None:
        return _flat(self._sequences["times"])[1] if self.info.time_unit is not None else None

    def _check_num_interactions(self) -> None:
        found, said = len(self.sequence_items), self.num_interactions
        if found != said:
            raise DataError(f"{self.folder}: {found} interactions where {DOMAIN_FILE} says {said}")

    def texts(self, rows: np.ndarray) -> list[str | None]:
        """The text of each item in `rows`, None where it has none."""
        return self._texts.read(rows)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the further columns that items were imported with."""
        return tuple(self._attributes)

    def attribute(self, name: str) -> list[str | None]:
        """The attribute of each item, None where it has none. DataError with those that there are."""
        if name not in self._attributes:
            known = ", ".join(self._attributes) or "none"
            raise DataError(f"{self.folder}: items have no attribute {name!r}; they have: {known}")
        values: list[str | None] = self._attributes[name].cast(pa.large_string()).to_pylist()
        return values

    def jpegs(self, rows: np.ndarray) -> list[bytes | None]:
        """The stored image of each item in `rows`, None where it has none."""
        return self._images.read(rows) if self._images is not None else [None] * len(rows)

    def sequence(self, user: int) -> np.ndarray:
        """int32 item rows of a user, oldest first."""
        return self.sequence_items[self._span(user)]

    def times(self, user: int) -> np.ndarray | None:
        """int64 times beside `sequence(user)`, in `info.time_unit`; None when the source had none."""
        return self._times[self._span(user)] if self._times is not None else None

    def rows_of(self, item_ids: Sequence[str | None]) -> np.ndarray:
        """int64 row of each id, -1 where the domain has no such item."""
        index = pc.index_in(pa.array(item_ids, pa.large_string()), value_set=self.item_ids)
        rows: np.ndarray = pc.fill_null(index, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return rows

    def _span(self, user: int) -> slice:
        if not 0 <= user < self.num_users:
            raise IndexError(f"{self.folder}: no user {user}; there are {self.num_users}")
        return slice(int(self.sequence_offsets[user]), int(self.sequence_offsets[user + 1]))


class _Column:
    """Rows of a column, at random. `ChunkedArray.take` would first join all chunks, and so read the whole file."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = column.chunks
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])

    def read(self, rows: np.ndarray) -> list[Any]:
        rows = np.asarray(rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= self._starts[-1]):
            raise IndexError(f"item rows must lie in 0..{self._starts[-1] - 1}, found {rows.min()}..{rows.max()}")
        places = np.searchsorted(self._starts, rows, side="right") - 1
        inner = rows - self._starts[places]
        return [self._chunks[c][r].as_py() for c, r in zip(places.tolist(), inner.tolist(), strict=True)]


def read_info(folder: Path) -> DomainInfo:
    """What `domain.json` says. Raises DataError when `folder` holds no domain that this version can read."""
    path = folder / DOMAIN_FILE
    if folder.name.endswith(INCOMPLETE) or (
        not folder.exists() and folder.with_name(folder.name + INCOMPLETE).exists()
    ):
        raise DataError(f"{folder}: half-written, its import did not finish; import it again")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; `pmmrec data import` makes a domain")
    if not path.is_file():
        raise DataError(f"{folder}: not a domain, it holds no {DOMAIN_FILE}; `pmmrec data import` makes one")
    try:
        if path.stat().st_size > MAX_INFO_BYTES:
            raise DataError(f"{path}: larger than {MAX_INFO_BYTES:,} bytes; not a description of a domain")
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != FORMAT:
        raise DataError(f"{path}: format is {found!r}, not {FORMAT!r}; not a domain")
    if tree.get("format_version") != FORMAT_VERSION:
        version = tree.get("format_version")
        raise DataError(f"{path}: format version {version!r}, this program reads {FORMAT_VERSION}; import it again")
    try:
        return DomainInfo.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(key) for key in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}; import the domain again") from error


def _check_size(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise DataError(f"{path}: missing, though {DOMAIN_FILE} names it; copy it again or import again")
    if path.stat().st_size != record.num_bytes:
        size = path.stat().st_size
        raise DataError(f"{path}: {size:,} bytes where {DOMAIN_FILE} says {record.num_bytes:,}; copy or import again")
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise DataError(f"{path}: a link out of the domain; copy the file itself there")


def _map_table(path: Path, fields: tuple[pa.Field, ...], num_rows: int) -> pa.Table:
    """The Arrow file as a memory map; it must hold `fields`, the first of them ids, and `num_rows` rows."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # a wrong offset or broken UTF-8 would end the process without a word later on
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as an Arrow file: {error}") from error
    for field in fields:
        if field.name not in table.column_names or table.schema.field(field.name).type != field.type:
            raise DataError(f"{path}: has no column {field.name} of type {field.type}; import the domain again")
    if table.num_rows != num_rows:
        raise DataError(f"{path}: {table.num_rows} rows where {DOMAIN_FILE} says {num_rows}; import the domain again")
    if fields[0].name.endswith("_id") and table[fields[0].name].null_count:
        raise DataError(f"{path}: a {fields[0].name} is missing; import the domain again")
    return table


def check_sequences(path: Path, lists: Sequence[pa.ChunkedArray], num_items: int) -> None:
    """DataError unless every user has items, a time for each where there are times, and all are of the domain."""
    if any(chunk.null_count or chunk.values.null_count for column in lists for chunk in column.chunks):
        raise DataError(f"{path}: a sequence, or an entry of one, is missing; import the domain again")
    lengths = [pc.list_value_length(column) for column in lists]
    if not all(length.equals(lengths[0]) for length in lengths):
        raise DataError(f"{path}: a user has more items than times, or fewer; import the domain again")
    items = _flat(lists[0])[1]
    is_outside = (items < 0) | (items >= num_items)
    if is_outside.any():
        shown = items[is_outside][:MAX_SHOWN].tolist()
        raise DataError(f"{path}: {is_outside.sum():,} item rows outside 0..{num_items - 1}, such as {shown}")


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """int64 offsets (rows + 1) and flat values of a list column; the values are not copied out of a single chunk."""
    ends, values = [np.zeros(1, dtype=np.int64)], []
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        values.append(chunk.values.to_numpy()[offsets[0] : offsets[-1]])
        ends.append(offsets[1:] - offsets[0] + ends[-1][-1])
    flat = values[0] if len(values) == 1 else np.concatenate(values)
    return np.concatenate(ends), flat
