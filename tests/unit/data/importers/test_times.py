from datetime import date, datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


@pytest.mark.parametrize("stamp", ["2020-02-30", "2020-01-01T25:00", "epoch", "infinity", "01/02/2020", "1600000000"])
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
