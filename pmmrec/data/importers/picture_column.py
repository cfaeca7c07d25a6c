"""Read pictures from a column of bytes in a parquet file, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pmmrec.data.importers.source import Source
from pmmrec.errors import DataError

COLUMN = "image"
BYTES, PATH = "bytes", "path"  # the fields of a picture in files of Hugging Face datasets
ROWS_AT_ONCE = 32
BUFFER_BYTES = 1 << 20


class PictureColumn:
    """The column `image` of a table of items: bytes, or a struct with a field `bytes`."""

    def __init__(self, source: Source, *, is_struct: bool, has_path: bool) -> None:
        self._source, self._is_struct = source, is_struct
        column = source.required(COLUMN)
        self._stored, held = column.stored, column.sql
        self.has_bytes = f"({held}.{BYTES} IS NOT NULL)" if is_struct else f"({held} IS NOT NULL)"  # SQL
        self.has_path_alone = f"(NOT {self.has_bytes} AND {held}.{PATH} IS NOT NULL)" if has_path else "false"  # SQL

    @classmethod
    def of(cls, source: Source) -> PictureColumn | None:
        """None where the table has no such column, or one of another type."""
        column = source.column(COLUMN)
        if source.parquet is None or column is None or not column.stored:
            return None
        kind = pq.read_schema(source.parquet).field(column.stored).type
        if _is_bytes(kind):
            return cls(source, is_struct=False, has_path=False)
        names = [field.name for field in kind] if pa.types.is_struct(kind) else []
        if BYTES not in names or not _is_bytes(kind.field(BYTES).type):
            return None
        return cls(source, is_struct=True, has_path=PATH in names)

    def read(self, rows: Iterable[int]) -> Iterator[bytes | None]:
        """The bytes of these rows (1 is the first, ascending), in one pass over the file. Raises DataError."""
        numbered = enumerate(self._all(), start=1)
        for wanted in rows:
            yield next(data for row, data in numbered if row == wanted)

    def _all(self) -> Iterator[bytes | None]:
        name = f"{self._stored}.{BYTES}" if self._is_struct else self._stored
        try:
            with pq.ParquetFile(self._source.parquet, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=[name]):
                    column = batch.column(0)
                    yield from (pc.struct_field(column, BYTES) if self._is_struct else column).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self._source.path}: column {COLUMN!r} cannot be read: {error}") from error


def _is_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
