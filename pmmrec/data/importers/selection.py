"""Select the rows of a user's tables that become part of a domain, and record why others do not."""
# ruff: noqa: S608  statements contain no values of users; ids and paths are parameters
# Tables in DuckDB: raw_items, raw_interactions (as read) -> items, users, live (valid interactions) -> catalogue, and
# rejected. The key of an item is its row in the source, that of a user the row of the first interaction.

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from pmmrec.data.importers.rejections import Rejections
from pmmrec.data.wording import cleaned
from pmmrec.errors import DataError

NUM_EXAMPLES = 5


class Selection:
    """The steps of an import between reading and writing; call the methods in their order."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self.rejections = Rejections(connection)
        connection.create_function("cleaned", cleaned, ["VARCHAR"], "VARCHAR", null_handling="special")

    def take_items(self, path: Path, *, may_repeat: bool = False) -> None:
        """Make `items`, with clean texts.

        Raises DataError when an id occurs twice, unless it `may_repeat`: then its first row counts.
        """
        self.rejections.add(
            f"""SELECT 'item', item_id, row, 'empty item id' FROM raw_items
                WHERE {_is_blank("item_id")} ORDER BY row"""
        )
        self._run(
            f"""CREATE TABLE items AS SELECT * REPLACE (cleaned(text) AS text) FROM raw_items
                WHERE NOT {_is_blank("item_id")}"""
        )
        if may_repeat:
            later = "SELECT row FROM items QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY row) > 1"
            self.rejections.add(
                f"""SELECT 'item', item_id, row, 'a later row of the item' FROM items
                    WHERE row IN ({later}) ORDER BY row"""
            )
            self._run(f"DELETE FROM items WHERE row IN ({later})")
        twice = self._rows(
            """SELECT item_id, list(row ORDER BY row)[:2] FROM items GROUP BY item_id HAVING count(*) > 1
               ORDER BY min(row)"""
        )
        if twice:
            shown = ", ".join(f"{item_id!r} (rows {rows[0]} and {rows[1]})" for item_id, rows in twice[:NUM_EXAMPLES])
            raise DataError(f"{path}: {len(twice):,} item ids occur more than once: {shown}; keep one row each")

    def reject_bare_items(self) -> None:
        """Remove items with neither text nor picture from `items`."""
        bare = "text IS NULL AND row NOT IN (SELECT row FROM item_pictures)"
        self.rejections.add(
            f"""SELECT 'item', item_id, row, 'neither text nor image' FROM items WHERE {bare} ORDER BY row"""
        )
        self._run(f"CREATE TABLE bare_items AS SELECT item_id FROM items WHERE {bare}")
        self._run(f"DELETE FROM items WHERE {bare}")

    def take_interactions(self, path: Path, items_path: Path) -> None:
        """Make `users` and `live`. Raises DataError when most times cannot be read, or no interaction is valid."""
        self._check_times(path)
        self._run(
            f"""CREATE TABLE users AS SELECT user_id, min(row) AS user_key FROM raw_interactions
                WHERE NOT {_is_blank("user_id")} GROUP BY user_id"""
        )
        self._run(
            f"""CREATE TABLE judged AS SELECT x.row, user_key, items.row AS item_key, x.time, x.rest, x.rating, CASE
                  WHEN {_is_blank("x.user_id")} THEN 'empty user id'
                  WHEN {_is_blank("x.item_id")} THEN 'empty item id'
                  WHEN bare_items.item_id IS NOT NULL THEN 'item with neither text nor image'
                  WHEN items.row IS NULL THEN 'unknown item'
                  WHEN x.time IS NULL AND x.has_stamp THEN 'unreadable timestamp'
                  WHEN x.time IS NULL THEN 'no timestamp' END AS reason
                FROM raw_interactions x LEFT JOIN users USING (user_id) LEFT JOIN items ON items.item_id = x.item_id
                LEFT JOIN bare_items ON bare_items.item_id = x.item_id"""
        )
        self._run("CREATE TABLE live AS SELECT * EXCLUDE reason FROM judged WHERE reason IS NULL")
        self._check_any_left(path, items_path)
        self._reject_interactions("SELECT row, reason FROM judged WHERE reason IS NOT NULL")
        self._run("DROP TABLE judged")
        self._reject_users("no interaction left")

    def leave_out(
        self, condition: str, reason: str, path: Path, column: str | None = None, *, on_purpose: bool = True
    ) -> None:
        """Remove the rows of `live` that meet a condition, and users without any other.

        `column`: the one that the reason is about, as the import calls it; `on_purpose`: the rows are valid, and are
        counted as filtered. Raises DataError where none is left.
        """
        self._run(f"CREATE OR REPLACE TABLE left_out AS SELECT row FROM live WHERE {condition}")
        if self._count("left_out") == self._count("live"):
            raise DataError(f"{path}: no interaction is left: {reason} holds for all; choose another rule")
        self._run("DELETE FROM live WHERE row IN (SELECT row FROM left_out)")
        if on_purpose:
            self.rejections.on_purpose(reason, column)
        else:
            self.rejections.blame(reason, column)
        self._reject_interactions("SELECT row, $reason AS reason FROM left_out", reason)
        self._reject_users(reason)

    def keep_core(self, min_user: int, min_item: int, path: Path) -> None:
        """Reduce `live` until each user has `min_user` interactions and each item `min_item`, repeats counted."""
        self._run("CREATE TABLE before_core AS SELECT row FROM live")
        count, last = self._count("live"), -1
        while count != last:
            for key, least in (("user_key", min_user), ("item_key", min_item)):
                strong = f"SELECT {key} FROM live GROUP BY {key} HAVING count(*) >= {int(least)}"
                self._run(f"CREATE OR REPLACE TABLE live AS SELECT * FROM live WHERE {key} IN ({strong})")
            count, last = self._count("live"), count
        is_even = min_user == min_item
        if count == 0:
            each = f"{min_user} interactions each" if is_even else f"{min_user} and {min_item} interactions"
            raise DataError(f"{path}: no user and item have {each}; choose a smaller k_core, or none")
        reason = (
            f"outside the {min_user}-core" if is_even else f"outside the core of {min_user} a user, {min_item} an item"
        )
        self.rejections.on_purpose(reason, None)
        self._reject_interactions(
            "SELECT row, $reason AS reason FROM before_core WHERE row NOT IN (SELECT row FROM live)", reason
        )
        self._reject_users(reason)
        outside = "row NOT IN (SELECT item_key FROM live)"
        self.rejections.add(f"SELECT 'item', item_id, row, ? FROM items WHERE {outside} ORDER BY row", [reason])
        self._run(f"DELETE FROM items WHERE {outside}")

    def number_items(self) -> int:
        """Make `catalogue`: items in the order of the source, with their rows in the domain. Returns their number."""
        self._run("CREATE TABLE catalogue AS SELECT row_number() OVER (ORDER BY row) - 1 AS item_index, * FROM items")
        num_items = self._count("catalogue")
        if num_items > 2**31 - 1:
            raise DataError(f"{num_items:,} items; a domain numbers them in 32 bits, split it in two")
        return num_items

    def _check_times(self, path: Path) -> None:
        count, num_bad = self._rows("SELECT count(*), count(*) FILTER (time IS NULL) FROM raw_interactions")[0]
        if 2 * num_bad > count:
            ((row,),) = self._rows("SELECT min(row) FROM raw_interactions WHERE time IS NULL")
            raise DataError(
                f"{path}: {num_bad:,} of {count:,} timestamps cannot be read, the first in row {row}; "
                "give seconds, milliseconds or ISO dates, say how they are written (--time-format '%d.%m.%Y %H:%M'), "
                "or leave out the column to keep the order of the file"
            )

    def _check_any_left(self, path: Path, items_path: Path) -> None:
        if self._count("live"):
            return
        reasons = self._rows("SELECT reason, count(*) FROM judged GROUP BY reason ORDER BY count(*) DESC, reason")
        if [reason for reason, _ in reasons] == ["unknown item"]:
            unknown = self._rows(f"SELECT item_id FROM raw_interactions ORDER BY row LIMIT {NUM_EXAMPLES}")
            known = self._rows(f"SELECT item_id FROM items ORDER BY row LIMIT {NUM_EXAMPLES}")
            raise DataError(
                f"{path}: every interaction is with an item that {items_path} does not hold: {_shown(unknown)}, "
                f"while it holds {_shown(known)}; ids are compared as text, '01' is not '1'"
            )
        listed = ", ".join(f"{reason} ({count:,})" for reason, count in reasons)
        raise DataError(f"{path}: no interaction can be used: {listed}; mend the files")

    def _reject_interactions(self, query: str, reason: str | None = None) -> None:
        self.rejections.add(
            f"""SELECT 'interaction', concat(user_id, '/', item_id), row, reason
                FROM ({query}) JOIN raw_interactions USING (row) ORDER BY row""",
            {"reason": reason} if reason else None,
        )

    def _reject_users(self, reason: str) -> None:
        """Remove users without a live interaction, and record why."""
        gone = "user_key NOT IN (SELECT user_key FROM live)"
        self.rejections.add(f"SELECT 'user', user_id, NULL, ? FROM users WHERE {gone} ORDER BY user_key", [reason])
        self._run(f"DELETE FROM users WHERE {gone}")

    def _count(self, table: str) -> int:
        return int(self._rows(f"SELECT count(*) FROM {table}")[0][0])

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._connection.execute(query).fetchall()
        return rows

    def _run(self, statement: str, parameters: list[Any] | dict[str, Any] | None = None) -> None:
        self._connection.execute(statement, parameters)


def _is_blank(column: str) -> str:
    return f"({column} IS NULL OR trim({column}, ' \t\r\n') = '')"


def _shown(rows: list[tuple[Any, ...]]) -> str:
    return ", ".join(repr(row[0]) for row in rows)
