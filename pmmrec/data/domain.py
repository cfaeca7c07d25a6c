"""Open a domain on disk: its items with texts and images, and the sequences of its users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmmrec.context import Catalogue, ItemFeature
from pmmrec.data.arrow import ArrowTable, Cells
from pmmrec.data.columns import ItemColumn
from pmmrec.data.features import FeatureTable
from pmmrec.data.info import (
    DOMAIN_FILE,
    IMAGES_FILE,
    IMAGES_SCHEMA,
    ITEM_FIELDS,
    ITEMS_FILE,
    SEQUENCES_FILE,
    DomainInfo,
    FileRecord,
    feature_file,
    read_info,
)
from pmmrec.data.sequences import Sequences
from pmmrec.errors import DataError, MachineError
from pmmrec.homes import expanded
from pmmrec.modality import Modality


class Domain:
    """A domain on disk, read lazily and by row."""

    def __init__(
        self, folder: Path, info: DomainInfo, items: ArrowTable, images: ArrowTable | None, sequences: Sequences
    ) -> None:
        self.folder, self.info, self.sequences = folder, info, sequences
        self._features: dict[str, FeatureTable] = {}
        table = items.mapped()
        self.item_ids = table["item_id"]
        self._attributes = {name: table[name] for name in table.column_names if name not in ("item_id", "text")}
        self._columns = {name: ItemColumn(cells) for name, cells in self._attributes.items()}
        self._texts = items.cells("text", may_lack=True)
        self._images = None if images is None else images.cells("jpeg", may_lack=True)
        self.has: Mapping[Modality, np.ndarray] = {
            Modality.TEXT: items.has("text"),
            Modality.IMAGE: np.zeros(info.num_items, dtype=bool) if images is None else images.has("jpeg"),
        }

    @classmethod
    def open(cls, folder: Path, *, streamed: bool = False) -> Domain:
        """The domain in `folder`. Raises DataError when there is none, or when it is incomplete.

        `streamed`: do not check sequences now, which takes a pass over all users; for callers that read them in order,
        since that checks them as well.
        """
        folder = expanded(Path(folder))
        info = read_info(folder)
        for name, record in info.files.items():
            check_size(folder / name, record)
        for name, feature in info.features.items():
            check_size(folder / feature_file(name), feature)
        items, images = items_table(folder, info), images_table(folder, info)
        domain = cls(folder, info, items, images, Sequences(folder, info))
        for name in info.features:
            domain.feature(name)
        if not streamed:
            found, said = domain.sequences.check(), info.num_interactions
            if found != said:
                raise DataError(f"{folder}: {found} interactions where {DOMAIN_FILE} says {said}")
        return domain

    @classmethod
    def from_tables(cls, items: Any, interactions: Any, *, out: Path, **settings: Any) -> Domain:
        """Import two tables as a new domain in the folder `out`, and open it.

        Args:
            items: `item_id`, `text` and any further columns; `image` may hold the bytes of pictures. A pandas or polars
                DataFrame, a pyarrow Table, a DuckDB relation, a dict of columns, or a path.
            interactions: `user_id`, `item_id` and, if known, `timestamp`; likewise.
            out: A folder that does not exist. `name` is that of the folder unless it is given.
            settings: Any further settings of `pmmrec.data.importers.table.TableImport`: `images=Path("pictures")`,
                `k_core=None`, `columns={"item_id": "sku", "text": "{title}. {brand}"}`, `min_rating=4`.

        Raises DataError for tables that break a rule, RecipeError for settings that cannot be meant.

        Example:
            domain = Domain.from_tables(goods, sales, out=Path("domains/shop"), columns={"item_id": "sku"})
        """
        from pmmrec.data.importers.memory import import_tables

        return import_tables(items, interactions, out, settings)

    def to_arrow(self) -> tuple[pa.Table, pa.Table]:
        """Items (`item_id`, `text`, further columns) and interactions (`user_id`, `item_id`, `timestamp` if known).

        Interactions are in the order of users and, within each, of time; all of them are held in memory.
        """
        rows = np.arange(self.num_items)
        columns = {"item_id": self.item_ids, "text": pa.array(self.texts(rows), pa.large_string())}
        items = pa.table({**columns, **self._attributes})
        whole = self.sequences.table.mapped()
        owner = pc.list_parent_indices(whole["items"].combine_chunks())
        log = {
            "user_id": whole["user_id"].take(owner),
            "item_id": self.item_ids.take(pc.list_flatten(whole["items"])),
        }
        if self.info.time_unit is not None:
            log["timestamp"] = pc.list_flatten(whole["times"])
        return items, pa.table(log)

    def to_pandas(self) -> tuple[Any, Any]:
        """`to_arrow` as two DataFrames. Raises MachineError where pandas is not installed."""
        if find_spec("pandas") is None:
            raise MachineError("to_pandas: pandas is not installed; pip install pandas, or use to_arrow")
        items, interactions = self.to_arrow()
        return items.to_pandas(), interactions.to_pandas()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder,)  # a worker process opens the files itself

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
        """A hash of items, images and sequences."""
        return self.info.fingerprint

    @property
    def catalogue(self) -> Catalogue:
        """What parts that have a row for each item or each user must know of this domain."""
        users = self.info.sha256(SEQUENCES_FILE)
        ids = self.item_ids_fingerprint
        return Catalogue(self.name, self.num_items, ids, self.num_users, users, self._value_counts)

    @property
    def item_ids_fingerprint(self) -> str:
        """A hash of the item ids in their order."""
        return self.info.item_ids_fingerprint

    @cached_property
    def user_ids(self) -> pa.ChunkedArray:
        """Ids of the users, in the order of their rows."""
        return self.sequences.table.mapped(["user_id"])["user_id"]

    @property
    def sequence_offsets(self) -> NDArray[np.int64]:
        """Offsets of the users' sequences in `sequence_items`, `(users + 1,)`."""
        return self._flat_sequences[0]

    @property
    def sequence_items(self) -> NDArray[np.int32]:
        """Item rows of all sequences, one after another, all in memory; `sequences` reads single ones."""
        return self._flat_sequences[1]

    @cached_property
    def item_counts(self) -> NDArray[np.int64]:
        """Interactions of each item, including held-out ones, `(N,)`: what a platform knows when it recommends."""
        counts = np.zeros(self.num_items, dtype=np.int64)
        for stretch in self.sequences.stretches():
            counts += np.bincount(stretch.item_H, minlength=self.num_items)
        return counts

    @cached_property
    def _flat_sequences(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        stretches = list(self.sequences.stretches())
        lengths = [np.diff(stretch.offset_B) for stretch in stretches]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return offsets, np.concatenate([stretch.item_H for stretch in stretches])

    def sequence(self, user: int) -> NDArray[np.int32]:
        """Item rows of a user, oldest first."""
        return self.sequences.items(user)

    def times(self, user: int) -> NDArray[np.int64] | None:
        """Times of `sequence(user)`, in `info.time_unit`; None when the source had no times."""
        return self.sequences.times(user)

    def texts(self, rows: np.ndarray, field: str = Modality.TEXT.value) -> list[str | None]:
        """A text of each item in `rows`, None where it has none: `text`, or a further column, cleaned as `text` is."""
        if field == Modality.TEXT:
            found = self._read(self._texts, Modality.TEXT, rows)
            return [None if text is None else text.decode() for text in found]
        column = self._columns.get(field)
        return [None] * len(rows) if column is None else column.texts(np.asarray(rows))

    def has_text(self, field: str = Modality.TEXT.value) -> NDArray[np.bool_]:
        """Which items have `text`, or a further column, `(N,)`; none where the domain has no such column."""
        if field == Modality.TEXT:
            return self.has[Modality.TEXT]
        column = self._columns.get(field)
        return np.zeros(self.num_items, dtype=bool) if column is None else column.has_N

    def value_keys(self, name: str) -> NDArray[np.int64]:
        """A number for the value of each item in a further column, `(N,)`; 0 where there is none."""
        column = self._columns.get(name)
        return np.zeros(self.num_items, dtype=np.int64) if column is None else column.key_N

    def _value_counts(self, name: str) -> Mapping[int, int]:
        column = self._columns.get(name)
        return {} if column is None else column.counts

    def _read(self, cells: Cells, modality: Modality, rows: np.ndarray) -> list[bytes | None]:
        rows = np.asarray(rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_items):
            raise IndexError(f"item rows must lie in 0..{self.num_items - 1}, found {rows.min()}..{rows.max()}")
        has = self.has[modality][rows].tolist()
        return [cells.read(row) if is_there else None for row, is_there in zip(rows.tolist(), has, strict=True)]

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the further columns that items were imported with."""
        return tuple(self._attributes)

    def attribute(self, name: str) -> list[str | None]:
        """The attribute of each item, None where it has none. Raises DataError for an unknown name."""
        if name not in self._attributes:
            known = ", ".join(self._attributes) or "none"
            raise DataError(f"{self.folder}: items have no attribute {name!r}; they have: {known}")
        values: list[str | None] = self._attributes[name].cast(pa.large_string()).to_pylist()
        return values

    def item_feature(self, name: str) -> ItemFeature:
        """A stored feature by which a graph compares items; its vectors are read when they are asked for.

        Raises DataError for an unknown name, and for a feature of several vectors. Reading raises it for vectors of
        zeros, which have no direction.
        """
        table = self.feature(name)
        if len(table.info.shape) > 1 or table.info.num_values is not None:
            raise DataError(
                f"{self.folder}: feature {name!r} holds {' x '.join(map(str, table.info.shape))} numbers or codes of "
                "each item, and a graph compares items by one vector each; store their mean under another name"
            )

        def read() -> tuple[NDArray[Any], NDArray[np.bool_]]:
            vectors_NF = table.read(np.arange(self.num_items)).astype(np.float32)
            zero = np.flatnonzero(table.has_N & ~vectors_NF.any(axis=1))
            if len(zero):
                raise DataError(
                    f"{self.folder}: the feature {name!r} of {len(zero):,} items is all zeros (the first is "
                    f"{self.item_ids[int(zero[0])].as_py()}) and cannot be compared; store NaN for items without one"
                )
            return vectors_NF, table.has_N

        return ItemFeature(table.info.sha256, read)

    def feature(self, name: str) -> FeatureTable:
        """The stored feature of this name. Raises DataError for an unknown name, and for a file that cannot be read."""
        if name not in self.info.features:
            known = ", ".join(self.info.features) or "none"
            raise DataError(
                f"{self.folder}: items have no feature {name!r}; they have: {known}; "
                f"`pmmrec data features {self.folder} --from FILE --name {name}` stores one"
            )
        if name not in self._features:
            path = self.folder / feature_file(name)
            self._features[name] = FeatureTable(path, self.info.features[name], self.num_items)
        return self._features[name]

    def jpegs(self, rows: np.ndarray) -> list[bytes | None]:
        """The stored image of each item in `rows`, None where it has none."""
        return [None] * len(rows) if self._images is None else self._read(self._images, Modality.IMAGE, rows)

    def rows_of(self, item_ids: Sequence[str | None]) -> np.ndarray:
        """int64 row of each id, -1 where the domain has no such item."""
        index = pc.index_in(pa.array(item_ids, pa.large_string()), value_set=self.item_ids)
        rows: np.ndarray = pc.fill_null(index, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return rows


def items_table(folder: Path, info: DomainInfo) -> ArrowTable:
    """The items of a domain: `item_id`, `text` and further columns."""
    return ArrowTable([folder / part for part in info.parts(ITEMS_FILE)], ITEM_FIELDS, info.num_items)


def images_table(folder: Path, info: DomainInfo) -> ArrowTable | None:
    """The images of a domain, a row for each item; None where it has none."""
    parts = [folder / part for part in info.parts(IMAGES_FILE)]
    return ArrowTable(parts, tuple(IMAGES_SCHEMA), info.num_items) if parts else None


def _reopened(folder: Path) -> Domain:
    return Domain.open(folder, streamed=True)


def check_size(path: Path, record: FileRecord) -> None:
    """DataError for a file that is missing, has another size than `domain.json` says, or is a link to elsewhere."""
    if not path.is_file():
        raise DataError(f"{path}: missing, though {DOMAIN_FILE} names it; copy it again or import again")
    if path.stat().st_size != record.num_bytes:
        size = path.stat().st_size
        raise DataError(f"{path}: {size:,} bytes where {DOMAIN_FILE} says {record.num_bytes:,}; copy or import again")
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise DataError(f"{path}: a link to a file outside the domain; copy the file itself there")
