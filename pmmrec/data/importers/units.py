"""Refuse a column of times that holds more than one unit, such as seconds and milliseconds."""
# ruff: noqa: S608  statements contain no values of users

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import duckdb
from typing_extensions import Self

from pmmrec.errors import DataError

# Values of the years 1990 to 2099 in each unit, ascending. The spans do not touch, and contain no small counts.
SPANS = (
    ("days as Excel counts them", 32_874, 73_051),
    ("dates written YYYYMMDD", 19_900_101, 21_000_000),
    ("seconds", 631_152_000, 4_102_444_800),
    ("milliseconds", 631_152_000_000, 4_102_444_800_000),
    ("dates written YYYYMMDDhhmmss", 19_900_101_000_000, 21_000_000_000_000),
    ("microseconds", 631_152_000_000_000, 4_102_444_800_000_000),
    ("nanoseconds", 631_152_000_000_000_000, 4_102_444_800_000_000_000),
)
LEAST_SHARE_BETWEEN = 0.1


@dataclass(frozen=True)
class Spread:
    """How the numbers of a column lie among `SPANS`: for each place, how many, and the first row with its text.

    Place 1 is the first span, 3 the second, and so on; even places are between them; -1 is zero and below; `None` holds
    rows without a number.
    """

    found: Mapping[int | None, tuple[int, int, str]]
    num_unread: int  # rows with a value that is not read as a number

    @classmethod
    def of(cls, connection: duckdb.DuckDBPyConnection, table: str, number: str) -> Self:
        """Count in one pass. `number` is SQL of the numbers in `table`, which has the columns `row` and `stamp`."""
        edges = [edge for _, low, high in SPANS for edge in (low, high)]
        cases = " ".join(f"WHEN n < {edge} THEN {place}" for place, edge in enumerate(edges))
        rows = connection.execute(
            f"""SELECT place, count(*), min(row), arg_min(CAST(stamp AS VARCHAR), row), count(stamp) FROM (
                  SELECT row, stamp, CASE WHEN n IS NULL THEN NULL WHEN n <= 0 THEN -1 {cases} ELSE {len(edges)} END
                    AS place FROM (SELECT row, stamp, {number} AS n FROM {table})) GROUP BY place"""
        ).fetchall()
        num_unread = sum(num_stamps for place, *_, num_stamps in rows if place is None)
        return cls({place: (count, row, stamp) for place, count, row, stamp, _ in rows}, num_unread)


def check_units(spread: Spread, where: str) -> str | None:
    """Raise DataError where a column of numbers mixes units; return a warning where some numbers may not be times.

    A column mixes units if values lie in two spans of calendar years and hardly any between them. A counter, such as
    the number of an event, may pass through several spans, but has values between them as well.
    """
    found = {place: one for place, one in spread.found.items() if place is not None}
    counts = {place: count for place, (count, _, _) in found.items()}
    in_spans = [place for place in sorted(counts) if place % 2 and place > 0]
    for lower, upper in pairwise(in_spans):
        num_between = sum(counts.get(place, 0) for place in range(lower + 1, upper))
        if num_between <= LEAST_SHARE_BETWEEN * max(counts[lower], counts[upper]):
            listed = ", ".join(
                f"{SPANS[place // 2][0]} in {count:,} rows (row {row}: {stamp})"
                for place, (count, row, stamp) in sorted(found.items())
                if place in in_spans
            )
            raise DataError(f"{where}: column 'timestamp' mixes units: {listed}; bring all rows to one unit")
    num_none = counts.get(-1, 0)
    if num_none and 2 * sum(counts[place] for place in in_spans) > sum(counts.values()):
        return f"times: {num_none:,} are zero or negative and come first; remove these rows if they mean no time"
    return None
