# ruff: noqa: S608  statements contain no values of users
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.data.importers.source import Source
from pmmrec.data.importers.times import TimeRule, _iso_dates, _plain_dates, time_rule
from pmmrec.errors import DataError

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def milliseconds(*parts: int, offset_minutes: int = 0) -> int:
    local = datetime(*parts, tzinfo=timezone(timedelta(minutes=offset_minutes)))
    return round((local - EPOCH) / timedelta(milliseconds=1))


def times_of(shop, *stamps: str) -> tuple[list[int], str]:
    """Times in the order of the user's sequence, and their unit."""
    shop.interactions.write_text("user_id,item_id,timestamp\n" + "".join(f"u,a,{stamp}\n" for stamp in stamps))
    domain = shop.run()
    return domain.times(0).tolist(), domain.info.time_unit


@pytest.mark.parametrize(
    "stamps",
    [
        (-3, 0, 1_600_000_000),
        (1_600_000_000_001, 1_600_000_000_002),
        (9_007_199_254_740_993, 9_223_372_036_854_775_807),
    ],
)
def test_whole_numbers_are_kept_as_they_are(shop, stamps: tuple[int, ...]) -> None:
    assert times_of(shop, *map(str, stamps)) == (list(stamps), "as given")


def test_whole_numbers_written_as_floats_are_whole_numbers(shop) -> None:
    assert times_of(shop, "1600000000.0", "1.6000000010e9", "1600000002") == (
        [1_600_000_000, 1_600_000_001, 1_600_000_002],
        "as given",
    )


def test_fractions_of_seconds_become_milliseconds(shop) -> None:
    assert times_of(shop, "1600000000.25", "1600000000", " 1600000001.5 ") == (
        [1_600_000_000_000, 1_600_000_000_250, 1_600_000_001_500],
        "milliseconds",
    )


def test_fractions_of_milliseconds_are_rounded_off(shop) -> None:
    assert times_of(shop, "1600000000000.4", "1600000000001") == (
        [1_600_000_000_000, 1_600_000_000_001],
        "milliseconds",
    )


def test_one_stray_number_does_not_change_the_unit(shop) -> None:
    stamps = ["1600000000.25"] * 9 + ["99999999999999"]
    assert times_of(shop, *stamps)[0][0] == 1_600_000_000_250


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        ("2020-03-01", milliseconds(2020, 3, 1)),
        ("2020-03-01T04:05", milliseconds(2020, 3, 1, 4, 5)),
        ("2020-03-01 04:05:06", milliseconds(2020, 3, 1, 4, 5, 6)),
        ("2020-03-01T04:05:06Z", milliseconds(2020, 3, 1, 4, 5, 6)),
        ("2020-03-01T04:05:06.789123Z", milliseconds(2020, 3, 1, 4, 5, 6, 789_000)),
        ("2020-03-01T04:05:06+02:00", milliseconds(2020, 3, 1, 4, 5, 6, offset_minutes=120)),
        ("2020-03-01 04:05:06 -0530", milliseconds(2020, 3, 1, 4, 5, 6, offset_minutes=-330)),
        ("2020-03-01 04:05:06 UTC", milliseconds(2020, 3, 1, 4, 5, 6)),
        ("2020-03-01t04:05:06z", milliseconds(2020, 3, 1, 4, 5, 6)),
        ("2020-03-01T04:05:06.999999999Z", milliseconds(2020, 3, 1, 4, 5, 6, 999_000)),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2020-03-01 04:05:06+09", milliseconds(2020, 3, 1, 4, 5, 6, offset_minutes=540)),
        ("1969-12-31T23:59:59Z", -1000),
    ],
)
def test_iso_dates_become_milliseconds_in_utc(shop, stamp: str, expected: int) -> None:
    assert times_of(shop, stamp) == ([expected], "milliseconds")


@pytest.mark.parametrize(
    "stamp", ["inf", "-inf", "nan", "infinity", "9223372036854775808", "0x10", "1_000", "2020-03-01", "yesterday"]
)
def test_a_number_that_is_none_is_rejected(shop, rejected, stamp: str) -> None:
    shop.interactions.write_text(f"user_id,item_id,timestamp\nu,a,1\nu,b,{stamp}\nu,c,3\n")
    assert rejected(shop.run()) == [("interaction", "u/b", 2, "unreadable timestamp")]


@pytest.mark.parametrize(
    "stamp",
    [
        "2020-02-30",
        "2020-01-01T25:00",
        "2020-01-01T00:00+19:00",
        "2020-01-01T00:00+99:99",
        "2020-01-01T00:00-01:60",
        "epoch",
        "infinity",
        "01/02/2020",
        "1600000000",
    ],
)
def test_a_date_that_is_none_is_rejected(shop, rejected, stamp: str) -> None:
    shop.interactions.write_text(f"user_id,item_id,timestamp\nu,a,2020-01-01\nu,b,{stamp}\nu,c,2020-01-02\n")
    assert rejected(shop.run()) == [("interaction", "u/b", 2, "unreadable timestamp")]


BERLIN = pa.timestamp("us", tz="Europe/Berlin")


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        (pa.array([1, 2, None], pa.int32()), [1, 2]),
        (pa.array([1, 2**64 - 1, 2], pa.uint64()), [1, 2]),
        (pa.array([2.0, float("nan"), 1.0]), [1, 2]),
        (pa.array([2.5, float("inf"), 1.0]), [1000, 2500]),
        (pa.array(["2", "x", "1"]), [1, 2]),
        (pa.array([date(1970, 1, 2), None, date(1970, 1, 1)]), [0, 86_400_000]),
        (pa.array([1_500_000, None, 1000], pa.timestamp("us")), [1, 1500]),
        (pa.array([2_000_000_000, None, 1_000_000], pa.timestamp("ns")), [1, 2000]),
        (pa.array([1_500_000, None, 1000], BERLIN), [1, 1500]),
        (pa.array([2, None, 1]).cast(pa.decimal128(30, 2)), [1, 2]),
    ],
)
def test_types_of_parquet_are_read(shop, rejected, stamps: pa.Array, expected: list[int]) -> None:
    path = shop.folder / "log.parquet"
    pq.write_table(pa.table({"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": stamps}), path)
    domain = shop.run(interactions=path)
    assert domain.times(0).tolist() == expected
    assert len(rejected(domain)) == 1


def written(shop, stamps: pa.Array) -> Path:
    path = shop.folder / "log.parquet"
    pq.write_table(
        pa.table({"user_id": ["u"] * len(stamps), "item_id": ["a"] * len(stamps), "timestamp": stamps}), path
    )
    return path


def test_nanoseconds_with_a_zone_and_microseconds_make_the_same_domain(shop) -> None:
    stamps = pa.array([1_700_000_000_300_000, 1_700_000_000_100_000, None], pa.timestamp("us", "UTC"))
    domains = [
        shop.run(interactions=written(shop, stamps.cast(pa.timestamp(unit, "UTC"))), out=shop.folder / unit)
        for unit in ("us", "ns")
    ]
    assert domains[0].fingerprint == domains[1].fingerprint
    for domain in domains:
        assert domain.times(0).tolist() == [1_700_000_000_100, 1_700_000_000_300]
        assert domain.info.summary.notes[0] == "times: dates, kept as milliseconds since 1970 (UTC)"
        assert domain.info.summary.rejected["interaction"] == {"no timestamp": 1}


def test_interactions_within_a_millisecond_are_ordered_and_equal_ones_keep_their_rows(shop, sequences) -> None:
    shop.items.write_text("item_id,text\na,x\nb,x\nc,x\nd,x\n")
    stamps = {"a": "300", "b": "100", "c": "200", "d": "300"}
    lines = [f"u,{item},2024-01-01 00:00:00.000{stamp}\n" for item, stamp in stamps.items()]
    shop.interactions.write_text("user_id,item_id,timestamp\n" + "".join(lines))
    domain = shop.run()
    assert sequences(domain) == {"u": ["b", "c", "a", "d"]}
    assert len(set(domain.times(0).tolist())) == 1
    assert (
        domain.info.summary.notes[1]
        == "times: 1 interactions have the same time as the one before; the order of rows is kept"
    )


# Below, a column is judged by itself: rows in their order, those that tie together, and what a domain would hold.


@dataclass(frozen=True)
class Judged:
    groups: list[list[int]]
    times: list[int]
    rule: TimeRule


def judged(shop, stamps: pa.Array) -> Judged:
    with duckdb.connect() as connection:
        source = Source(written(shop, stamps), connection)
        column = source.required("timestamp")
        source.load("stamped", {"stamp": column.sql})
        rule = time_rule(connection, "stamped", column, "log")
        table = f"SELECT row - 1 AS row, {rule.sql} AS time, {rule.rest} AS rest FROM stamped"
        types = connection.execute(f"SELECT DISTINCT typeof(time) FROM ({table})").fetchall()
        assert types == [("BIGINT",)]
        found = connection.execute(
            f"""SELECT list(row ORDER BY row), time FROM ({table}) WHERE time IS NOT NULL GROUP BY time, rest
                ORDER BY time, rest"""
        ).fetchall()
    return Judged([rows for rows, _ in found], [time for _, time in found], rule)


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "+05:30"])
@pytest.mark.parametrize(("unit", "second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("start_s", [1_700_000_000, -1_000])
def test_timestamps_of_every_unit_and_zone_are_ordered_exactly(
    shop, unit: str, second: int, zone: str | None, start_s: int
) -> None:
    start = start_s * second
    stamps = pa.array([start + 3, start + 1, start + 2, start - second, start + 3, None], pa.int64())
    found = judged(shop, stamps.cast(pa.timestamp(unit, tz=zone)))
    assert found.groups == [[3], [1], [2], [0, 4]]
    assert found.times == [(stamp * 1000) // second for stamp in (start - second, start + 1, start + 2, start + 3)]


def test_nanoseconds_that_are_not_read_are_warned_of(shop) -> None:
    stamps = pa.array([1_700_000_000_000_001_000, 1_700_000_000_000_000_000], pa.timestamp("ns"))
    assert judged(shop, stamps).rule.warnings == ()
    pq.write_table(pa.table({"timestamp": stamps}), shop.folder / "int96.parquet", use_deprecated_int96_timestamps=True)
    with duckdb.connect() as connection:
        column = Source(shop.folder / "int96.parquet", connection).required("timestamp")
        (warning,) = time_rule(connection, "unused", column, "log").warnings
    assert warning.startswith("times: this DuckDB reads them to the microsecond")


@pytest.mark.parametrize(
    ("form", "unit"),
    [
        ("2024-01-01 00:00:00.000{}", "milliseconds"),
        ("2024-01-01T00:00:00.000000{}Z", "milliseconds"),
        ("2024-01-01T02:00:00.000000{}+02:00", "milliseconds"),
        ("1969-12-31 23:59:59.123{}", "milliseconds"),
        ("1570000000.000{}", "milliseconds"),
        ("1570000000.000000{}", "milliseconds"),
        ("-1570000000.000{}", "milliseconds"),
        ("1570000000000.{}", "milliseconds"),
        ("1570000000000000.{}", "as given"),
        ("1570000000000{}", "as given"),
        ("1570000000000000{}", "as given"),
    ],
)
def test_order_below_a_millisecond_is_kept(shop, form: str, unit: str) -> None:
    found = judged(shop, pa.array([form.format(digits) for digits in ("300", "100", "200", "300")]))
    assert found.groups == ([[0, 3], [2], [1]] if form.startswith("-") else [[1], [2], [0, 3]])
    assert found.rule.unit == unit
    assert found.times == sorted(found.times)


@pytest.mark.parametrize(
    "stamps",
    [
        pa.array([1.57e9 + 3e-6, 1.57e9 + 1e-6, 1.57e9 + 2e-6, 1.57e9 + 3e-6]),
        pa.array([Decimal(f"1570000000.0000000{k}") for k in (3, 1, 2, 3)], pa.decimal128(38, 10)),
        pa.array([Decimal(f"1570000000000.0000000{k}") for k in (3, 1, 2, 3)], pa.decimal128(38, 10)),
        pa.array([f"1570000000.0000000{k}" for k in (3, 1, 2, 3)]),
        pa.array([f"1.5700000000000000{k}e9" for k in (3, 1, 2, 3)]),
        pa.array([2**62 + k for k in (3, 1, 2, 3)], pa.uint64()),
        pa.array([-(2**62) + k for k in (3, 1, 2, 3)], pa.int64()),
    ],
)
def test_numbers_of_every_type_are_ordered_exactly(shop, stamps: pa.Array) -> None:
    assert judged(shop, stamps).groups == [[1], [2], [0, 3]]


def test_neighbouring_floats_stay_apart(shop) -> None:
    stamps = [1_570_000_000.1]
    for _ in range(200):
        stamps.append(float(np.nextafter(stamps[-1], np.inf)))
    order = np.random.default_rng(0).permutation(len(stamps))
    found = judged(shop, pa.array([stamps[place] for place in order]))
    assert found.groups == [[row] for row in np.argsort(order)]


def test_32_bit_floats_of_large_numbers_are_warned_of(shop) -> None:
    (warning,) = judged(shop, pa.array([1.57e9, 1.58e9], pa.float32())).rule.warnings
    assert "32-bit floats, which hold 7 digits" in warning
    assert judged(shop, pa.array([1.5, 2.5], pa.float32())).rule.warnings == ()
    assert judged(shop, pa.array([1.57e9, 1.58e9], pa.float64())).rule.warnings == ()


def test_dates_with_and_without_a_zone_are_said(shop) -> None:
    found = judged(shop, pa.array(["2020-01-01T00:00Z", "2020-01-01 00:01", "soon"]))
    assert found.rule.warnings == ("times: 1 of 2 dates name no zone and are read as UTC",)
    assert judged(shop, pa.array(["2020-01-01T00:00Z", "soon"])).rule.warnings == ()
    assert judged(shop, pa.array(["2020-01-01", "2020-01-01 00:01"])).rule.warnings == ()


@pytest.mark.parametrize("stamps", [pa.array([True, False, True]), pa.array([[1], [2], [3]])])
def test_types_that_hold_no_time_are_refused(shop, stamps: pa.Array) -> None:
    path = shop.folder / "log.parquet"
    pq.write_table(pa.table({"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": stamps}), path)
    with pytest.raises(DataError, match=r"column 'timestamp' is .*; give seconds, milliseconds or ISO dates"):
        shop.run(interactions=path)


def test_a_column_of_nothing_is_refused(shop) -> None:
    path = shop.folder / "log.parquet"
    pq.write_table(pa.table({"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": pa.nulls(3)}), path)
    with pytest.raises(DataError, match="3 of 3 timestamps cannot be read"):
        shop.run(interactions=path)


@pytest.mark.parametrize("unit", ["ms", "s"])
def test_a_parquet_time_that_duckdb_cannot_hold_is_refused_with_a_remedy(shop, unit: str) -> None:
    path, stamps = shop.folder / "log.parquet", pa.array([1, 2, 93_000_000_000_000], pa.timestamp("s"))
    pq.write_table(
        pa.table({"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": stamps.cast(pa.timestamp(unit))}), path
    )
    with pytest.raises(
        DataError, match="years -290308 to 294247; mend or remove that row, or store the times as whole"
    ):
        shop.run(interactions=path)


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])
def test_dates_of_one_usual_form_are_read_as_the_parts_of_any_date(form: str) -> None:
    days = [datetime(1899, 12, 31, 23, 59, 59), datetime(1970, 1, 1), datetime(2024, 2, 29, 12, 0, 1)]
    stamps = [day.strftime(form) for day in days]
    if form.endswith("%S"):
        stamps += [f"{stamps[0]}.000001", f"{stamps[2]}.25"]
    with duckdb.connect() as connection:
        connection.register("stamped", pa.table({"row": range(len(stamps)), "stamp": stamps}))
        usual, any_date = _plain_dates(connection, "stamped"), _iso_dates(())
        assert usual is not None
        usual_times, times = (
            connection.execute(f"SELECT {rule.sql}, {rule.rest} FROM stamped ORDER BY row").fetchall()
            for rule in (usual, any_date)
        )
        assert [time for time, _ in usual_times] == [time for time, _ in times]
        assert [1000 * rest for _, rest in usual_times] == [rest for _, rest in times]


@pytest.mark.parametrize(
    "stamp", ["12020-01-01", "-0044-03-15", "0044-03-15 (BC)", "2020-02-30", "infinity", "", " 2020-01-01", "2020-1-1"]
)
def test_a_date_of_another_form_is_left_to_the_rule_for_any_date(stamp: str) -> None:
    with duckdb.connect() as connection:
        connection.register("stamped", pa.table({"row": [1, 2], "stamp": ["2020-01-01", stamp]}))
        assert _plain_dates(connection, "stamped") is None
