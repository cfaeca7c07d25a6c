"""Write the rows of a query, or of a table, of a DuckDB or SQLite database as parquet."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pmmrec.errors import DataError, RecipeError

SCHEMES = ("duckdb", "sqlite")
ROWS_AT_ONCE = 20_000
SELECTS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
NO_ROWS = "the statement gives no rows; write a SELECT"
USAGE = "write duckdb:///shop.db?query=SELECT ... or duckdb:///shop.db?table=items; sqlite:/// likewise"


def is_database(given: Path | str) -> bool:
    """Whether a source is the address of a database."""
    return isinstance(given, str) and "://" in given


def database_file(address: str) -> Path:
    """The file of an address, for messages."""
    return Path(address.partition("://")[2].partition("?")[0][1:])


def write_query(address: str, target: Path) -> None:
    """Write the rows of `duckdb:///PATH?query=SQL` or `?table=NAME`; four slashes begin an absolute path.

    The query reads this database alone, and writes nothing. Raises RecipeError for another address, DataError for what
    the database says.
    """
    path, query = _parsed(address)
    if not path.is_file():
        raise DataError(f"{path}: no such file; {USAGE}")
    write = _write_duckdb if address.startswith("duckdb") else _write_sqlite
    try:
        write(path, query, target)
    except (duckdb.Error, sqlite3.Error, pa.ArrowException, DataError) as error:
        reason = (str(error).splitlines() or ["no reason is given"])[0]
        outside = re.search("disabled by configuration|not authorized|authorization denied", reason)
        advice = "; a query may only read its own database" if outside else ""
        raise DataError(f"{path}: {reason}{advice}; the query was: {query[:200]}") from error


def _parsed(address: str) -> tuple[Path, str]:
    """The file and the query. The query is taken as it is written, without any decoding."""
    scheme, _, rest = address.partition("://")
    place, _, asked = rest.partition("?")
    key, _, value = asked.partition("=")
    if scheme not in SCHEMES or not place[1:] or place[0] != "/" or key not in ("query", "table") or not value:
        raise RecipeError(f"{address.split('?', maxsplit=1)[0]}: not the address of a database that is read; {USAGE}")
    if key == "table":
        value = 'SELECT * FROM "{}"'.format(value.replace('"', '""'))  # noqa: S608  the user's own database, read only
    return Path(place[1:]).expanduser(), value


def _write_duckdb(path: Path, query: str, target: Path) -> None:
    """A query reads no other file, and writes none: read_only protects the database alone."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "enable_external_access": False,
    }
    with duckdb.connect(str(path), read_only=True, config=config) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET lock_configuration = true")
        rows = connection.sql(query)
        if rows is None:
            raise DataError(NO_ROWS)
        reader = pa.RecordBatchReader.from_stream(rows)
        try:
            with pq.ParquetWriter(target, reader.schema) as writer:
                for batch in reader:
                    writer.write_batch(batch)
        finally:
            reader.close()  # DuckDB waits for an open one when the database is opened again


def _write_sqlite(path: Path, query: str, target: Path) -> None:
    """Every value as text: a column of SQLite may mix types."""
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
    try:
        connection.set_authorizer(_allowed)
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description or ()]
        if not names:
            raise DataError(NO_ROWS)
        schema = pa.schema([(name, pa.string()) for name in names])
        with pq.ParquetWriter(target, schema) as writer:
            for rows in _batches(cursor):
                columns = [[_text(row[place]) for row in rows] for place in range(len(names))]
                writer.write_table(pa.table(columns, schema=schema))
    finally:
        connection.close()


def _allowed(action: int, *_about: str | None) -> int:
    """A query may select; ATTACH and VACUUM INTO would write other files."""
    return sqlite3.SQLITE_OK if action in SELECTS else sqlite3.SQLITE_DENY


def _batches(cursor: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
    while rows := cursor.fetchmany(ROWS_AT_ONCE):
        yield rows


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        raise DataError("a column of bytes is not read from SQLite; leave it out of the query")
    return None if value is None else str(value)
