"""Say in which line of its file a row begins, for messages and for the record of what was left out."""
# ruff: noqa: S608  statements contain no values of users

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from typing_extensions import Self

from pmmrec.data.importers.source import Source

ROWS_AT_ONCE = 100_000
QUOTE = b'"'


@dataclass(frozen=True)
class Lines:
    """SQL of the line of a row: a sum where each row is one line, otherwise a table; unknown where neither is."""

    shift: int | None = None
    table: str | None = None

    @classmethod
    def of(cls, connection: duckdb.DuckDBPyConnection, source: Source, table: str) -> Self:
        """The lines of a source that is loaded. Makes `table` where rows are not lines, in one pass over the file."""
        known = connection.execute("SELECT table_name FROM duckdb_tables() WHERE table_name = $1", [table]).fetchall()
        if known:
            return cls(table=table)
        if source.line_query is not None:
            connection.execute(f"CREATE TABLE {table} AS {source.line_query[0]}", source.line_query[1])
            return cls(table=table)
        text = source.text
        if text is None:
            return cls()
        if text.is_one_line_a_row:
            return cls(shift=int(text.has_header))
        connection.execute(f"CREATE TABLE {table} (row BIGINT, line BIGINT)")
        first = 1
        starts = _starts(text.path, encloses=text.encloses)
        if text.has_header:
            next(starts, None)
        while some := list(itertools.islice(starts, ROWS_AT_ONCE)):
            numbers = pa.table({"row": range(first, first + len(some)), "line": some})
            connection.register("line_starts", numbers)
            connection.execute(f"INSERT INTO {table} SELECT row, line FROM line_starts")
            connection.unregister("line_starts")
            first += len(some)
        if first - 1 != source.num_rows:  # such as a list of json objects: its lines are no rows
            connection.execute(f"DELETE FROM {table}")
        return cls(table=table)

    def line(self, row: str) -> str:
        """SQL of the line; `row` is SQL of the row. It may need `join`."""
        if self.shift is not None:
            return f"({row} + {self.shift})"
        return "CAST(NULL AS BIGINT)" if self.table is None else f"{self.table}.line"

    def join(self, row: str) -> str:
        """The join that `line` needs."""
        return "" if self.table is None else f"LEFT JOIN {self.table} ON {self.table}.row = {row}"


def _starts(path: Path, *, encloses: bool) -> Iterator[int]:
    """The numbers of the lines in which rows begin: all but empty lines, and those within a quoted value."""
    is_open = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").rstrip(b"\r\n")
            if not is_open and content:
                yield number
            if encloses and line.count(QUOTE) % 2:
                is_open = not is_open
