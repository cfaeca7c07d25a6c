"""Read rows of Arrow files without holding the files in memory."""
# A table may be split over several files, each of which is a list of record batches.

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmmrec.data.disk import SharedFile
from pmmrec.data.info import DOMAIN_FILE
from pmmrec.errors import DataError

OFFSET_BYTES = 8  # large_list and large_string


class ArrowTable:
    """The rows of one table, in the order of its files, read batch by batch or, by `Cells`, one by one.

    Files are read, not mapped: pages of a map that were touched count as memory of this process. Everything read is
    checked. Raises DataError for files that cannot be read, lack a column, or have another number of rows.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        fields: Sequence[pa.Field],
        num_rows: int | None,
        advice: str = "import the domain again",
    ) -> None:
        """`fields`: the first columns that the table must have, in their order.

        `num_rows`: as the domain says; None: any number. `advice`: what to do about a file that is wrong.
        """
        self.paths, self._names, self._advice = list(paths), [field.name for field in fields], advice
        self._places: list[tuple[Path, int]] = []  # of each batch: its file, and its number in the file
        self.metadata: dict[bytes, bytes] = {}  # of the schema of the last file
        rows = [0]
        for path in self.paths:
            with _mapped(path, advice) as source:
                reader = pa.ipc.open_file(source)
                _check_fields(path, reader.schema, fields, advice)
                self.metadata = reader.schema.metadata or {}
                for number in range(reader.num_record_batches):
                    self._places.append((path, number))
                    rows.append(reader.get_batch(number).num_rows)
        self.starts: list[int] = np.cumsum(rows).tolist()  # number of rows before each batch, then of all rows
        if num_rows is not None and self.num_rows != num_rows:
            where = self.paths[0] if len(self.paths) == 1 else self.paths[0].parent
            said = f"{self.num_rows} rows where {DOMAIN_FILE} says {num_rows}"
            raise DataError(f"{where}: {said}; {advice}")

    @property
    def num_rows(self) -> int:
        return self.starts[-1]

    @property
    def num_batches(self) -> int:
        return len(self._places)

    def path(self, batch: int) -> Path:
        """The file that holds a batch."""
        return self._places[batch][0]

    def read(self, batch: int, names: Sequence[str] | None = None) -> pa.RecordBatch:
        """A checked copy of all columns of a batch, or of some in the order of the table; no id is missing."""
        path, number = self._places[batch]
        try:
            with pa.OSFile(str(path)) as source:
                columns = None if names is None else [self._names.index(name) for name in names]
                options = pa.ipc.IpcReadOptions(included_fields=columns)
                found = pa.ipc.open_file(source, options=options).get_batch(number)
            found.validate(full=True)  # a wrong offset or broken UTF-8 would crash the process later
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read as an Arrow file: {error}; {self._advice}") from error
        key = self._names[0]
        if key.endswith("_id") and key in found.schema.names and found.column(key).null_count:
            raise DataError(f"{path}: a {key} is missing; {self._advice}")
        return found

    def mapped(self, names: Sequence[str] | None = None) -> pa.Table:
        """Some columns, or all, as a checked memory map: only rows that are used take memory.

        The check reads the files and touches no page of the map.
        """
        for batch in range(self.num_batches):
            self.read(batch, names)
        release_memory()
        whole = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in self.paths]
        return pa.concat_tables(whole if names is None else [table.select(names) for table in whole])

    def has(self, name: str) -> NDArray[np.bool_]:
        """Which rows of a column have a value, `(rows,)`; the values are not read."""
        found = [np.empty(0, dtype=bool)]
        for path in self.paths:
            with _mapped(path) as source:
                reader = pa.ipc.open_file(source)
                for number in range(reader.num_record_batches):
                    column = reader.get_batch(number).column(name)
                    column.validate()
                    found.append(column.is_valid().to_numpy(zero_copy_only=False))
        return np.concatenate(found)

    def cells(self, name: str, *, may_lack: bool = False) -> Cells:
        """Random access to a column of lists, texts or bytes. `may_lack`: values may be missing; do not read those."""
        column = self._names.index(name)
        spans: list[_Span] = []
        for path in self.paths:
            file = SharedFile(path)
            with _mapped(path) as source:
                whole, reader = source.read_buffer(), pa.ipc.open_file(source)
                batches = map(reader.get_batch, range(reader.num_record_batches))
                spans += [_span(file, whole, batch.column(column), name, may_lack) for batch in batches]
        return Cells(self.starts, spans)


class _Span(NamedTuple):
    """Where a file stores a column of one record batch."""

    file: SharedFile
    offsets: int  # position of the first offset
    values: int  # position of the first value
    num_values: int
    value_bytes: int


class Cells:
    """Random access to a list or text column: a row costs two short reads."""

    def __init__(self, starts: Sequence[int], spans: Sequence[_Span]) -> None:
        self._starts, self._spans = list(starts), list(spans)

    def read(self, row: int) -> bytes:
        """The values of one row."""
        if not 0 <= row < self._starts[-1]:
            where = self._spans[0].file.path if self._spans else "an empty table"
            raise IndexError(f"{where}: no row {row}; there are {self._starts[-1]}")
        batch = bisect_right(self._starts, row) - 1
        span = self._spans[batch]
        packed = span.file.read(2 * OFFSET_BYTES, span.offsets + OFFSET_BYTES * (row - self._starts[batch]))
        first, end = struct.unpack("<qq", packed)
        if not 0 <= first <= end <= span.num_values:
            raise DataError(f"{span.file.path}: row {row} has a wrong offset; copy or import the domain again")
        return span.file.read(span.value_bytes * (end - first), span.values + span.value_bytes * first)

    def lengths(self, first: int, end: int) -> NDArray[np.int64]:
        """The number of values of each row from `first` to `end`, `(end - first,)`."""
        found = [np.empty(0, dtype=np.int64)]
        while first < end:
            batch = bisect_right(self._starts, first) - 1
            span, here = self._spans[batch], min(end, self._starts[batch + 1])
            position = span.offsets + OFFSET_BYTES * (first - self._starts[batch])
            offsets = np.frombuffer(span.file.read(OFFSET_BYTES * (here - first + 1), position), dtype="<i8")
            lengths = np.diff(offsets)
            if len(lengths) and (lengths.min() < 0 or offsets[0] < 0 or offsets[-1] > span.num_values):
                raise DataError(
                    f"{span.file.path}: a row of {first}..{here} has a wrong offset; import the domain again"
                )
            found.append(lengths)
            first = here
        return np.concatenate(found)


def release_memory() -> None:
    """Return memory that Arrow keeps after a pass over a large file to the system."""
    pa.default_memory_pool().release_unused()


@contextmanager
def _mapped(path: Path, advice: str = "import the domain again") -> Iterator[pa.MemoryMappedFile]:
    """The mapped file while its layout is read. Raises DataError where it is not an Arrow file."""
    try:
        with pa.memory_map(str(path)) as source:
            yield source
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as an Arrow file: {error}; {advice}") from error


def _check_fields(path: Path, schema: pa.Schema, fields: Sequence[pa.Field], advice: str) -> None:
    for place, field in enumerate(fields):
        if len(schema) <= place or schema.field(place).name != field.name or schema.field(place).type != field.type:
            found = f"has no column {field.name} of type {field.type} in place {place}"
            raise DataError(f"{path}: {found}; {advice}")


def _span(file: SharedFile, whole: pa.Buffer, column: pa.Array, name: str, may_lack: bool) -> _Span:
    """The positions of a column's buffers in its file, of which `whole` is the map."""
    values = column.values if pa.types.is_large_list(column.type) else None
    if (column.null_count and not may_lack) or (values is not None and values.null_count):
        what = f"a {name}" if values is None else f"one of the {name}, or an entry of one,"
        raise DataError(f"{file.path}: {what} is missing; import the domain again")
    held = column.buffers()[2] if values is None else values.buffers()[1]
    value_bytes = 1 if values is None else values.type.bit_width // 8
    num_values = 0 if held is None else held.size if values is None else len(values)
    offsets = _position(file.path, column.buffers()[1], whole)
    return _Span(file, offsets, _position(file.path, held, whole), num_values, value_bytes)


def _position(path: Path, buffer: pa.Buffer | None, whole: pa.Buffer) -> int:
    if buffer is None or not buffer.size:
        return 0
    position = int(buffer.address - whole.address)
    if not 0 <= position <= whole.size - buffer.size:
        raise DataError(f"{path}: is compressed, so single rows of it cannot be read; import the domain again")
    return position
