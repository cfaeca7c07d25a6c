"""Store a feature of items in a domain: from an array, from a table of vectors, or as a model computes it."""
# N items of the domain; an entry is a vector (F,) or T vectors (T, F).

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pmmrec.atomic import whole_file
from pmmrec.data.domain import Domain
from pmmrec.data.features import VECTOR, vector_type
from pmmrec.data.importers.named import Named
from pmmrec.data.info import DOMAIN_FILE, FEATURE_NAME, DomainInfo, FeatureInfo, FileRecord, feature_file, read_info
from pmmrec.data.write import record_of
from pmmrec.errors import DataError, RecipeError
from pmmrec.modality import Modality
from pmmrec.settings import validate

MAX_BATCH_BYTES = 64_000_000
MAX_SHOWN = 5


@dataclass(frozen=True)
class StoredFeature:
    """What was stored, the items without a vector, and the rows of the file that are of no item of the domain."""

    path: Path
    info: FeatureInfo
    num_items: int
    without: Named  # items of the domain
    unused: Named  # rows of the file, by item id

    def lines(self) -> list[str]:
        """The same as text."""
        shape = " x ".join(map(str, self.info.shape))
        lines = [f"{self.path}: {shape} {self.info.dtype} for {self.info.num_with:,} of {self.num_items:,} items"]
        if self.without.count:
            lines.append(f"items without a vector: {self.without}")
        if self.unused.count:
            lines.append(f"left out, rows of no item of the domain: {self.unused}")
        return lines


def store_file(folder: Path, source: Path, name: str) -> StoredFeature:
    """Store a feature from a file: .npy with a row for each item in order, or .parquet with item_id and vector.

    A .npy file holds `(items, F)` or `(items, T, F)` floats and no pickle; a row of NaN alone says that the item has
    none. In a .parquet file such an item has no row, or null for a vector. float16 is stored as it is, all else as
    float32.

    Raises DataError for a file that cannot be read or does not fit the domain, and for numbers that are not finite;
    RecipeError for a name that is taken or cannot be one.
    """
    domain = Domain.open(folder)
    check_name(domain, name)
    unused, is_table = Named(), source.suffix.lower() == ".parquet"
    vectors_NF = _from_parquet(source, domain, unused) if is_table else _from_npy(source, domain)
    return store_vectors(domain, vectors_NF, name, str(source), unused)


def store_vectors(
    domain: Domain,
    vectors_NF: NDArray[Any],
    name: str,
    source: str,
    unused: Named | None = None,
    num_values: int | None = None,
) -> StoredFeature:
    """Store vectors of all items of a domain, in item order; a row of NaN alone is of an item without one.

    `source` says where they come from, `unused` which of its rows are of no item. `num_values`: the vectors are codes,
    whole numbers below it. Raises as `store_file`.
    """
    check_name(domain, name)
    path = domain.folder / feature_file(name)
    dtype: Literal["float16", "float32"] = "float16" if vectors_NF.dtype == np.float16 else "float32"
    with whole_file(path) as draft:
        shape = {"shape": vectors_NF.shape[1:], "dtype": dtype, "source": Path(source).name, "num_values": num_values}
        info = validate(FeatureInfo, {**shape, "num_with": 0, "sha256": "0" * 64, "num_bytes": 0}, str(source))
        without = Named()
        _write(draft, vectors_NF, info, domain, source, without)
        num_with = domain.num_items - without.count
        if not num_with:
            raise DataError(f"{source}: has no vector for any item of {domain.folder}; give it some")
        record: FileRecord = record_of(draft)
        info = info.model_copy(update={**dict(record), "num_with": num_with})
    with _changed_info(domain.folder) as (draft, said):
        _refuse_taken(domain.folder, said, name)
        whole = said.model_copy(update={"features": {**said.features, name: info}})
        text = json.dumps(whole.model_dump(mode="json"), indent=2, ensure_ascii=False)
        draft.write_text(text + "\n", encoding="utf-8")
    return StoredFeature(path, info, domain.num_items, without, unused or Named())


def check_name(domain: Domain, name: str, option: str = "--name") -> None:
    """RecipeError where a feature of the domain cannot be called so; `option` gave the name."""
    if not FEATURE_NAME.fullmatch(name):
        raise RecipeError(f"{option} {name}: use letters, digits, _, - and ., beginning with a letter or digit")
    if name in {modality.value for modality in Modality}:
        raise RecipeError(f"{option} {name}: is what the {name} of an item itself is called; choose another name")
    _refuse_taken(domain.folder, domain.info, name, option)


def _refuse_taken(folder: Path, info: DomainInfo, name: str, option: str = "--name") -> None:
    if name in info.features:
        raise RecipeError(f"{option} {name}: {folder / feature_file(name)} exists; choose another name")


@contextmanager
def _changed_info(folder: Path) -> Iterator[tuple[Path, DomainInfo]]:
    """A draft that takes the place of `domain.json`, and what that says while nobody else changes it."""
    with whole_file(folder / DOMAIN_FILE) as draft:
        yield draft, read_info(folder)


def _from_npy(source: Path, domain: Domain) -> NDArray[Any]:
    try:
        vectors_NF: NDArray[Any] = np.load(source, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or 'it ends too early'}") from error
    except (ValueError, EOFError) as error:  # whose text advises to unpickle, which runs whatever the file holds
        raise DataError(
            f"{source}: is not a .npy file of numbers, or is damaged; save an array of floats with numpy.save"
        ) from error
    if not isinstance(vectors_NF, np.ndarray):
        raise DataError(f"{source}: holds several arrays; save one with numpy.save")
    if vectors_NF.ndim not in (2, 3) or vectors_NF.dtype.kind != "f":
        found = f"{vectors_NF.dtype} of shape {vectors_NF.shape}"
        raise DataError(f"{source}: holds {found}; save floats of shape (items, F) or (items, T, F)")
    if 0 in vectors_NF.shape[1:]:
        raise DataError(f"{source}: holds vectors of shape {vectors_NF.shape[1:]}, which have no entries; give some")
    if len(vectors_NF) != domain.num_items:
        raise DataError(
            f"{source}: holds {len(vectors_NF):,} rows, but {domain.folder} has {domain.num_items:,} items; give a row "
            "to each item, in the order of items.arrow, or a .parquet file with item_id and vector"
        )
    return vectors_NF


def _from_parquet(source: Path, domain: Domain, unused: Named) -> NDArray[Any]:
    """The vectors in item order; rows that are of no item of the domain are added to `unused`."""
    vectors_NF: NDArray[Any] | None = None
    is_given_N = np.zeros(domain.num_items, dtype=bool)
    for batch in _batches(source):
        ids = batch.column("item_id").cast(pa.large_string())
        rows = domain.rows_of(ids.to_pylist())
        unused.add(ids, rows < 0)
        known = np.flatnonzero(rows >= 0)
        if is_given_N[rows[known]].any() or len(np.unique(rows[known])) < len(known):
            raise DataError(f"{source}: an item has several rows; give one vector to each item")
        is_given_N[rows[known]] = True
        vector = batch.column("vector")
        has = vector.is_valid().to_numpy(zero_copy_only=False)
        known = known[has[known]]
        if not len(known):
            continue
        picked = vector.take(pa.array(known))
        widths = np.unique(picked.value_lengths().to_numpy(zero_copy_only=False)) if len(picked) else np.array([])
        width = int(widths[0]) if vectors_NF is None else vectors_NF.shape[1]
        if not width:
            raise DataError(f"{source}: a vector has no entries; give each item some")
        if widths.tolist() != [width]:
            raise DataError(f"{source}: vectors have {width:,} and other numbers of entries; give all the same number")
        values = picked.flatten()
        if vectors_NF is None:
            dtype = np.float16 if pa.types.is_float16(values.type) else np.float32
            vectors_NF = np.full((domain.num_items, width), np.nan, dtype=dtype)
        vectors_NF[rows[known]] = values.to_numpy(zero_copy_only=False).reshape(-1, width)
    if vectors_NF is None:
        raise DataError(f"{source}: has no vector for any item of {domain.folder}; give it some")
    return vectors_NF


def _batches(source: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(source) as file:
            names = file.schema_arrow.names
            lacking = {"item_id", "vector"} - set(names)
            if not lacking and max(names.count("item_id"), names.count("vector")) > 1:
                raise DataError(f"{source}: item_id or vector stands twice; keep one column of each name")
            if lacking:
                raise DataError(f"{source}: has no column {', '.join(sorted(lacking))}; it needs item_id and vector")
            of_ids = file.schema_arrow.field("item_id").type
            if not (pa.types.is_string(of_ids) or pa.types.is_large_string(of_ids) or pa.types.is_integer(of_ids)):
                raise DataError(f"{source}: item_id is {of_ids}; write the ids as text")
            kind = file.schema_arrow.field("vector").type
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
            if not (is_list and pa.types.is_floating(kind.value_type)):
                raise DataError(f"{source}: vector is {kind}; write a list of floats for each item")
            yield from file.iter_batches(columns=["item_id", "vector"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source}: cannot be read as a .parquet file: {error}") from error


def _write(
    path: Path, vectors_NF: NDArray[Any], info: FeatureInfo, domain: Domain, source: str, without: Named
) -> None:
    """Write an Arrow file of vectors. Items that have none are added to `without`.

    DataError for numbers that are not finite.
    """
    kind = vector_type(info)
    at_once = max(1, MAX_BATCH_BYTES // (kind.list_size * np.dtype(info.dtype).itemsize))
    with pa.ipc.new_file(path, schema := pa.schema([(VECTOR, kind)])) as writer:
        for start in range(0, len(vectors_NF), at_once):
            with np.errstate(over="ignore"):
                rows = np.array(vectors_NF[start : start + at_once], dtype=info.dtype).reshape(-1, kind.list_size)
            has = ~np.isnan(rows).all(axis=1)
            wrong = np.flatnonzero(has & ~np.isfinite(rows).all(axis=1))
            if len(wrong):
                ids = [repr(domain.item_ids[start + row].as_py()) for row in wrong[:MAX_SHOWN].tolist()]
                raise DataError(
                    f"{source}: the {info.dtype} vectors of {len(wrong):,} items, such as {', '.join(ids)}, hold NaN "
                    "or infinity; a vector is finite, or NaN throughout for an item without one"
                )
            rows[~has] = 0
            array = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), type=kind, mask=pa.array(~has))
            writer.write_batch(pa.record_batch([array], schema=schema))
            without.add(domain.item_ids.slice(start, len(has)), ~has)
