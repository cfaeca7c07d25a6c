"""Import items without interactions, so that a model can read them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pmmrec.data.domain import Domain
from pmmrec.data.importers.source import Source, stream
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.errors import DataError
from pmmrec.progress import Progress

NAME = "new-items"
NOBODY = "nobody"


def import_new_items(items: Path, images: Path | None, folder: Path, progress: Progress | None = None) -> Domain:
    """A domain of the items of one table, by the rules of `import_table`; the caller removes `folder`, which holds it.

    A domain needs users, so one made-up user has touched each item once: do not use its sequences. Raises what
    `import_table` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    touched = folder / "interactions.parquet"
    with duckdb.connect() as connection:
        source = Source(items, connection)
        source.load("listed", {"item_id": source.as_id("item_id")})
        listed = stream(connection, f"SELECT '{NOBODY}' AS user_id, item_id FROM listed ORDER BY row")  # noqa: S608  ours
        pq.write_table(pa.Table.from_batches(listed), touched)
    task = TableImport(items=items, interactions=touched, images=images, name=NAME, out=folder / NAME, k_core=None)
    try:
        return import_table(task, progress)
    except DataError as error:
        told = str(error).replace(str(touched), str(items)).replace("no interaction can be used", "no item can be used")
        raise DataError(told) from error
