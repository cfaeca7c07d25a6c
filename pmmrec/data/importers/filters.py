"""Leave out valid interactions on purpose: low ratings, times outside a span, repeats, all but some users."""
# ruff: noqa: S608  statements contain no values of users, numbers apart

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import duckdb

from pmmrec.data.importers.selection import Selection
from pmmrec.data.importers.times import TimeRule
from pmmrec.data.importers.units import SPANS
from pmmrec.data.info import Filters
from pmmrec.errors import DataError, RecipeError

# Units of whole numbers, by their name in `SPANS`, in milliseconds.
PER_MILLISECOND = {"seconds": 1 / 1000, "milliseconds": 1, "microseconds": 1000, "nanoseconds": 1_000_000}
NUM_EXAMPLES = 3


def apply_filters(
    filters: Filters, selection: Selection, connection: duckdb.DuckDBPyConnection, times: TimeRule | None, path: Path
) -> None:
    """Apply all filters, the core last. DataError where nothing is left, RecipeError for one that cannot work."""
    if filters.min_rating is not None:
        _leave_low_ratings(filters.min_rating, selection, connection, path)
    for name, bound, sign in (("from", filters.since, "<"), ("to", filters.until, ">=")):
        if bound is not None:
            limit = _limit(name, bound, connection, times)
            reason = f"before {bound}" if sign == "<" else f"from {bound} on"
            selection.leave_out(f"time {sign} {limit}", reason, path, "timestamp")
    if filters.repeats != "keep":
        order = "time, rest, row" if filters.repeats == "first" else "time DESC, rest DESC, row DESC"
        repeated = f"""row IN (SELECT row FROM live QUALIFY row_number() OVER (PARTITION BY user_key, item_key
                       ORDER BY {order}) > 1)"""
        selection.leave_out(repeated, f"a repeat; the {filters.repeats} is kept", path, "item_id")
    if filters.sample_users is not None:
        _sample(filters.sample_users, filters.seed or 0, selection, connection, path)
    core = (filters.k_core or filters.min_user or 1, filters.k_core or filters.min_item or 1)
    if core != (1, 1) or filters.k_core == 1:
        selection.keep_core(*core, path)


def _leave_low_ratings(least: float, selection: Selection, connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    num_rated = _rows(connection, "SELECT count(rating) FROM live")[0][0]
    if not num_rated:
        raise DataError(
            f"{path}: no rating can be read, so --min-rating has no effect; name the column: --map rating=COLUMN"
        )
    if _rows(connection, "SELECT count(*) FROM live WHERE rating IS NULL")[0][0]:
        selection.leave_out("rating IS NULL", "no readable rating", path, "rating", on_purpose=False)
    selection.leave_out(f"rating < {float(least)!r}", f"rating below {least:g}", path, "rating")


def _limit(name: str, bound: str, connection: duckdb.DuckDBPyConnection, times: TimeRule | None) -> int:
    """A bound in the unit of the times. Whole numbers are taken as they are; dates need times of a known unit."""
    if times is None:
        raise RecipeError(f"--{name} {bound}: has no effect, interactions have no timestamps; leave it out")
    if re.fullmatch(r"-?[0-9]+", bound):
        _refuse_idle(name, int(bound), connection)
        return int(bound)
    try:
        date = datetime.datetime.fromisoformat(bound)
    except ValueError as error:
        raise RecipeError(f"--{name} {bound}: neither a date, such as 2020-12-31, nor a whole number") from error
    date = date if date.tzinfo else date.replace(tzinfo=datetime.timezone.utc)
    milliseconds = round(date.timestamp() * 1000)
    if times.unit == "milliseconds":
        return milliseconds
    usual = _rows(connection, "SELECT quantile_disc(time, 0.5) FROM live")[0][0]
    unit = next((unit for unit, low, high in SPANS if low <= usual < high and unit in PER_MILLISECOND), None)
    if unit is None:
        raise RecipeError(f"--{name} {bound}: times such as {usual} are no dates; give a number of the same unit")
    return round(milliseconds * PER_MILLISECOND[unit])


def _refuse_idle(name: str, bound: int, connection: duckdb.DuckDBPyConnection) -> None:
    """RecipeError for a number that leaves out nothing, such as a year where times are seconds."""
    first, last = _rows(connection, "SELECT min(time), max(time) FROM live")[0]
    is_idle = bound <= first if name == "from" else bound > last
    if is_idle:
        raise RecipeError(
            f"--{name} {bound}: has no effect, times are numbers from {first} to {last}; give one of the same unit, a "
            "date, such as 2020-12-31, or leave it out"
        )


def _sample(num_users: int, seed: int, selection: Selection, connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Keep the users whose hashes are the lowest: the order of rows and other users change no choice between two."""
    living = "users WHERE user_key IN (SELECT user_key FROM live)"
    ((num_found,),) = _rows(connection, f"SELECT count(*) FROM {living}")
    if num_found < num_users:
        raise RecipeError(f"--sample-users {num_users:,}: only {num_found:,} users are left; choose fewer")
    connection.execute(
        f"""CREATE TABLE sampled AS SELECT user_key FROM {living}
            ORDER BY sha256(concat({int(seed)}, '/', user_id)), user_key LIMIT {int(num_users)}"""
    )
    if num_found > num_users:
        outside = "user_key NOT IN (SELECT user_key FROM sampled)"
        selection.leave_out(outside, f"outside the sample of {num_users:,} users (seed {seed})", path, "user_id")


def _rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = connection.execute(query).fetchall()
    return rows
