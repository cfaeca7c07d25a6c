"""How the timestamps of a source become int64."""
# ruff: noqa: S608  statements are built of our own words only

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import duckdb

from pmmrec.data.importers.source import WHOLE_NUMBERS, Column
from pmmrec.errors import DataError

TimeUnit = Literal["as given", "milliseconds"]
MILLISECONDS_FROM = 1e11  # as seconds this is the year 5138, as milliseconds 1973
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_ISO = r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?) ?(Z|[+-]\d{2}(?::?\d{2})?)?)?$"


@dataclass(frozen=True)
class TimeRule:
    """How one column of timestamps is read."""

    sql: str  # BIGINT, NULL where a timestamp cannot be read
    unit: TimeUnit
    note: str


def time_rule(connection: duckdb.DuckDBPyConnection, table: str, column: Column, where: str) -> TimeRule:
    """The rule for the column `stamp` of `table`, judged by all its rows; `where` stands in messages.

    Whole numbers are kept as they are. Fractions of seconds become milliseconds, fractions of milliseconds are rounded
    off. ISO dates become milliseconds, in UTC where they name no zone. A row that breaks the rule of most has no time.
    """
    kind = column.type
    if kind == "DATE" or kind.startswith("TIMESTAMP"):
        instant = "TRY_CAST(stamp AS TIMESTAMP)"
        sql = f"CASE WHEN isfinite({instant}) THEN epoch_ms({instant}) END"
        return TimeRule(sql, "milliseconds", "times: dates, kept as milliseconds since 1970 (UTC)")
    if WHOLE_NUMBERS.fullmatch(kind) or kind == '"NULL"':
        return TimeRule("TRY_CAST(stamp AS BIGINT)", "as given", "times: whole numbers, kept as given")
    if kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
        return _number_rule(connection, table, "CAST(NULL AS BIGINT)", _finite("TRY_CAST(stamp AS DOUBLE)"))
    if kind != "VARCHAR":
        raise DataError(f"{where}: column 'timestamp' is {kind}; give seconds, milliseconds or ISO dates")
    text = "trim(stamp)"
    whole = f"CASE WHEN regexp_full_match({text}, '[+-]?[0-9]+') THEN TRY_CAST({text} AS BIGINT) END"
    number = f"CASE WHEN regexp_full_match({text}, '{_NUMBER}') THEN {_finite(f'TRY_CAST({text} AS DOUBLE)')} END"
    instant = _iso_milliseconds(text)
    num_numbers, num_instants = _one_row(connection, f"SELECT count({number}), count({instant}) FROM {table}")
    if num_instants > num_numbers:
        return TimeRule(instant, "milliseconds", "times: ISO dates, kept as milliseconds since 1970 (UTC)")
    return _number_rule(connection, table, whole, number)


def _number_rule(connection: duckdb.DuckDBPyConnection, table: str, whole: str, number: str) -> TimeRule:
    """`whole`: SQL of numbers written without a fraction, exact. `number`: SQL of any number, as DOUBLE."""
    figures = "count(*) FILTER (n <> trunc(n)), approx_quantile(abs(n), 0.5)"
    num_broken, usual = _one_row(connection, f"SELECT {figures} FROM (SELECT {number} AS n FROM {table})")
    if num_broken == 0:
        sql = f"coalesce({whole}, TRY_CAST({number} AS BIGINT))"
        return TimeRule(sql, "as given", "times: whole numbers, kept as given")
    if usual >= MILLISECONDS_FROM:
        sql = f"coalesce({whole}, TRY_CAST(round({number}) AS BIGINT))"
        return TimeRule(sql, "milliseconds", "times: fractions of milliseconds, rounded off")
    note = "times: fractions of seconds, kept as milliseconds"
    return TimeRule(f"TRY_CAST(round({number} * 1000) AS BIGINT)", "milliseconds", note)


def _finite(number: str) -> str:
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def _iso_milliseconds(text: str) -> str:
    """SQL of the milliseconds of an ISO date. DuckDB's own cast drops the offset from UTC, so it is taken off here."""
    parts = f"regexp_extract({text}, '{_ISO}', ['day', 'clock', 'zone'])"
    clock = f"coalesce(nullif({parts}.clock, ''), '00:00')"
    local = f"epoch_ms(TRY_CAST({parts}.day || ' ' || {clock} AS TIMESTAMP))"
    digits = f"rpad(replace(substr({parts}.zone, 2), ':', ''), 4, '0')"
    minutes = f"(60 * CAST(substr({digits}, 1, 2) AS BIGINT) + CAST(substr({digits}, 3, 2) AS BIGINT))"
    signed = f"CASE WHEN {parts}.zone[1] = '-' THEN -{minutes} ELSE {minutes} END"
    offset = f"CASE WHEN {parts}.zone IN ('', 'Z') THEN 0 ELSE {signed} END"
    return f"CASE WHEN regexp_full_match({text}, '{_ISO}') THEN {local} - 60000 * {offset} END"


def _one_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[int, int]:
    first, second = connection.execute(query).fetchone() or (0, 0)
    return first, second
