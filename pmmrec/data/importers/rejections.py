"""Record what an import leaves out: the row or picture, its file, its line, the value, and the reason."""
# ruff: noqa: S608  statements contain no values of users; ids and names are parameters
# Tables in DuckDB: rejected (one row for each), blamed (the column that a reason is about).

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pmmrec.data.importers.line_numbers import Lines
from pmmrec.data.importers.loading import LoadedTables

COLUMNS = ("kind", "id", "row", "reason", "file", "line", "image", "column", "value")
PICTURE_PATH, PICTURE_BYTES = "picture_path", "image"  # columns of items that pictures may come from
# By kind and reason: which column holds the value that is the reason.
BLAMED: Mapping[tuple[str, str], str] = {
    ("item", "empty item id"): "item_id",
    ("item", "a later row of the item"): "item_id",
    ("item", "neither text nor image"): "text",
    ("interaction", "empty user id"): "user_id",
    ("interaction", "empty item id"): "item_id",
    ("interaction", "item with neither text nor image"): "item_id",
    ("interaction", "unknown item"): "item_id",
    ("interaction", "unreadable timestamp"): "timestamp",
    ("interaction", "no timestamp"): "timestamp",
    ("image", "a path without bytes"): PICTURE_BYTES,
    ("image", "no such picture"): PICTURE_PATH,
    ("image", "path outside the folder"): PICTURE_PATH,
    ("image", "not an address of http or https"): PICTURE_PATH,
}
_OF_ITEMS = "('item_id', 'text', 'picture_path')"


class Rejections:
    """The rejected rows of one import. Rows are added by SQL, and described once all tables are loaded."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._on_purpose: set[str] = set()
        connection.execute(
            """CREATE TABLE rejected (kind VARCHAR, id VARCHAR, row BIGINT, reason VARCHAR, image VARCHAR,
               item_row BIGINT, source_row BIGINT, value VARCHAR)"""
        )
        connection.execute("CREATE TABLE blamed (kind VARCHAR, reason VARCHAR, role VARCHAR)")
        rows = [(*about, role) for about, role in BLAMED.items()]
        connection.executemany("INSERT INTO blamed VALUES (?, ?, ?)", rows)

    def add(self, query: str, parameters: list[Any] | dict[str, Any] | None = None) -> None:
        """Add the rows of a query: kind, id, row in the source (1 is the first) and reason."""
        self._connection.execute(f"INSERT INTO rejected (kind, id, row, reason) {query}", parameters)

    def add_interactions(self, query: str, parameters: dict[str, Any] | None = None) -> None:
        """Add the rows of a query: id, row, reason, row in the file (another one where it lists items), and value."""
        self._connection.execute(
            f"""INSERT INTO rejected (kind, id, row, reason, source_row, value)
                SELECT 'interaction', * FROM ({query})""",
            parameters,
        )

    def add_images(self, query: str) -> None:
        """Add pictures: item id, reason, the name of the picture (null: none) and the row of the item."""
        self._connection.execute(
            f"""INSERT INTO rejected (kind, id, reason, image, item_row)
                SELECT 'image', item_id, reason, image, item_row
                FROM ({query}) AS lost(item_id, reason, image, item_row)"""
        )

    def add_broken_images(self, rows: list[tuple[str, str, str | None, int]]) -> None:
        """Add pictures by hand, as `add_images` does."""
        if rows:
            names = ("item_id", "reason", "image", "item_row")
            table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
            if pa.types.is_null(table["image"].type):
                table = table.set_column(2, "image", table["image"].cast(pa.string()))
            self._connection.register("broken_images", table)
            self.add_images("SELECT item_id, reason, image, item_row FROM broken_images")
            self._connection.unregister("broken_images")

    def on_purpose(self, reason: str, role: str | None) -> None:
        """Say that a reason is a wish of the user, not a fault, and which column it is about."""
        self._on_purpose.add(reason)
        self.blame(reason, role)

    def blame(self, reason: str, role: str | None) -> None:
        """Say which column of the interactions a reason is about."""
        if role is not None:
            self._connection.execute("INSERT INTO blamed VALUES ('interaction', ?, ?)", [reason, role])

    def counts(self, *, on_purpose: bool = False) -> dict[str, dict[str, int]]:
        """The number of rejected rows, by kind and reason; or of those that were left out on purpose."""
        counted: dict[str, dict[str, int]] = {}
        rows = self._connection.execute(
            "SELECT kind, reason, count(*) FROM rejected GROUP BY ALL ORDER BY kind, count(*) DESC, reason"
        ).fetchall()
        for kind, reason, count in rows:
            if (reason in self._on_purpose) == on_purpose:
                counted.setdefault(kind, {})[reason] = count
        return counted

    def listed(self, tables: LoadedTables, kind: str, reasons: Mapping[str, int]) -> str:
        """Reasons with their counts and first rows: `unknown item (2, the first in line 7: column 'sku' holds 'x')`."""
        self._describe(tables, None)
        told = [f"{why} ({count:,}, the first in {self._first(kind, why)})" for why, count in reasons.items()]
        return ", ".join(told)

    def _first(self, kind: str, reason: str) -> str:
        found = self._connection.execute(
            """SELECT row, line, image, "column", value FROM described WHERE kind = $kind AND reason = $reason
               ORDER BY row, id LIMIT 1""",
            {"kind": kind, "reason": reason},
        ).fetchone()
        row, line, image, column, value = found or (None,) * 5
        place = f"line {line}" if line is not None else f"row {row}" if row is not None else repr(image or "the items")
        return f"{place}: column {column!r} holds {_short(value)}" if column is not None else place

    def write(self, path: Path, tables: LoadedTables, pictures: Path | None) -> bool:
        """Write all rows to a parquet file, of `COLUMNS`, unless there are none. Returns whether there are.

        `row` counts rows of data, `line` lines of the file from 1; `pictures` is where the pictures came from.
        """
        if not self.counts() and not self.counts(on_purpose=True):
            return False
        self._describe(tables, pictures)
        rows = self._connection.sql("SELECT * FROM described ORDER BY kind, row, id, reason, image")
        rows.write_parquet(str(path))
        return True

    def _describe(self, tables: LoadedTables, pictures: Path | None) -> None:
        """Make the view `described`: the rows of `rejected`, with all that is known of them."""
        items = Lines.of(self._connection, tables.items, "item_lines")
        log = Lines.of(self._connection, tables.interactions, "interaction_lines")
        named = {"items": tables.items.origin, "interactions": tables.interactions.origin}
        named["pictures"] = pictures.name if pictures else tables.items.origin
        columns = {role: _quoted(name) for role, name in tables.named_columns.items()}
        of_column = " ".join(f"WHEN {_quoted(role)} THEN {name}" for role, name in columns.items())
        column = f"CASE role {of_column} ELSE role END"
        self._connection.execute(
            """CREATE OR REPLACE TEMP VIEW judged_rows AS SELECT rejected.*, role FROM rejected
                LEFT JOIN blamed ON blamed.kind = rejected.kind AND blamed.reason = rejected.reason"""
        )
        self._connection.execute(
            f"""CREATE OR REPLACE TEMP VIEW described AS
                SELECT r.kind, r.id, r.row, r.reason, {_quoted(named["items"])} AS file, {items.line("r.row")} AS line,
                  CAST(NULL AS VARCHAR) AS image, {column} AS "column",
                  CASE role WHEN 'item_id' THEN o.item_id WHEN 'text' THEN o.text END AS value
                FROM judged_rows r LEFT JOIN raw_items o ON o.row = CASE WHEN role IN {_OF_ITEMS} THEN r.row END
                {items.join("r.row")} WHERE r.kind = 'item'
                UNION ALL
                SELECT r.kind, r.id, r.row, r.reason, {_quoted(named["interactions"])}, {log.line("r.source_row")},
                  NULL, {column}, r.value
                FROM judged_rows r {log.join("r.source_row")} WHERE r.kind IN ('interaction', 'user')
                UNION ALL
                SELECT r.kind, r.id, r.row, r.reason,
                  CASE WHEN r.image IS NULL THEN {_quoted(named["items"])} ELSE {_quoted(named["pictures"])} END,
                  CASE WHEN r.image IS NULL THEN {items.line("r.item_row")} END, r.image, {column},
                  {"CASE role WHEN 'picture_path' THEN o.picture_path END" if tables.has_paths else "NULL"}
                FROM judged_rows r LEFT JOIN raw_items o ON o.row = r.item_row
                {items.join("r.item_row")} WHERE r.kind = 'image'"""
        )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _short(value: str | None) -> str:
    return "nothing" if value is None else repr(value if len(value) <= 60 else f"{value[:60]}...")
