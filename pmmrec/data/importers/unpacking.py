"""Read the bytes of a file, compressed or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pmmrec.errors import DataError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
BLOCK_BYTES = 1 << 20
# A compressed file that grows this much is refused: texts shrink to a tenth, seldom to a hundredth.
MAX_GROWTH = 400
GROWTH_FROM_BYTES = 1_000_000_000


def unpacked(path: Path, compression: str | None) -> Iterator[bytes]:
    """Blocks of the bytes of a file. Raises DataError for a broken archive, and one that grows without end."""
    num_bytes = 0
    try:
        limit = max(GROWTH_FROM_BYTES, MAX_GROWTH * path.stat().st_size)
        with path.open("rb") if compression is None else pa.input_stream(str(path), compression=compression) as file:
            while block := file.read(BLOCK_BYTES):
                num_bytes += len(block)
                if compression and num_bytes > limit:
                    raise DataError(f"{path}: grows to more than {limit:,} bytes; unpack it yourself if that is right")
                yield block
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
