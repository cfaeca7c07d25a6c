"""Read a csv, tsv or parquet file of a user into a table of DuckDB, without changing any value."""
# ruff: noqa: S608  statements contain no names or values of users: columns become column_0, ..., values parameters

from __future__ import annotations

import codecs
import csv
import dataclasses
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pmmrec.data.importers.columns import columns_like, hint
from pmmrec.data.importers.quoting import Quoting, quoting_of
from pmmrec.data.info import SourceFile
from pmmrec.errors import DataError, MachineError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
OTHER_SEPARATORS = ";\t|,"
UNQUOTED = ".tsv"  # files of this kind often contain quote marks as text
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
PARQUET = ".parquet"
WHOLE_NUMBERS = re.compile(r"U?(TINYINT|SMALLINT|INTEGER|BIGINT|HUGEINT)")
# The first bytes of files that are not text, whatever their suffix.
SIGNATURES = (
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"PK\x03\x04", "a zip file or a workbook (xlsx); unpack it, or save the sheet as csv"),
    (b"PAR1", "a parquet file; end its name in .parquet"),
    (codecs.BOM_UTF16_LE, "UTF-16 text; save the file as UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16 text; save the file as UTF-8"),
)
NO_TEXTS = re.compile(r"BLOB|STRUCT|MAP|UNION|.*\]$", re.DOTALL)
_CSV_LINE = re.compile(r"CSV Error on Line: (\d+)")
_CSV_REASON = re.compile(r"^(Expected Number of Columns.*|Value with unterminated quote.*|Maximum line size.*)", re.M)


@dataclass(frozen=True)
class Column:
    """A column of a source; SQL statements use `sql`, so that they never contain a name that a user chose."""

    name: str
    sql: str
    type: str  # of DuckDB
    in_nanoseconds: bool = False  # whether a parquet file stores times in nanoseconds

    @property
    def holds_bytes(self) -> bool:
        """Whether values are bytes or contain bytes."""
        return re.search(r"\bBLOB\b", self.type) is not None


class Source:
    """A file of a user: its columns, its hash, and its rows as a table."""

    def __init__(self, path: Path, connection: duckdb.DuckDBPyConnection) -> None:
        """Raises DataError for a missing file, an unknown type, broken text or broken columns."""
        self.path = path
        self._connection = connection
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        suffix = path.suffix.lower()
        if suffix not in (*SEPARATORS, PARQUET):
            advice = "unpack it first" if suffix in COMPRESSED else "give .csv, .tsv or .parquet"
            raise DataError(f"{path}: unknown type {suffix!r}; {advice}")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty; its first line must name the columns")
        self._separator = SEPARATORS.get(suffix)
        self.record = _read_through(path, is_text=self._separator is not None)
        self._quoting, self._num_rows = Quoting(), 0
        if self._separator is not None:
            self._quoting = quoting_of(path, self._separator, is_strict=suffix == UNQUOTED)
        self.columns = self._parquet_columns() if self._separator is None else self._text_columns(self._separator)

    def column(self, name: str) -> Column | None:
        """The column called exactly `name`, None where there is none."""
        return next((column for column in self.columns if column.name == name), None)

    def required(self, name: str) -> Column:
        """The column called exactly `name`. Raises what `require` raises."""
        self.require(name)
        return next(column for column in self.columns if column.name == name)

    def like(self, name: str) -> list[str]:
        """Names of columns that may be meant by `name`."""
        return columns_like(name, [column.name for column in self.columns])

    def require(self, *names: str) -> None:
        """Raise DataError where columns are missing; it names them, the columns found, and those that may be meant."""
        missing = [name for name in names if self.column(name) is None]
        if not missing:
            return
        found = [column.name for column in self.columns]
        advice = hint(missing, found)
        other = next((sign for sign in OTHER_SEPARATORS if sign in found[0] and sign != self._separator), None)
        if self._separator is not None and len(found) == 1 and other is not None:
            advice = f"columns seem to be separated by {other!r}, save them with {self._separator!r}"
        what = f"no column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}"
        raise DataError(f"{self.path}: {what}, found {', '.join(map(repr, found))}; {advice}")

    def notes(self, role: str) -> list[str]:
        """What a user should know about how the file was read; `role` says what it holds. Call it after `load`."""
        return self._quoting.notes(role, self._num_rows)

    def as_id(self, name: str) -> str:
        """SQL of the ids in a column, as text. Raises DataError for types that cannot be ids, such as floats."""
        column = self.required(name)
        if column.type not in ("VARCHAR", "UUID", '"NULL"') and not WHOLE_NUMBERS.fullmatch(column.type):
            raise DataError(f"{self.path}: column {name!r} is {column.type}; ids are text or whole numbers, cast it")
        return f"CAST({column.sql} AS VARCHAR)"

    def as_text(self, name: str) -> str:
        """SQL of the texts in a column. Raises DataError for bytes and nested values, which have no obvious text."""
        column = self.required(name)
        if NO_TEXTS.match(column.type):
            raise DataError(f"{self.path}: column {name!r} is {column.type[:60]}; texts are strings, cast it")
        return f"CAST({column.sql} AS VARCHAR)"

    def load(self, table: str, expressions: dict[str, str]) -> int:
        """Make `table` with `row` (1 is the first row of data) and the named expressions. Returns the number of rows.

        Raises DataError for a file without rows, and for a line that breaks the format.
        """
        selected = ", ".join(f"{sql} AS {name}" for name, sql in expressions.items())
        statement = f"CREATE TABLE {table}_unnumbered AS SELECT {selected} FROM {self._scan()}"
        try:
            self._connection.execute(statement, self._parameters())
        except duckdb.Error as error:
            if is_of_machine(error):
                raise
            raise DataError(f"{self.path}: {_explain(str(error))}") from error
        # rowid follows the order of the file: preserve_insertion_order is on
        self._connection.execute(f"CREATE VIEW {table} AS SELECT rowid + 1 AS row, * FROM {table}_unnumbered")
        (num_rows,) = self._connection.execute(f"SELECT count(*) FROM {table}_unnumbered").fetchone() or (0,)
        if num_rows == 0:
            raise DataError(f"{self.path}: names its columns but has no row of data")
        self._num_rows, expected = int(num_rows), self._quoting.num_records
        if expected is not None and num_rows != expected - 1:
            found = f"{expected - 1:,} rows are in the file, but {num_rows:,} were read"
            place = f" from line {self._quoting.first_odd} on" if self._quoting.first_odd else ""
            raise DataError(f"{self.path}: {found}; check quote marks and line ends{place}, or save it as parquet")
        return self._num_rows

    def _scan(self) -> str:
        if self._separator is None:
            names = ", ".join(column.sql for column in self.columns)
            return f"read_parquet($path, hive_partitioning=false) AS source({names})"
        columns = ", ".join(f"'{column.sql}': 'VARCHAR'" for column in self.columns)
        quote = '"' if self._quoting.encloses else ""
        dialect = f"delim=$separator, quote='{quote}', escape='{quote}', header=true, auto_detect=false"
        return f"read_csv($path, columns={{{columns}}}, {dialect}, compression='none')"

    def _parameters(self) -> dict[str, str]:
        plain_path = re.sub(
            r"([*?\[])", r"[\1]", str(self.path)
        )  # otherwise DuckDB would read all files that match a pattern
        parameters = {"path": plain_path}
        return parameters if self._separator is None else {**parameters, "separator": self._separator}

    def _text_columns(self, separator: str) -> list[Column]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                encloses = self._quoting.encloses
                reader = csv.reader(
                    file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if encloses else csv.QUOTE_NONE
                )
                names = next(reader, [])
        except csv.Error as error:
            raise DataError(f"{self.path}: line 1: {error}; it must name the columns") from error
        return self._checked([(name, "VARCHAR") for name in names])

    def _parquet_columns(self) -> list[Column]:
        statement = "DESCRIBE SELECT * FROM read_parquet($path, hive_partitioning=false)"
        try:
            described = self._connection.execute(statement, self._parameters()).fetchall()
            schema = pq.read_schema(self.path)  # unchanged names: DuckDB renames a column that occurs twice
        except (duckdb.Error, pa.ArrowException) as error:
            raise DataError(f"{self.path}: cannot be read as parquet: {_explain(str(error))}") from error
        fine = {field.name for field in schema if pa.types.is_timestamp(field.type) and field.type.unit == "ns"}
        columns = self._checked([(name, str(row[1])) for name, row in zip(schema.names, described, strict=True)])
        return [dataclasses.replace(column, in_nanoseconds=column.name in fine) for column in columns]

    def _checked(self, named: list[tuple[str, str]]) -> list[Column]:
        names = [name for name, _ in named]
        if not any(name.strip() for name in names):
            raise DataError(f"{self.path}: its first line is empty; it must name the columns")
        twice = sorted({name for name in names if name.strip() and names.count(name) > 1})
        if twice:
            raise DataError(f"{self.path}: column {twice[0]!r} occurs twice; rename or remove one")
        return [Column(name, f"column_{place}", kind) for place, (name, kind) in enumerate(named)]


def _refuse_other_kinds(path: Path, begin: bytes) -> None:
    """Raise DataError for a file of another kind with the suffix of a text file."""
    for signature, kind in SIGNATURES:
        if begin.startswith(signature):
            raise DataError(f"{path}: is {kind}")


def _read_through(path: Path, *, is_text: bool) -> SourceFile:
    """Size and SHA-256 of a file. Raises DataError for a text that is not UTF-8."""
    digest, num_bytes, num_lines = hashlib.sha256(), 0, 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                if is_text and num_bytes == 0:
                    _refuse_other_kinds(path, block)
                digest.update(block)
                num_bytes += len(block)
                if is_text:
                    decoder.decode(block)
                    num_lines += block.count(b"\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line = num_lines + error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line}: not UTF-8 text; save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return SourceFile(file_name=path.name, sha256=digest.hexdigest(), num_bytes=num_bytes)


def stream(connection: duckdb.DuckDBPyConnection, query: str) -> Iterator[pa.RecordBatch]:
    """Rows of a query, batch by batch; the connection stays free for other statements."""
    try:
        with connection.cursor() as cursor:
            yield from pa.RecordBatchReader.from_stream(cursor.sql(query))
    except pa.ArrowException as error:  # DuckDB failed; bad data was found before, when rows were read
        raise MachineError(f"the import's database failed: {error}; raise memory_gb or free disk") from error


def is_of_machine(error: duckdb.Error) -> bool:
    """Whether DuckDB ran out of memory or disk, as opposed to meeting bad data."""
    return isinstance(error, duckdb.OutOfMemoryException) or "No space left" in str(error)


def _explain(message: str) -> str:
    """The useful part of a message of DuckDB, which may have twenty lines, and a remedy."""
    line, reason = _CSV_LINE.search(message), _CSV_REASON.search(message)
    if line and reason and reason[1].startswith("Maximum line size"):
        return f"line {line[1]}: {reason[1].rstrip('.')}; cut the text, or close a quote that is open"
    if line and reason:
        return f"line {line[1]}: {reason[1]}; quote fields that hold separators, quotes or line ends"
    if "Could not convert Timestamp" in message:
        return (
            f"{message.splitlines()[0]}: a time lies outside the years -290308 to 294247; mend or remove that row, or "
            "store the times as whole numbers"
        )
    if "CSV" in message:
        return "rows do not follow one csv format; check quotes, and that all lines end in the same way"
    return message.splitlines()[0]
