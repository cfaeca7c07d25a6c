"""Write the rows of a query, or of a table, of a DuckDB, SQLite or Postgres database as parquet."""

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

from pmmrec.errors import DataError, MachineError, RecipeError

SCHEMES = ("duckdb", "sqlite", "postgres", "postgresql")
LOAD_POSTGRES, ATTACH_POSTGRES = "LOAD postgres", "ATTACH '{}' AS source (TYPE postgres, READ_ONLY)"
INSTALL_POSTGRES = """python -c "import duckdb; duckdb.connect().execute('INSTALL postgres')\""""
ROWS_AT_ONCE = 20_000
SELECTS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
NO_ROWS = "the statement gives no rows; write a SELECT"
USAGE = "write duckdb:///shop.db?query=SELECT ... or duckdb:///shop.db?table=items; sqlite:/// likewise, and postgres://user@host/db"


def is_database(given: Path | str) -> bool:
    """Whether a source is the address of a database."""
    return isinstance(given, str) and "://" in given


def database_file(address: str) -> Path:
    """The file of an address, or the host and database of Postgres without user and password, for messages."""
    place = address.partition("://")[2].partition("?")[0]
    return Path(place.rpartition("@")[2] if _is_postgres(address) else place[1:])


def _is_postgres(address: str) -> bool:
    return address.startswith("postgres")


def write_query(address: str, target: Path) -> None:
    """Write the rows of `duckdb:///PATH?query=SQL` or `?table=NAME`; four slashes begin an absolute path.

    `postgres://user:password@host:port/database?query=SQL` likewise, through DuckDB's extension; what else libpq needs
    comes from its environment variables, such as PGPASSWORD and PGSSLMODE. The query reads this database alone, and
    writes nothing. Raises RecipeError for another address, DataError for what the database says, MachineError where
    the extension is not installed.
    """
    path, query = _parsed(address)
    if not (_is_postgres(address) or path.is_file()):
        raise DataError(f"{path}: no such file; {USAGE}")
    try:
        if _is_postgres(address):
            _write_postgres(address.partition("?")[0], path, query, target)
        else:
            (_write_duckdb if address.startswith("duckdb") else _write_sqlite)(path, query, target)
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
    is_whole = "/" in place if _is_postgres(address) else place[:1] == "/" and bool(place[1:])
    if scheme not in SCHEMES or not is_whole or key not in ("query", "table") or not value:
        raise RecipeError(f"{scheme}://{place.rpartition('@')[2]}: not the address of a database that is read; {USAGE}")
    if key == "table":
        value = 'SELECT * FROM "{}"'.format(value.replace('"', '""'))  # noqa: S608  the user's own database, read only
    return database_file(address).expanduser(), value


def _write_duckdb(path: Path, query: str, target: Path) -> None:
    """A query reads no other file, and writes none: read_only protects the database alone."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "enable_external_access": False,
    }
    with duckdb.connect(str(path), read_only=True, config=config) as connection:
        _write_rows(connection, query, target)


def _write_postgres(address: str, shown: Path, query: str, target: Path) -> None:
    """Raises MachineError where DuckDB lacks the extension, which is not fetched here."""
    config: dict[str, str | bool | int | float | list[str]] = {"autoinstall_known_extensions": False}
    with duckdb.connect(config=config) as connection:
        try:
            connection.execute(LOAD_POSTGRES)
        except duckdb.Error as error:
            told = f"{shown}: DuckDB's extension postgres is not installed here; install it by {INSTALL_POSTGRES}"
            raise MachineError(f"{told}, or save the table as csv or parquet") from error
        try:
            connection.execute(ATTACH_POSTGRES.format(address.replace("'", "''")))
        except duckdb.Error as error:  # its reason may hold the address with the password
            reason = str(error).splitlines()[0].replace(address, str(shown))
            raise DataError(f"cannot be reached: {_without_secret(address, reason)}") from error
        connection.execute("USE source")
        connection.execute("SET enable_external_access = false")
        _write_rows(connection, query, target)


def _without_secret(address: str, told: str) -> str:
    secret = address.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return told.replace(secret, "...") if secret else told


def _write_rows(connection: duckdb.DuckDBPyConnection, query: str, target: Path) -> None:
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
