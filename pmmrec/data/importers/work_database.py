"""Open a database for the work of an import: it keeps to a limit of memory, and never uses the network."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb

MEMORY_GB = 0.8  # of a database; the whole import needs some 400 MB more
NUM_THREADS = 4


@contextlib.contextmanager
def work_database(
    folder: Path, memory_gb: float = MEMORY_GB, num_threads: int = NUM_THREADS
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database in a new folder within `folder`, where it also writes what does not fit in memory."""
    place = Path(tempfile.mkdtemp(dir=folder))
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{int(memory_gb * 1e9)}B",
        "temp_directory": str(place / "spill"),
        "threads": num_threads,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "preserve_insertion_order": True,
        "arrow_large_buffer_size": True,
        "checkpoint_threshold": "1TB",  # a checkpoint would rewrite tables that are soon dropped
    }
    with duckdb.connect(":memory:", config=config) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection
