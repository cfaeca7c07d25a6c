"""Write json files, lines of Python literals, Arrow files and workbooks as parquet, every value unchanged."""
# ruff: noqa: S608  statements contain no values of users: names of columns are escaped

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pmmrec.data.importers.unpacking import unpacked
from pmmrec.data.importers.work_database import work_database
from pmmrec.errors import DataError, not_installed

ROWS_AT_ONCE = 20_000
MAX_LITERAL_BYTES = 1_000_000  # of a line: `ast` takes up to a hundred times as much memory
SAMPLE_LINES = 1_000
ORIGIN = b"pmmrec.origin"  # in the metadata of a table that a kind has written: the name of the user's file
LINE = "__line__"  # a column of such a table: the line of that file
_LISTS_OF_SCALARS = re.compile(r"(VARCHAR|BIGINT|DOUBLE|BOOLEAN|UUID|DATE|TIMESTAMP|TIME|HUGEINT|UBIGINT)\[\]")
_JSON_PLACE = re.compile(r'Malformed JSON in file ".*?", at (byte \d+ in (?:record/value|line) \d+): (.*?)\.')
How = tuple[str, ...]


def write_json(path: Path, shown: Path, target: Path) -> How:
    """Objects of a json file, one a line or in a list. Words and whole numbers stay as written; lists stay lists.

    DuckDB writes numbers with a point or an exponent anew: 7.50 is read as 7.5.

    Lines that are Python literals, such as those of the Amazon and Steam data, are read as such. `shown` is what
    messages call the file.
    """
    if _are_literals(path):
        return ("its lines are Python literals", *write_rows(_literals(path, shown), target))
    source = "read_json($path, compression='uncompressed'"
    parameters = {"path": plain_path(path)}
    try:
        with work_database(target.parent) as connection:
            described = connection.execute(f"DESCRIBE SELECT * FROM {source}, sample_size=-1)", parameters).fetchall()
            kinds = {str(name): _kept_as(str(kind)) for name, kind, *_ in described}
            columns = ", ".join(f"{_literal(name)}: '{kind}'" for name, kind in kinds.items())
            rows = connection.sql(f"SELECT * FROM {source}, columns={{{columns}}})", params=parameters)
            batches_to(pa.RecordBatchReader.from_stream(rows), target)
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException):
            raise
        found = _JSON_PLACE.search(str(error))
        told = f"{found[1]}: {found[2]}" if found else str(error).splitlines()[0]
        raise DataError(
            f"{shown}: cannot be read as json: {told}; give one object a line, or a list of objects"
        ) from error
    return ()


def write_shards(paths: Sequence[Path], target: Path, shown: Path) -> Path:
    """Write Arrow or parquet files of the same columns as one table."""
    try:
        writer = None
        for path in paths:
            if path.suffix == ".parquet":
                with pq.ParquetFile(path) as file:
                    writer = _add(writer, file.schema_arrow, file.iter_batches(), target)
            else:
                with pa.OSFile(str(path)) as source:
                    reader = _arrow_reader(source)
                    writer = _add(writer, reader.schema, reader, target)
        if writer is not None:
            writer.close()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{shown}: {path.name} cannot be read as part of the table: {error}") from error
    return target


def _add(
    writer: pq.ParquetWriter | None, schema: pa.Schema, batches: Iterable[pa.RecordBatch], target: Path
) -> pq.ParquetWriter:
    writer = writer or pq.ParquetWriter(target, schema)
    for batch in batches:
        writer.write_batch(batch)
    return writer


def _arrow_reader(source: pa.NativeFile) -> pa.RecordBatchReader:
    """The checked batches of a file or a stream. It is read, not mapped: a broken file ends a process that maps it."""
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    if is_file:
        file = pa.ipc.open_file(source)
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
        return pa.RecordBatchReader.from_batches(file.schema, map(_checked, batches))
    stream = pa.ipc.open_stream(source)
    return pa.RecordBatchReader.from_batches(stream.schema, map(_checked, stream))


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate(full=True)  # a wrong offset or broken UTF-8 would crash the process later
    return batch


def write_arrow(path: Path, shown: Path, target: Path) -> How:
    """An Arrow or Feather file, or a stream of Arrow."""
    try:
        with pa.OSFile(str(path)) as source:
            batches_to(_arrow_reader(source), target)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{shown}: cannot be read as an Arrow file: {error}") from error
    return ()


def write_workbook(path: Path, shown: Path, target: Path) -> How:
    """The first sheet of a workbook, whose first row names the columns; numbers as a text shows them."""
    try:
        import openpyxl
    except ImportError as error:
        raise not_installed(f"{shown}: reading a workbook", ["openpyxl"], "xlsx") from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # a library of parsers, which may raise anything on broken files
        raise DataError(f"{shown}: cannot be read as a workbook: {error}; save the sheet as csv") from error
    if not book.worksheets:
        raise DataError(f"{shown}: has no sheet of cells; save the table as csv")
    sheet, others = book.worksheets[0], [one.title for one in book.worksheets[1:]]
    rows = _rows_of(sheet, shown)
    names = [_cell(value) or "" for value in next(rows, ())]
    filled = (row for row in rows if any(value is not None for value in row))
    named = ({name: value for name, value in itertools.zip_longest(names, row) if name} for row in filled)
    write_rows(named, target, [name for name in names if name])
    return (f"the first sheet, {sheet.title!r}, is read, not {', '.join(map(repr, others))}",) if others else ()


def _rows_of(sheet: Any, shown: Path) -> Iterator[tuple[Any, ...]]:
    """Rows of a sheet; they end at their last cell, so some are shorter than others."""
    try:
        yield from sheet.iter_rows(values_only=True)
    except Exception as error:  # cells are parsed as they are read
        raise DataError(f"{shown}: sheet {sheet.title!r} cannot be read: {error}; save it as csv") from error


JSON = (".json", ".jsonl", ".ndjson")
WRITERS: Mapping[str, Callable[[Path, Path, Path], How]] = {
    **dict.fromkeys(JSON, write_json),
    **dict.fromkeys((".arrow", ".feather"), write_arrow),
    ".xlsx": write_workbook,
}
WHOLE_FILES = (".arrow", ".feather", ".xlsx", ".parquet")  # are compressed inside, if at all


def write_stream(rows: Any, target: Path, shown: str, *, hidden: str) -> None:
    """Write anything that gives Arrow batches: tables of pyarrow, pandas, polars, relations of DuckDB.

    Columns whose names begin with `hidden` are left out. Raises DataError for rows that make no table.
    """
    try:
        reader = pa.RecordBatchReader.from_stream(rows)
        kept = [k for k, name in enumerate(reader.schema.names) if not name.startswith(hidden)]
        schema = pa.schema([reader.schema.field(k) for k in kept])
        batches_to(pa.RecordBatchReader.from_batches(schema, (batch.select(kept) for batch in reader)), target)
    except (TypeError, ValueError, pa.ArrowException, duckdb.Error) as error:
        raise DataError(f"{shown}: cannot be read as a table: {error}") from error


def batches_to(reader: pa.RecordBatchReader, target: Path, origin: str | None = None) -> None:
    """Write batches as parquet; `origin` is the name of the user's file, where a kind has converted it."""
    schema = pa.schema([field.with_type(_writable(field.type)) for field in reader.schema], reader.schema.metadata)
    if origin is not None:
        schema = schema.with_metadata({ORIGIN: origin.encode()})
    with pq.ParquetWriter(target, schema) as writer:
        for batch in reader:
            columns = [_as_type(column, kind) for column, kind in zip(batch.columns, schema.types, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _writable(kind: pa.DataType) -> pa.DataType:
    """The type itself, or for categories of polars, which pyarrow does not write, the same with texts as of pandas."""
    if pa.types.is_dictionary(kind) and kind.value_type == pa.string_view():
        return pa.dictionary(kind.index_type, pa.large_string(), kind.ordered)
    return kind


def _as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    return pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(kind.value_type), ordered=kind.ordered)


def write_rows(
    rows: Iterable[Mapping[str, Any]], target: Path, names: list[str] | None = None, origin: str | None = None
) -> How:
    """Rows of any values as columns of text; lists stay lists where all values of the column are such.

    Columns are those of the first `ROWS_AT_ONCE` rows unless they are named; later ones are left out and told. `origin`
    is the name of the user's file, whose lines a column `LINE` may hold.
    """
    rows = iter(rows)
    some = list(itertools.islice(rows, ROWS_AT_ONCE))
    if names is None:
        names = list(dict.fromkeys(name for row in some for name in row))
    lists = {name for name in names if any(row.get(name) for row in some) and _holds_lists(name, some)}
    schema = pa.schema([(name, pa.list_(pa.string()) if name in lists else pa.string()) for name in names])
    if origin is not None:
        schema = schema.with_metadata({ORIGIN: origin.encode()})
    late: dict[str, None] = {}
    with pq.ParquetWriter(target, schema) as writer:
        while some:
            late |= dict.fromkeys(name for row in some for name in row if name not in schema.names)
            columns = [[_listed(row.get(n)) if n in lists else _cell(row.get(n)) for row in some] for n in names]
            writer.write_table(pa.table(columns, schema=schema))
            some = list(itertools.islice(rows, ROWS_AT_ONCE))
    told = f"columns that first occur after row {ROWS_AT_ONCE:,} are left out: {', '.join(late)}"
    return (told,) if late else ()


def _holds_lists(name: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    return all(isinstance(row.get(name), list | None) for row in rows)


def _listed(value: Any) -> list[str | None] | None:
    return [_cell(one) for one in value] if isinstance(value, list) else None if value is None else [_cell(value)]


def _cell(value: Any) -> str | None:
    """A value as text: whole numbers without a point, dates as ISO, lists and objects as json."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)


def _are_literals(path: Path) -> bool:
    """Whether the first line is a dict as Python writes it, and no json."""
    first = next(_lines(path), b"")
    if not first.lstrip().startswith((b"{'", b"{u'", b'{"')) or len(first) > MAX_LITERAL_BYTES:
        return False
    try:
        json.loads(first)
    except RecursionError:
        return False
    except ValueError:
        try:
            return isinstance(ast.literal_eval(first.decode()), dict)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return False
    return False


def _literals(path: Path, shown: Path) -> Iterator[dict[str, Any]]:
    """The dict in each line. Nothing is executed: `literal_eval` knows only values."""
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        if len(line) > MAX_LITERAL_BYTES:
            raise DataError(f"{shown}: line {number}: longer than {MAX_LITERAL_BYTES:,} bytes; cut it")
        try:
            value = ast.literal_eval(line.decode())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(
                f"{shown}: line {number}: not a Python literal: {line[:60]!r}; mend or remove it"
            ) from error
        if not isinstance(value, dict):
            raise DataError(f"{shown}: line {number}: a {type(value).__name__} instead of a dict; remove it")
        yield {str(name): one for name, one in value.items()}


def _lines(path: Path) -> Iterator[bytes]:
    held = b""
    for block in unpacked(path, None):
        *whole, held = (held + block).split(b"\n")
        yield from whole
        if len(held) > MAX_LITERAL_BYTES:
            yield held  # too long, which the caller says
            return
    if held:
        yield held


def _kept_as(kind: str) -> str:
    return "VARCHAR[]" if _LISTS_OF_SCALARS.fullmatch(kind) else "VARCHAR"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def plain_path(path: Path) -> str:
    """A path as DuckDB must be given it: otherwise it would read all files that match a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
