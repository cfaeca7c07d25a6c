"""Convert the timestamps of a source to int64, and keep the order of those that become equal."""
# ruff: noqa: S608  statements contain no values of users

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import duckdb

from pmmrec.data.importers.source import WHOLE_NUMBERS, Column
from pmmrec.data.importers.units import Spread, check_units
from pmmrec.errors import DataError, RecipeError

TimeUnit = Literal["as given", "milliseconds"]
MILLISECONDS_FROM = 1e11  # as seconds this is the year 5138, as milliseconds 1973
FINER_FROM = 1e14  # as milliseconds this is the year 5138, as microseconds 1973
FLOAT_DIGITS = 2**24  # above it a 32-bit float has no fractions and skips whole numbers
WHOLE = "times: whole numbers, kept as given"
DATES = "times: ISO dates, kept as milliseconds since 1970 (UTC)"
BIGINT = "TRY_CAST(stamp AS BIGINT)"
EXACT = "DECIMAL(38, 12)"  # 26 digits before the point
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_ZONE = r"[Zz]|UTC|[+-](?:0\d|1[0-8])(?::?[0-5]\d)?"  # Java allows offsets up to 18 hours; those in use reach 14
# Whole numbers as computers write them, which are read without a regular expression.
_PLAIN = f"CASE WHEN CAST({BIGINT} AS VARCHAR) = stamp THEN {BIGINT} END"
_ISO = rf"^(\d{{4}}-\d{{2}}-\d{{2}})(?:[Tt ](\d{{2}}:\d{{2}}(?::\d{{2}}(?:\.\d{{1,9}})?)?) ?({_ZONE})?)?$"


@dataclass(frozen=True)
class TimeRule:
    """How one column of timestamps is read. Interactions are ordered by `sql`, then by `rest`."""

    sql: str  # BIGINT, NULL where a timestamp cannot be read
    unit: TimeUnit
    note: str
    rest: str = "CAST(0 AS TINYINT)"  # a whole number: the part of a time that `sql` drops
    warnings: tuple[str, ...] = ()


def time_rule(
    connection: duckdb.DuckDBPyConnection, table: str, column: Column, where: str, time_format: str | None = None
) -> TimeRule:
    """The rule for the column `stamp` of `table`, chosen by all its rows; `where` names the file in messages.

    Whole numbers are kept. Fractions of seconds become milliseconds, fractions of milliseconds are rounded. ISO dates
    become milliseconds, in UTC where they name no zone. The dropped part of a time still orders interactions. A row
    that does not fit the rule of most rows has no time. Raises DataError for other types and for mixed units.
    `time_format` says how texts are written, as strptime does: they are read by it alone.
    """
    kind = column.type
    if time_format is not None:
        return _formatted(connection, column, where, time_format)
    if kind == "DATE" or kind.startswith("TIMESTAMP"):
        return _instants(column)
    if WHOLE_NUMBERS.fullmatch(kind) or kind == '"NULL"':
        return _whole_rule(BIGINT, check_units(Spread.of(connection, table, BIGINT), where))
    if kind in ("FLOAT", "DOUBLE"):
        number = "CASE WHEN isfinite(CAST(stamp AS DOUBLE)) THEN CAST(stamp AS DOUBLE) END"
        return _number_rule(connection, table, number, where, is_short=kind == "FLOAT")
    if kind.startswith("DECIMAL"):
        return _number_rule(connection, table, f"TRY_CAST(stamp AS {EXACT})", where)
    if kind != "VARCHAR":
        raise DataError(f"{where}: column 'timestamp' is {kind}; give seconds, milliseconds or ISO dates")
    return _text_rule(connection, table, where)


def _text_rule(connection: duckdb.DuckDBPyConnection, table: str, where: str) -> TimeRule:
    """The rule of numbers or of dates, whichever are more."""
    plain = Spread.of(connection, table, _PLAIN)
    if not plain.num_unread:
        return _whole_rule(BIGINT, check_units(plain, where))
    dates = _plain_dates(connection, table)
    if dates is not None:
        return dates
    text = "trim(stamp)"
    number = f"CASE WHEN regexp_full_match({text}, '{_NUMBER}') THEN TRY_CAST({text} AS {EXACT}) END"
    figures = f"count({number}), count(nullif({_part_of_iso('day')}, '')), count(nullif({_part_of_iso('zone')}, ''))"
    num_numbers, num_dates, num_zoned = _one_row(connection, f"SELECT {figures} FROM {table}")
    if num_dates <= num_numbers:
        return _number_rule(connection, table, number, where)
    warning = f"times: {num_dates - num_zoned:,} of {num_dates:,} dates name no zone and are read as UTC"
    return _iso_dates((warning,) if 0 < num_zoned < num_dates else ())


def _plain_dates(connection: duckdb.DuckDBPyConnection, table: str) -> TimeRule | None:
    """The rule of dates that are all written in one of the usual ways, which DuckDB's own cast reads; None for others.

    `_iso_dates` gives the same times, several times slower.
    """
    (first,) = _one_row(connection, f"SELECT first(stamp) FILTER (stamp IS NOT NULL) FROM {table}")
    if len(first) == len("2020-12-31"):
        instant, written = "CAST(TRY_CAST(stamp AS DATE) AS TIMESTAMP)", "CAST(TRY_CAST(stamp AS DATE) AS VARCHAR)"
    else:
        instant, written = "TRY_CAST(stamp AS TIMESTAMP)", "CAST(TRY_CAST(stamp AS TIMESTAMP) AS VARCHAR)"
        written = f"replace({written}, ' ', 'T')" if "T" in first else written
        written = f"{written} || 'Z'" if first.endswith("Z") else written
    is_common = "substr(stamp, 5, 1) = '-' AND substr(stamp, 11, 2) <> ' ('"  # a year of four digits, and not BC
    query = f"SELECT count(stamp) = count(*) FILTER ({written} = stamp AND {is_common}) FROM {table}"
    return _of_instants(instant, DATES) if _one_row(connection, query)[0] else None


def _formatted(connection: duckdb.DuckDBPyConnection, column: Column, where: str, time_format: str) -> TimeRule:
    """Texts that follow a format of strptime; in UTC where it has no zone."""
    if column.type != "VARCHAR":
        raise DataError(f"{where}: column 'timestamp' is {column.type}, not text, so a time format has no effect")
    quoted = "'" + time_format.replace("'", "''") + "'"
    try:
        connection.execute(f"SELECT try_strptime('', {quoted})")
    except duckdb.Error as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise RecipeError(f"time format {time_format!r}: {reason}; such as '%d/%m/%Y %H:%M:%S'") from error
    micros = f"epoch_us(try_strptime(trim(stamp), {quoted}))"
    below = f"CAST({micros} % 1000 < 0 AS BIGINT)"  # DuckDB divides towards zero
    note = f"times: read as {time_format!r}, kept as milliseconds since 1970 (UTC)"
    return TimeRule(f"({micros} // 1000 - {below})", "milliseconds", note, f"({micros} % 1000 + 1000 * {below})")


def _instants(column: Column) -> TimeRule:
    """Dates and timestamps of parquet, with or without a zone, floored to milliseconds."""
    # A cast of nanoseconds to TIMESTAMP would round to microseconds, or fail where there is a zone.
    is_fine = column.type.endswith("_NS")
    instant = f"TRY_CAST(stamp AS {'TIMESTAMP_NS' if is_fine else 'TIMESTAMP'})"
    blunt = ("times: this DuckDB reads them to the microsecond; rows that are closer keep the order of the file",)
    note = "times: dates, kept as milliseconds since 1970 (UTC)"
    warnings = blunt if column.in_nanoseconds and not is_fine else ()
    return _of_instants(instant, note, warnings, is_fine=is_fine)


def _of_instants(instant: str, note: str, warnings: tuple[str, ...] = (), *, is_fine: bool = False) -> TimeRule:
    """`instant`: SQL of timestamps of DuckDB; `is_fine`: in nanoseconds."""
    units, per_millisecond = (f"epoch_ns({instant})", 1_000_000) if is_fine else (f"epoch_us({instant})", 1000)
    is_below = f"CAST({units} % {per_millisecond} < 0 AS BIGINT)"  # DuckDB divides towards zero
    sql = f"CASE WHEN isfinite({instant}) THEN {units} // {per_millisecond} - {is_below} END"
    rest = f"{units} % {per_millisecond} + {per_millisecond} * {is_below}"
    return TimeRule(sql, "milliseconds", note, rest, warnings)


def _whole_rule(whole: str, *warnings: str | None) -> TimeRule:
    """`whole`: SQL of BIGINT."""
    return TimeRule(whole, "as given", WHOLE, warnings=tuple(told for told in warnings if told is not None))


def _number_rule(
    connection: duckdb.DuckDBPyConnection, table: str, number: str, where: str, *, is_short: bool = False
) -> TimeRule:
    """`number`: SQL of the numbers, NULL where there is none; `is_short`: they come from 32-bit floats."""
    doubtful = check_units(Spread.of(connection, table, number), where)
    warnings: tuple[str, ...] = () if doubtful is None else (doubtful,)
    figures = "count(*) FILTER (n <> trunc(n)), approx_quantile(abs(CAST(n AS DOUBLE)), 0.5)"
    num_broken, usual = _one_row(connection, f"SELECT {figures} FROM (SELECT {number} AS n FROM {table})")
    if is_short and (usual or 0) > FLOAT_DIGITS:
        warnings += ("times: 32-bit floats, which hold 7 digits: times close to one another have become equal",)
    if num_broken == 0:
        return _whole_rule(f"TRY_CAST({number} AS BIGINT)", *warnings)
    if usual >= MILLISECONDS_FROM:
        unit: TimeUnit = "milliseconds" if usual < FINER_FROM else "as given"
        what = "milliseconds" if unit == "milliseconds" else "the unit"
        rest = f"TRY_CAST(round(({number} - round({number})) * 1000000000) AS BIGINT)"
        sql = f"TRY_CAST(round({number}) AS BIGINT)"
        return TimeRule(sql, unit, f"times: fractions of {what}, rounded off", rest, warnings)
    seconds = f"floor({number})"
    milliseconds = f"(({number} - {seconds}) * 1000)"
    rounded = f"CAST(round({milliseconds}) AS HUGEINT)"
    sql = f"TRY_CAST(CAST(TRY_CAST({seconds} AS BIGINT) AS HUGEINT) * 1000 + {rounded} AS BIGINT)"
    rest = f"TRY_CAST(round(({milliseconds} - round({milliseconds})) * 1000000000) AS BIGINT)"
    return TimeRule(sql, "milliseconds", "times: fractions of seconds, kept as milliseconds", rest, warnings)


def _iso_dates(warnings: tuple[str, ...]) -> TimeRule:
    """DuckDB's own cast drops the offset from UTC and digits below a microsecond, so the parts are read here."""
    day, clock, zone = (_part_of_iso(name) for name in ("day", "clock", "zone"))
    to_the_second = f"coalesce(nullif(split_part({clock}, '.', 1), ''), '00:00')"
    local = f"epoch_ms(TRY_CAST({day} || ' ' || {to_the_second} AS TIMESTAMP))"
    nanoseconds = f"CAST(rpad(split_part({clock}, '.', 2), 9, '0') AS BIGINT)"
    digits = f"rpad(replace(substr({zone}, 2), ':', ''), 4, '0')"
    minutes = f"(60 * TRY_CAST(substr({digits}, 1, 2) AS BIGINT) + TRY_CAST(substr({digits}, 3, 2) AS BIGINT))"
    sign = f"(1 - 2 * CAST(starts_with({zone}, '-') AS BIGINT))"
    offset = f"{sign} * coalesce({minutes}, 0)"  # Z and UTC hold no digits
    sql = f"{local} - 60000 * {offset} + {nanoseconds} // 1000000"
    return TimeRule(sql, "milliseconds", DATES, f"{nanoseconds} % 1000000", warnings)


def _part_of_iso(name: str) -> str:
    """SQL of a part of an ISO date, empty where there is none."""
    return f"regexp_extract(trim(stamp), '{_ISO}', ['day', 'clock', 'zone']).{name}"


def _one_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    return connection.execute(query).fetchone() or ()
