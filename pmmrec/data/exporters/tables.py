"""Export a domain as two tables, of items and of interactions, in csv or parquet files."""
# H interactions of one piece.

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pmmrec.data.domain import Domain
from pmmrec.data.exporters.content import Piece, item_batches, pieces
from pmmrec.data.splits import Split
from pmmrec.errors import DataError
from pmmrec.formulas import CsvWriter, formulas_line
from pmmrec.modality import Modality

ROWS_AT_ONCE = 1024  # items with pictures in one row group
# Milliseconds of the years 1 and 9999, which ISO dates can tell.
FIRST_DATE, LAST_DATE = -62_135_596_800_000, 253_402_300_799_999
DATE = pa.timestamp("ms", "UTC")


def write_csv_tables(domain: Domain, folder: Path, split: Split | None, *, escapes: bool = False) -> list[str]:
    """Write `items.csv` and `interactions.csv`. Returns notes.

    `escapes`: values that a spreadsheet would take for a formula get a `'` in front, so that they are text there.
    """
    has_dates, num_formulas = _are_dates(domain), write_csv_items(domain, folder / "items.csv", escapes=escapes)
    with _csv_file(folder / "interactions.csv", _names(domain, split), escapes=escapes) as writer:
        for piece in pieces(domain, split):
            columns: list[Sequence[object]] = [column.to_pylist() for column in piece.ids(domain)]
            if piece.time_H is not None:
                times = _times(piece.time_H, has_dates=has_dates)
                columns.append((times.cast(pa.string()) if has_dates else times).to_pylist())
            if split is not None:
                columns.append(piece.words())
            writer.write(columns)
    num_formulas += writer.num_formulas
    return [formulas_line(num_formulas, escapes=escapes)] if num_formulas else []


def write_csv_items(domain: Domain, path: Path, *, escapes: bool = False) -> int:
    """Write the items: item_id, text and further columns. Returns how many cells begin as a formula does."""
    with _csv_file(path, ["item_id", "text", *domain.attributes], escapes=escapes) as writer:
        for _, batch in item_batches(domain):
            writer.write([column.to_pylist() for column in batch.columns])
    return writer.num_formulas


def write_parquet_tables(domain: Domain, folder: Path, split: Split | None, *, with_images: bool) -> None:
    """Write `items.parquet`, with the bytes of pictures in the column `image`, and `interactions.parquet`.

    Raises DataError where a further column of items is called `image`, too.
    """
    if with_images and "image" in domain.attributes:
        raise DataError(f"{domain.folder}: items have a column 'image' of their own; export --no-images")
    images = [pa.field("image", pa.large_binary())] if with_images else []
    fields = [pa.field(name, pa.large_string()) for name in ("item_id", "text", *domain.attributes)]
    with pq.ParquetWriter(folder / "items.parquet", pa.schema([*fields, *images])) as items:
        for first, whole in item_batches(domain):
            for place in range(0, len(whole), ROWS_AT_ONCE if with_images else len(whole)):
                batch = whole.slice(place, ROWS_AT_ONCE) if with_images else whole
                columns = batch.columns
                if with_images:
                    rows = np.arange(first + place, first + place + len(batch))
                    columns = [*columns, pa.array(domain.jpegs(rows), pa.large_binary())]
                items.write_batch(pa.RecordBatch.from_arrays(columns, schema=items.schema))
    has_dates = _are_dates(domain)
    times = [pa.field("timestamp", DATE if has_dates else pa.int64())] if domain.info.time_unit is not None else []
    parts = [pa.field("split", pa.large_string())] if split is not None else []
    ids = [pa.field(name, pa.large_string()) for name in ("user_id", "item_id")]
    with pq.ParquetWriter(folder / "interactions.parquet", pa.schema([*ids, *times, *parts])) as log:
        for piece in pieces(domain, split):
            log.write_table(_table(piece, domain, log.schema, has_dates=has_dates))


def has_pictures(domain: Domain) -> bool:
    """Whether an item of the domain has a picture."""
    return bool(domain.has[Modality.IMAGE].any())


def _table(piece: Piece, domain: Domain, schema: pa.Schema, *, has_dates: bool) -> pa.Table:
    columns = list(piece.ids(domain))
    if piece.time_H is not None:
        columns.append(_times(piece.time_H, has_dates=has_dates))
    if piece.part_H is not None:
        columns.append(pa.array(piece.words(), pa.large_string()))
    return pa.table(columns, schema=schema)


def _names(domain: Domain, split: Split | None) -> list[str]:
    times = ["timestamp"] if domain.info.time_unit is not None else []
    return ["user_id", "item_id", *times, *(["split"] if split is not None else [])]


def _are_dates(domain: Domain) -> bool:
    """Whether times are milliseconds that all can be written as dates."""
    if domain.info.time_unit != "milliseconds":
        return False
    times = (stretch.time_H for stretch in domain.sequences.stretches(with_times=True))
    return all(found is None or bool(((found >= FIRST_DATE) & (found <= LAST_DATE)).all()) for found in times)


def _times(time_H: NDArray[np.int64], *, has_dates: bool) -> pa.Array:
    return pa.array(time_H, pa.int64()).cast(DATE if has_dates else pa.int64())


@contextlib.contextmanager
def _csv_file(path: Path, names: Sequence[str], *, escapes: bool) -> Iterator[CsvWriter]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = CsvWriter(file, escapes=escapes)
        writer.write([[name] for name in names])
        yield writer
