"""Read the ids of users from a file."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pmmrec.data.importers.prepared import PARQUET
from pmmrec.data.importers.source import Source, stream
from pmmrec.data.importers.text_format import SEPARATORS
from pmmrec.errors import DataError

TEXT = ".txt"


def read_user_ids(path: Path) -> pa.Array:
    """The user ids of a .csv, .tsv or .parquet file with a column `user_id`, or of a .txt file with one id a line.

    No id comes twice; the order is that of the file. Ids are text, unchanged; empty lines are skipped. Raises DataError
    for a file that cannot be read or names nobody.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give a file")
    if path.is_file() and suffix not in (TEXT, *SEPARATORS, PARQUET):
        raise DataError(f"{path}: unknown type {suffix!r}; give .txt with an id in each line, .csv, .tsv or .parquet")
    if suffix == TEXT:
        ids = pa.array(_lines(path), pa.large_string())
    else:
        with duckdb.connect() as connection:
            source = Source(path, connection)
            source.load("listed", {"user_id": source.as_id("user_id")})
            listed = pa.Table.from_batches(stream(connection, "SELECT user_id FROM listed ORDER BY row"))
        ids = listed["user_id"].combine_chunks()
        ids = ids.cast(pa.large_string())
    ids = pc.unique(ids.filter(pc.fill_null(pc.greater(pc.utf8_length(ids), 0), False)))
    if not len(ids):
        raise DataError(f"{path}: names no user; give one id or more")
    return ids


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split(
            "\n"
        )  # splitlines() would split ids at characters such as U+2028
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}; save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
