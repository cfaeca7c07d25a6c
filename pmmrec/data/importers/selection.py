"""Select the rows of a user's tables that become part of a domain, and record why others do not."""
# ruff: noqa: S608  statements contain no values of users; ids and paths are parameters
# In DuckDB: raw_items, raw_interactions (as read) -> items, users, live (valid interactions) -> catalogue, and
# rejected. The key of an item is its row in the source, that of a user the row of the first interaction.

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from pmmrec.data.importers.rejections import Rejections
from pmmrec.data.importers.time_formats import format_advice
from pmmrec.data.wording import cleaned
from pmmrec.errors import DataError

NUM_EXAMPLES = 5
NUM_STAMPS, MAX_STAMP = 1000, 40  # times that are looked at, and characters of one that is shown
EMPTY_USER, EMPTY_ITEM, BARE, UNKNOWN, BAD_TIME, NO_TIME = range(1, 7)
# Why an interaction cannot be used, by its column `fault`, and which column of `raw_interactions` shows it.
FAULTS: Mapping[int, tuple[str, str]] = {
    EMPTY_USER: ("empty user id", "user_id"),
    EMPTY_ITEM: ("empty item id", "item_id"),
    BARE: ("item with neither text nor image", "item_id"),
    UNKNOWN: ("unknown item", "item_id"),
    BAD_TIME: ("unreadable timestamp", "stamp"),
    NO_TIME: ("no timestamp", "stamp"),
}
# SQL of the value of a column that a reason is about.
SHOWN = {"user_id": "users.user_id", "item_id": "items.item_id", "timestamp": "x.stamp", "rating": "x.rated"}
KEYS = ("user_key", "item_key")
# Users of rows that were left out, who have no other.
GONE = "user_key IN (SELECT user_key FROM left_out) AND user_key NOT IN (SELECT user_key FROM live)"


class Selection:
    """The steps of an import between reading and writing; call the methods in their order."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection, self._has_lists = connection, False
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
        self._run(f"CREATE TABLE bare_items AS SELECT item_id, row FROM items WHERE {bare}")
        self._run(f"DELETE FROM items WHERE {bare}")

    def take_interactions(
        self, path: Path, items_path: Path, *, has_lists: bool = False, is_rated: bool = False
    ) -> None:
        """Make `users` and `live`. Raises DataError when most times cannot be read, or no interaction is valid.

        `has_lists`: rows of the file became several of `raw_interactions`; `is_rated`: `live` gets a column `rating`.
        """
        self._has_lists = has_lists
        self._run("CREATE TABLE users AS SELECT user_id, min(row) AS user_key FROM raw_interactions GROUP BY user_id")
        self._run(f"DELETE FROM users WHERE {_is_blank('user_id')}")  # above it would be tested for each interaction
        self._run(
            f"""CREATE TABLE live AS SELECT x.row, user_key, item_key, time, rest, {"rating," if is_rated else ""}
                  CAST(CASE WHEN user_key IS NULL THEN {EMPTY_USER}
                    WHEN item_key IS NULL THEN CASE WHEN {_is_blank("x.item_id")} THEN {EMPTY_ITEM} ELSE {UNKNOWN} END
                    WHEN is_bare THEN {BARE}
                    WHEN time IS NULL THEN CASE WHEN {_is_blank("stamp")} THEN {NO_TIME} ELSE {BAD_TIME} END
                    ELSE 0 END AS UTINYINT) AS fault
                FROM raw_interactions x LEFT JOIN users ON users.user_id = x.user_id LEFT JOIN (
                  SELECT item_id, row AS item_key, false AS is_bare FROM items
                  UNION ALL SELECT item_id, row, true FROM bare_items) known ON known.item_id = x.item_id"""
        )
        found = self._rows(
            """SELECT fault, count(*), count(*) FILTER (time IS NULL), min(row) FILTER (time IS NULL) FROM live
               GROUP BY fault ORDER BY count(*) DESC, fault"""
        )
        self._check_times(path, found)
        counts = {fault: count for fault, count, _, _ in found}
        if 0 not in counts:
            raise self._none_left(path, items_path, {FAULTS[fault][0]: count for fault, count in counts.items()})
        if len(counts) > 1:
            self._reject_faults()

    def leave_out(
        self, condition: str, reason: str, path: Path, column: str | None = None, *, on_purpose: bool = True
    ) -> None:
        """Remove the rows of `live` that meet a condition, and users without any other.

        `column`: the one that the reason is about, as the import calls it; `on_purpose`: the rows are valid, and are
        counted as filtered. Raises DataError where none is left.
        """
        self._run(f"CREATE OR REPLACE TABLE left_out AS SELECT row, user_key, item_key FROM live WHERE {condition}")
        if self._count("left_out") == self._count("live"):
            raise DataError(f"{path}: no interaction is left: {reason} holds for all; choose another rule")
        self._run("DELETE FROM live WHERE row IN (SELECT row FROM left_out)")
        if on_purpose:
            self.rejections.on_purpose(reason, column)
        else:
            self.rejections.blame(reason, column)
        self._reject_left_out(reason, column)
        self._reject_users(reason, GONE)

    def keep_core(self, min_user: int, min_item: int, path: Path) -> None:
        """Reduce `live` until each user has `min_user` interactions and each item `min_item`, repeats counted."""
        self._run("CREATE OR REPLACE TABLE left_out AS SELECT row, user_key, item_key FROM live LIMIT 0")
        for key in KEYS:
            self._run(f"CREATE TABLE {key}_counts AS SELECT {key} AS key, count(*) AS n FROM live GROUP BY {key}")
        num_quiet, least = 0, {"user_key": int(min_user), "item_key": int(min_item)}
        for key in itertools.cycle(KEYS):
            num_quiet = 0 if self._remove_weak(key, least[key]) else num_quiet + 1
            if num_quiet == len(KEYS):
                break
        is_even = min_user == min_item
        if not self._count("user_key_counts"):
            each = f"{min_user} interactions each" if is_even else f"{min_user} and {min_item} interactions"
            raise DataError(f"{path}: no user and item have {each}; choose a smaller k_core, or none")
        reason = (
            f"outside the {min_user}-core" if is_even else f"outside the core of {min_user} a user, {min_item} an item"
        )
        self.rejections.on_purpose(reason, None)
        self._reject_left_out(reason, None)
        self._reject_users(reason, "user_key NOT IN (SELECT key FROM user_key_counts)")
        outside = "row NOT IN (SELECT key FROM item_key_counts)"
        self.rejections.add(f"SELECT 'item', item_id, row, ? FROM items WHERE {outside}", [reason])
        self._run(f"DELETE FROM items WHERE {outside}")

    def _remove_weak(self, key: str, least: int) -> bool:
        """Move the rows of users, or of items, with too few to `left_out`, and count them off. Returns whether any."""
        (other,) = (name for name in KEYS if name != key)
        self._run(f"CREATE OR REPLACE TABLE weak AS SELECT key FROM {key}_counts WHERE n < {least}")
        if not self._count("weak"):
            return False
        is_weak = f"{key} IN (SELECT key FROM weak)"
        self._run(f"CREATE OR REPLACE TABLE leaving AS SELECT row, user_key, item_key FROM live WHERE {is_weak}")
        self._run(f"DELETE FROM live WHERE {is_weak}")
        self._run(f"DELETE FROM {key}_counts WHERE n < {least}")
        self._run(
            f"""CREATE OR REPLACE TABLE {other}_counts AS SELECT key, n - coalesce(gone, 0) AS n FROM {other}_counts
                LEFT JOIN (SELECT {other} AS key, count(*) AS gone FROM leaving GROUP BY {other}) USING (key)"""
        )
        self._run("INSERT INTO left_out SELECT * FROM leaving")
        return True

    def number_items(self) -> int:
        """Make `catalogue`: items in the order of the source, with their rows in the domain. Returns their number."""
        self._run("CREATE TABLE catalogue AS SELECT row_number() OVER (ORDER BY row) - 1 AS item_index, * FROM items")
        num_items = self._count("catalogue")
        if num_items > 2**31 - 1:
            raise DataError(f"{num_items:,} items; a domain numbers them in 32 bits, split it in two")
        return num_items

    def _check_times(self, path: Path, found: list[tuple[int, int, int, int | None]]) -> None:
        """`found`: for each fault how many rows, how many of them without a time, and the first of these."""
        count, num_bad = sum(count for _, count, _, _ in found), sum(num_bad for _, _, num_bad, _ in found)
        if 2 * num_bad > count:
            row = min(first for *_, first in found if first is not None)
            ((first,),) = self._rows(f"SELECT stamp FROM raw_interactions WHERE row = {row}")
            shown = f" ({first[:MAX_STAMP]!r})" if first else ""
            stamps = self._rows(
                f"""SELECT stamp FROM raw_interactions JOIN live USING (row)
                    WHERE live.time IS NULL AND NOT {_is_blank("stamp")} ORDER BY row LIMIT {NUM_STAMPS}"""
            )
            advice = format_advice([stamp for (stamp,) in stamps])
            raise DataError(
                f"{path}: {num_bad:,} of {count:,} timestamps cannot be read, the first in row {row}{shown}; {advice}, "
                "or leave out the column to keep the order of the file"
            )

    def _none_left(self, path: Path, items_path: Path, reasons: Mapping[str, int]) -> DataError:
        """What to raise where no interaction can be used."""
        if list(reasons) == [FAULTS[UNKNOWN][0]]:
            unknown = self._rows(f"SELECT item_id FROM raw_interactions ORDER BY row LIMIT {NUM_EXAMPLES}")
            known = self._rows(f"SELECT item_id FROM items ORDER BY row LIMIT {NUM_EXAMPLES}")
            return DataError(
                f"{path}: every interaction is with an item that {items_path} does not hold: {_shown(unknown)}, "
                f"while it holds {_shown(known)}; ids are compared as text, '01' is not '1'"
            )
        listed = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
        return DataError(f"{path}: no interaction can be used: {listed}; mend the files")

    def _reject_faults(self) -> None:
        """Move the rows of `live` with a fault to `rejected`, and users without any other."""
        self._run("CREATE OR REPLACE TABLE left_out AS SELECT row, user_key, fault FROM live WHERE fault <> 0")
        self._run("DELETE FROM live WHERE fault <> 0")
        reason, value = (
            " ".join(f"WHEN {fault} THEN {told}" for fault, told in cases)
            for cases in (
                [(fault, f"'{reason}'") for fault, (reason, _) in FAULTS.items()],
                [(fault, f"x.{column}") for fault, (_, column) in FAULTS.items()],
            )
        )
        self.rejections.add_interactions(
            f"""SELECT concat(x.user_id, '/', x.item_id), row, CASE fault {reason} END, x.source_row,
                  CASE fault {value} END FROM left_out JOIN raw_interactions x USING (row)"""
        )
        self._reject_users("no interaction left", GONE)

    def _reject_left_out(self, reason: str, column: str | None) -> None:
        """Add the rows of `left_out` to `rejected`, with the value of the column that the reason is about."""
        value = "NULL" if column is None else SHOWN[column]
        is_of_file = self._has_lists or value.startswith("x.")
        source_row = "x.source_row" if is_of_file else "left_out.row"
        self.rejections.add_interactions(
            f"""SELECT concat(users.user_id, '/', items.item_id), left_out.row, $reason, {source_row}, {value}
                FROM left_out JOIN users USING (user_key) JOIN items ON items.row = item_key
                {"JOIN raw_interactions x ON x.row = left_out.row" if is_of_file else ""}""",
            {"reason": reason},
        )

    def _reject_users(self, reason: str, condition: str) -> None:
        """Remove the users for whom a condition holds, and record why."""
        self.rejections.add(f"SELECT 'user', user_id, NULL, ? FROM users WHERE {condition}", [reason])
        self._run(f"DELETE FROM users WHERE {condition}")

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
