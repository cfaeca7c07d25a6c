"""Stream top-k lists to a Parquet, csv or JSON lines file; the suffix chooses the format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import torch

from pmmrec.atomic import whole_file
from pmmrec.errors import RecipeError
from pmmrec.evaluation.recommend import TopItems
from pmmrec.formulas import count_formulas, escaped

SCHEMA = pa.schema(
    [
        ("user_id", pa.large_string()),
        ("rank", pa.int32()),
        ("item_id", pa.large_string()),
        ("score", pa.float32()),
    ]
)
CSV, JSON_LINES, PARQUET = SUFFIXES = (".csv", ".jsonl", ".parquet")
ROWS_OF_GROUP = 100_000  # least number of rows written at once, except for the last; a row group of Parquet

Write = Callable[[pa.Table], object]


@dataclass(frozen=True)
class Written:
    """What a file of lists holds."""

    num_rows: int
    num_formulas: int = 0  # ids in a csv that begin as a formula does


def write_lists(
    path: Path, lists: Iterable[tuple[pa.Array, TopItems]], item_ids: pa.Array, *, escapes: bool = False
) -> Written:
    """Stream lists, each with the ids of its users, to a file with columns user_id, rank (from 1), item_id, score.

    The file is whole or absent. `escapes`: ids in a csv that a spreadsheet would take for a formula get a `'` in front.
    Raises RecipeError if the file exists, MachineError if the disk is full.
    """
    if path.exists():
        raise RecipeError(f"{path}: exists; name another file or remove this one")
    num_rows, num_formulas, waiting, num_waiting = 0, 0, [SCHEMA.empty_table()], 0
    is_csv = path.suffix.lower() == CSV
    # Opened here, because pyarrow expands `~` in a name differently.
    with (
        whole_file(path, replace=False) as draft,
        draft.open("wb") as file,
        _writing(file, path.suffix.lower(), escapes=escapes) as write,
    ):
        for user_ids, top in lists:
            waiting.append(_rows(top, user_ids, item_ids))
            num_waiting += waiting[-1].num_rows
            num_formulas += sum(map(count_formulas, _ids(waiting[-1]))) if is_csv else 0
            if num_waiting >= ROWS_OF_GROUP:
                write(pa.concat_tables(waiting))
                num_rows, waiting, num_waiting = num_rows + num_waiting, [], 0
        if waiting and (num_waiting or not num_rows):
            write(pa.concat_tables(waiting))
    return Written(num_rows + num_waiting, num_formulas)


def _ids(table: pa.Table) -> list[pa.ChunkedArray]:
    return [table["user_id"], table["item_id"]]


@contextmanager
def _writing(file: BinaryIO, suffix: str, *, escapes: bool) -> Iterator[Write]:
    """A function that writes tables of the schema to an open file."""
    if suffix == CSV:
        with pacsv.CSVWriter(file, SCHEMA) as csv:
            yield (lambda table: csv.write_table(_escaped(table))) if escapes else csv.write_table
    elif suffix == JSON_LINES:
        yield lambda table: file.writelines(_json_lines(table))
    else:
        with pq.ParquetWriter(file, SCHEMA) as parquet:
            yield lambda table: parquet.write_table(table, row_group_size=max(1, len(table)))


def _escaped(table: pa.Table) -> pa.Table:
    users, items = map(escaped, _ids(table))
    return pa.table([users, table["rank"], items, table["score"]], schema=SCHEMA)


def _json_lines(table: pa.Table) -> Iterator[bytes]:
    """One object per line; scores have the fewest digits that identify a float32, as in csv."""
    users, ranks, items = (table[name].to_pylist() for name in ("user_id", "rank", "item_id"))
    scores = pc.cast(table["score"], pa.string()).to_pylist()
    for user, rank, item, score in zip(users, ranks, items, scores, strict=True):
        told = f'"user_id": {_quoted(user)}, "rank": {rank}, "item_id": {_quoted(item)}, "score": {score}'
        yield f"{{{told}}}\n".encode()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _rows(top: TopItems, user_ids: pa.Array, item_ids: pa.Array) -> pa.Table:
    is_filled_BK = top.is_filled_BK
    row, place = torch.nonzero(is_filled_BK, as_tuple=True)
    columns = [
        user_ids.take(pa.array(row.numpy())),
        pa.array((place + 1).numpy(), pa.int32()),
        item_ids.take(pa.array(top.item_index_BK[is_filled_BK].numpy())),
        pa.array(top.score_BK[is_filled_BK].numpy(), pa.float32()),
    ]
    return pa.table(columns, schema=SCHEMA)
