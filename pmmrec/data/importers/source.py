"""Read a file of a user into a table of DuckDB, without changing any value."""
# ruff: noqa: S608  statements contain no names or values of users: columns become column_0, ..., values parameters

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pmmrec.data.importers.columns import columns_like, hint
from pmmrec.data.importers.database import database_file, is_database
from pmmrec.data.importers.prepared import prepared
from pmmrec.data.importers.quoting import Quoting, quoting_of, unquoted
from pmmrec.data.importers.records import LINE, ORIGIN, plain_path
from pmmrec.data.importers.text_format import SEPARATORS, UNQUOTED, TextFormat, first_row, separator_of
from pmmrec.errors import DataError, MachineError

WHOLE_NUMBERS = re.compile(r"U?(TINYINT|SMALLINT|INTEGER|BIGINT|HUGEINT)")
NO_TEXTS = re.compile(r"BLOB|STRUCT|MAP|UNION|.*\]$", re.DOTALL)
MAX_EXPLAINED = 300  # characters
_CSV_LINE = re.compile(r"CSV Error on Line: (\d+)")
_CSV_REASON = re.compile(r"^(Expected Number of Columns.*|Value with unterminated quote.*|Maximum line size.*)", re.M)


@dataclass(frozen=True)
class TextRows:
    """How the rows of a text lie in its lines."""

    path: Path
    has_header: bool
    encloses: bool  # whether quote marks enclose values, which may then go on in the next line
    is_one_line_a_row: bool  # and no line is empty


@dataclass(frozen=True)
class Column:
    """A column of a source; SQL statements use `sql`, so that they never contain a name that a user chose."""

    name: str
    sql: str
    type: str  # of DuckDB
    in_nanoseconds: bool = False  # whether a parquet file stores times in nanoseconds
    stored: str = ""  # its name in the file; empty where it is made of several

    @property
    def holds_bytes(self) -> bool:
        """Whether values are bytes or contain bytes."""
        return re.search(r"\bBLOB\b", self.type) is not None


class Source:
    """A file of a user: its columns, its hash, and its rows as a table."""

    def __init__(
        self,
        given: Path | str,
        connection: duckdb.DuckDBPyConnection,
        text_format: TextFormat | None = None,
        work: Path | None = None,
    ) -> None:
        """`given`: a file, or the address of a database; `work`: a folder for converted files.

        Raises DataError for a missing file, an unknown type, broken text or broken columns.
        """
        self.path = database_file(str(given)) if is_database(given) else Path(given)  # what messages call it
        self._connection, self._work = connection, work
        self._format = text_format or TextFormat()
        self._file = prepared(given, self._format, self._room)
        self.record = self._file.record
        self._quoting, self._separator, self.num_rows = Quoting(), "", 0
        self.origin = self.path.name  # the file that its rows are from; another one where a kind converted it
        self.line_query: tuple[str, dict[str, str]] | None = None  # gives row and line, where a converted file has them
        self._hidden: set[str | None] = set()
        self._read = self._text_columns() if self._file.is_text else self._parquet_columns()
        self._made = list[Column]()
        self.columns = [one for one in self._read if one.name not in self._hidden]

    def _room(self) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._work))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    @property
    def parquet(self) -> Path | None:
        """The parquet file that holds the rows; None for a text."""
        return None if self._file.is_text else self._file.path

    @property
    def text(self) -> TextRows | None:
        """How rows lie in the lines of a text; None for another file, and where DuckDB alone can tell."""
        quoting = self._quoting
        if self._file.lines is not None:
            return TextRows(self._file.lines, has_header=False, encloses=False, is_one_line_a_row=False)
        if not self._file.is_text or quoting.num_records is None:
            return None
        is_plain = quoting.num_records == quoting.num_lines == quoting.num_read
        has_header = not self._format.columns
        return TextRows(self._file.path, has_header, quoting.encloses, is_plain)

    def column(self, name: str) -> Column | None:
        """The column called exactly `name`, None where there is none."""
        return next((column for column in self.columns if column.name == name), None)

    def original(self, name: str) -> Column | None:
        """The column that the file itself calls so, None where there is none."""
        return next((column for column in self._read if column.name == name), None)

    def put(self, column: Column, instead_of: str | None) -> None:
        """Add a column that is made of those of the file; its name, and `instead_of`, no longer name others."""
        self._made.append(column)
        self._hidden |= {column.name, instead_of}
        self.columns = [*self._made, *(one for one in self._read if one.name not in self._hidden)]

    def required(self, name: str) -> Column:
        """The column called exactly `name`. Raises what `require` raises."""
        self.require(name)
        return next(column for column in self.columns if column.name == name)

    def like(self, name: str) -> list[str]:
        """Names of columns that may be meant by `name`."""
        return columns_like(name, [column.name for column in self.columns])

    def require(self, *names: str) -> None:
        """Raise DataError where columns are missing; it says what `lacking` says."""
        lacking = self.lacking(*names)
        if lacking is not None:
            raise DataError(lacking)

    def lacking(self, *names: str) -> str | None:
        """What to say of columns that are missing: their names, the columns found, and those that may be meant."""
        missing = [name for name in names if self.column(name) is None]
        if not missing:
            return None
        found = [column.name for column in self.columns]
        what = f"no column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}"
        return f"{self.path}: {what}, found {', '.join(map(repr, found))}; {hint(missing, found)}"

    def notes(self, role: str) -> list[str]:
        """What a user should know about how the file was read; `role` says what it holds. Call it after `load`."""
        notes = [f"{role}: {done}" for done in self._file.how]
        if self._file.is_text and self._separator not in (self._format.delimiter, SEPARATORS.get(self._file.suffix)):
            notes.append(f"{role}: values are separated by {self._separator!r}")
        return notes + self._quoting.notes(role, self.num_rows)

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
            raise DataError(f"{self.path}: {explain(str(error))}") from error
        # rowid follows the order of the file: preserve_insertion_order is on
        self._connection.execute(f"CREATE VIEW {table} AS SELECT rowid + 1 AS row, * FROM {table}_unnumbered")
        (num_rows,) = self._connection.execute(f"SELECT count(*) FROM {table}_unnumbered").fetchone() or (0,)
        if num_rows == 0:
            raise DataError(f"{self.path}: names its columns but has no row of data")
        self.num_rows, expected = int(num_rows), self._quoting.num_records
        expected = None if expected is None else expected - (not self._format.columns)
        if expected is not None and num_rows != expected:
            found = f"{expected:,} rows are in the file, but {num_rows:,} were read"
            place = f" from line {self._quoting.first_odd} on" if self._quoting.first_odd else ""
            raise DataError(f"{self.path}: {found}; check quote marks and line ends{place}, or save it as parquet")
        return self.num_rows

    def _scan(self) -> str:
        if not self._file.is_text:
            names = ", ".join(column.sql for column in self._read)
            return f"read_parquet($path, hive_partitioning=false) AS source({names})"
        columns = ", ".join(f"'{column.sql}': 'VARCHAR'" for column in self._read)
        quote = '"' if self._quoting.encloses else ""
        has_header = "false" if self._format.columns else "true"
        dialect = f"delim=$separator, quote='{quote}', escape='{quote}', header={has_header}, auto_detect=false"
        return f"read_csv($path, columns={{{columns}}}, {dialect}, compression='none')"

    def _parameters(self) -> dict[str, str]:
        parameters = {"path": plain_path(self._file.path)}
        return {**parameters, "separator": self._separator} if self._file.is_text else parameters

    def _text_columns(self) -> list[Column]:
        path, given = self._file.path, self._format
        try:
            self._separator = separator_of(path, self._file.suffix, given)
            if given.quote == "none":
                self._quoting = unquoted(path)
            else:
                is_strict = self._file.suffix in UNQUOTED
                self._quoting = quoting_of(path, self._separator, is_strict=is_strict, shown=self.path)
            names = given.columns or first_row(path, self._separator, has_quotes=self._quoting.encloses)
        except csv.Error as error:
            raise DataError(f"{self.path}: line 1: {error}; it must name the columns") from error
        return self._checked([(name, "VARCHAR") for name in names])

    def _parquet_columns(self) -> list[Column]:
        statement = "DESCRIBE SELECT * FROM read_parquet($path, hive_partitioning=false)"
        try:
            schema = pq.read_schema(self._file.path)  # unchanged names: DuckDB renames a column that occurs twice
            if not schema.names:
                raise DataError(f"{self.path}: its first line is empty; it must name the columns")
            described = self._connection.execute(statement, self._parameters()).fetchall()
        except (duckdb.Error, pa.ArrowException, OSError) as error:  # pyarrow tells a broken file by OSError
            raise DataError(f"{self.path}: cannot be read as parquet: {explain(str(error))}") from error
        origin = (schema.metadata or {}).get(ORIGIN)
        if origin is not None:
            self.origin = origin.decode()
            if LINE in schema.names:
                self._hidden.add(LINE)
                rows = "read_parquet($path, file_row_number=true)"
                query = f"SELECT file_row_number + 1 AS row, CAST({LINE} AS BIGINT) AS line FROM {rows}"
                self.line_query = query, self._parameters()
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
        return [Column(name, f"column_{place}", kind, stored=name) for place, (name, kind) in enumerate(named)]


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


def explain(message: str) -> str:
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
    told = message.splitlines()[0]
    return told if len(told) <= MAX_EXPLAINED else f"{told[:MAX_EXPLAINED]}..."  # it may quote a value of megabytes
