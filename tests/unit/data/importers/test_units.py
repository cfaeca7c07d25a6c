"""A column of times that mixes units is refused; ordinals and odd values are not."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from itertools import combinations, pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.data.importers.source import Source
from pmmrec.data.importers.times import time_rule
from pmmrec.data.importers.units import SPANS, Spread, check_units
from pmmrec.errors import DataError

MOMENT = datetime(2019, 10, 2, 7, 6, 40, tzinfo=timezone.utc)
SECONDS = int(MOMENT.timestamp())
AS = {
    "days as Excel counts them": (MOMENT.date() - date(1899, 12, 30)) // timedelta(days=1),
    "dates written YYYYMMDD": 20191002,
    "seconds": SECONDS,
    "milliseconds": SECONDS * 10**3,
    "dates written YYYYMMDDhhmmss": 20191002070640,
    "microseconds": SECONDS * 10**6,
    "nanoseconds": SECONDS * 10**9,
}


def judge(stamps: pa.Array) -> str | None:
    """The warning of a column, judged by itself."""
    with duckdb.connect() as connection:
        connection.register("stamped", pa.table({"row": pa.array(range(1, len(stamps) + 1)), "stamp": stamps}))
        return check_units(Spread.of(connection, "stamped", "TRY_CAST(stamp AS DOUBLE)"), "log.csv")


def test_every_unit_has_a_span_and_no_two_touch() -> None:
    assert list(AS) == [name for name, _, _ in SPANS]
    for name, low, high in SPANS:
        assert low <= AS[name] < high
    for (_, _, high), (_, low, _) in pairwise(SPANS):
        assert high < low


def test_seconds_and_milliseconds_of_the_same_days_are_refused(shop) -> None:
    shop.interactions.write_text("user_id,item_id,timestamp\nu,a,1570000000\nu,b,1570000001000\nu,c,1570000002\n")
    with pytest.raises(DataError) as told:
        shop.run()
    assert str(told.value) == (
        f"{shop.interactions}: column 'timestamp' mixes units: seconds in 2 rows (row 1: 1570000000), milliseconds in "
        "1 rows (row 2: 1570000001000); bring all rows to one unit"
    )
    assert not shop.out.exists()


@pytest.mark.parametrize(("lower", "upper"), combinations(AS, 2))
def test_two_units_in_one_column_are_refused_with_a_row_of_each(lower: str, upper: str) -> None:
    with pytest.raises(DataError, match="column 'timestamp' mixes units") as told:
        judge(pa.array([AS[upper], AS[lower], AS[lower] + 1]))
    assert f"{lower} in 2 rows (row 2: {AS[lower]}), {upper} in 1 rows (row 1: {AS[upper]})" in str(told.value)


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.float64(), pa.decimal128(30, 2), pa.string()])
def test_parquet_types_follow_the_same_rules(shop, kind: pa.DataType) -> None:
    path = shop.folder / "log.parquet"
    pq.write_table(pa.table({"timestamp": pa.array([SECONDS, SECONDS * 1000, SECONDS + 1]).cast(kind)}), path)
    with duckdb.connect() as connection:
        source = Source(path, connection)
        column = source.required("timestamp")
        source.load("stamped", {"stamp": column.sql})
        with pytest.raises(DataError, match=r"mixes units: seconds in 2 rows .*, milliseconds in 1 rows"):
            time_rule(connection, "stamped", column, "log")


@pytest.mark.parametrize("stray", ["0", "-1", None, "soon", "1e12345", "10000000000"])
def test_one_row_among_many_is_found_beside_odd_values(stray: str | None) -> None:
    stamps = [*map(str, range(SECONDS, SECONDS + 50)), stray, str(SECONDS * 1000), f"{SECONDS}.5"]
    with pytest.raises(DataError, match=rf"milliseconds in 1 rows \(row 52: {SECONDS * 1000}\)"):
        judge(pa.array(stamps))


@pytest.mark.parametrize(
    "stamps",
    [
        [1, 2, 3, 40_000],
        [0.5, 1.5, 2.5],
        list(range(SECONDS, SECONDS + 9)),
        [-3, 0, 5, SECONDS],
        [20191002, 20191003],
        [978_307_200, 4_000_000_000],
        np.random.default_rng(0).integers(1, 3_000_000_000, 2000).tolist(),  # numbers of events
        np.exp(np.random.default_rng(0).uniform(0, 40, 2000)).astype(int).tolist(),
        [None, None],
    ],
)
def test_one_unit_and_counts_are_taken(stamps: list[float | None]) -> None:
    assert judge(pa.array(stamps)) is None


def test_zeros_and_negatives_among_dates_are_warned_of(shop) -> None:
    shop.interactions.write_text(
        "user_id,item_id,timestamp\n" + "".join(f"u,a,{SECONDS + k}\n" for k in (1, 2, 3)) + "u,b,0\nu,c,-1\n"
    )
    domain = shop.run()
    warning = "times: 2 are zero or negative and come first; remove these rows if they mean no time"
    assert warning in domain.info.summary.notes
    assert domain.times(0).tolist()[:2] == [-1, 0]
    assert judge(pa.array([3, 2, 1, 0, -1])) is None
