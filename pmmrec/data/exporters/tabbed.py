"""Export a domain in the layouts of RecBole and of MMRec, whose texts are separated by tabs and know no quotes."""
# N items of the domain, F numbers of a vector.

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from pmmrec.data.domain import Domain
from pmmrec.data.exporters.content import WORDS, item_batches, pieces
from pmmrec.data.exporters.tables import write_csv_items
from pmmrec.data.splits import Split
from pmmrec.errors import DataError
from pmmrec.formulas import CsvWriter, formulas_line

BREAKS = str.maketrans("\t\r\n", "   ")
TYPED = re.compile(r"[^:]+:(token|token_seq|float|float_seq)")  # a column that was imported from RecBole
RECBOLE_PARTS = dict(zip(WORDS, ("train", "valid", "test"), strict=True))
VECTORS_AT_ONCE, IDS_AT_ONCE = 4096, 100_000


def write_recbole(domain: Domain, folder: Path, name: str, split: Split | None) -> list[str]:
    """Write `NAME.item` and `NAME.inter`; with a split `NAME.train.inter`, `NAME.valid.inter` and `NAME.test.inter`.

    Returns notes. Columns that were imported from RecBole keep their types. Raises DataError for ids with tabs or line
    ends, and for columns whose names hold another colon or are taken.
    """
    _refuse_breaks(domain)
    header = ["item_id:token", "text:token_seq"]
    for column in domain.attributes:
        typed = column if TYPED.fullmatch(column) else f"{column}:token"
        is_taken = typed.partition(":")[0] in [one.partition(":")[0] for one in header]
        if typed.count(":") > 1 or is_taken or column != column.translate(BREAKS):
            raise DataError(f"{domain.folder}: column {column!r} of items cannot be named in a header of RecBole")
        header.append(typed)
    with _opened(folder / f"{name}.item", header) as items:
        for _, batch in item_batches(domain):
            items.writelines(_lines(column.to_pylist() for column in batch.columns))
    times = ["timestamp:float"] if domain.info.time_unit is not None else []
    header = ["user_id:token", "item_id:token", *times]
    endings = ["inter"] if split is None else [f"{part}.inter" for part in RECBOLE_PARTS.values()]
    for place, ending in enumerate(endings):
        with _opened(folder / f"{name}.{ending}", header) as log:
            for piece in pieces(domain, split):
                keep = np.ones(len(piece.user_H), dtype=bool) if piece.part_H is None else piece.part_H == place
                columns = [column.filter(pa.array(keep)).to_pylist() for column in piece.ids(domain)]
                columns += [] if piece.time_H is None else [piece.time_H[keep].tolist()]
                log.writelines(_lines(columns))
    return ["line ends and tabs in further columns of items are written as blanks"] if domain.attributes else []


def write_mmrec(domain: Domain, folder: Path, name: str, split: Split, *, escapes: bool = False) -> list[str]:
    """Write `NAME.inter` with numbers of users and items and the part of each row, and what the numbers stand for.

    `u_id_mapping.csv` and `i_id_mapping.csv` give the ids, `items.csv` the texts, `FEATURE.npy` the vectors of
    each stored feature in item order. Returns notes. `escapes`: ids and texts in these csv files that a spreadsheet
    would take for a formula get a `'` in front. Raises DataError for ids with tabs or line ends.
    """
    _refuse_breaks(domain)
    times = ["timestamp"] if domain.info.time_unit is not None else []
    with _opened(folder / f"{name}.inter", ["userID", "itemID", "rating", *times, "x_label"]) as log:
        for piece in pieces(domain, split):
            columns = [piece.user_H.tolist(), piece.item_H.tolist(), ["1.0"] * len(piece.user_H)]
            columns += [] if piece.time_H is None else [piece.time_H.tolist()]
            columns += [] if piece.part_H is None else [piece.part_H.tolist()]
            log.writelines(_lines(columns))
    num_formulas = write_csv_items(domain, folder / "items.csv", escapes=escapes)
    for file, header, ids in (
        ("u_id_mapping.csv", ["user_id", "userID"], domain.user_ids),
        ("i_id_mapping.csv", ["asin", "itemID"], domain.item_ids),
    ):
        with _opened(folder / file, header) as mapping:
            writer = CsvWriter(mapping, escapes=escapes, separator="\t")
            for first in range(0, len(ids), IDS_AT_ONCE):
                piece = ids.slice(first, IDS_AT_ONCE).to_pylist()
                writer.write([piece, range(first, first + len(piece))])
        num_formulas += writer.num_formulas
    notes = [formulas_line(num_formulas, escapes=escapes)] if num_formulas else []
    return notes + [note for feature in domain.info.features for note in _write_vectors(domain, folder, feature)]


def _write_vectors(domain: Domain, folder: Path, feature: str) -> Iterator[str]:
    """Write a feature as `FEATURE.npy`; an item without a vector has zeros."""
    table = domain.feature(feature)
    if len(table.info.shape) > 1:
        yield f"feature {feature} not written: it has {table.info.shape[0]} vectors an item, MMRec reads one"
        return
    if table.info.num_with < domain.num_items:
        yield f"feature {feature}: {domain.num_items - table.info.num_with:,} items without a vector have zeros"
    shape = (domain.num_items, *table.info.shape)
    with (folder / f"{feature}.npy").open("wb") as file:
        header: Mapping[str, object] = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, dict(header))
        for first in range(0, domain.num_items, VECTORS_AT_ONCE):
            rows = np.arange(first, min(first + VECTORS_AT_ONCE, domain.num_items))
            file.write(table.read(rows).astype("<f4").tobytes())


def _refuse_breaks(domain: Domain) -> None:
    for kind, ids in (("item", domain.item_ids), ("user", domain.user_ids)):
        for one in ids:
            if one.as_py() != one.as_py().translate(BREAKS):
                raise DataError(f"{domain.folder}: {kind} id {one.as_py()!r} holds a tab or line end; export as csv")


def _opened(path: Path, header: Sequence[str]) -> IO[str]:
    file = path.open("w", encoding="utf-8", newline="")
    file.write("\t".join(header) + "\n")
    return file


def _lines(columns: Iterable[Sequence[object]]) -> Iterator[str]:
    """Rows as lines; a missing value is empty, a tab or line end within one a blank."""
    for row in zip(*columns, strict=True):
        yield "\t".join("" if cell is None else str(cell).translate(BREAKS) for cell in row) + "\n"
