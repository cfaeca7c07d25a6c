"""Find and open the tables that a domain stores for its splits: parts of interactions, and impressions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pmmrec.data.arrow import ArrowTable
from pmmrec.errors import DataError

CONTENT_KEY = b"pmmrec.content"  # of the schema's metadata: `content_hash` of the columns
LACKING = {  # what a split is of no use for that lacks a part
    "train": "no model can be trained on this split",
    "validation": "runs on this split are refused, since they choose the best epoch by validation",
    "test": "runs on this split need rank_test=false",
}


def stored_in(folder: Path) -> list[Path]:
    """The tables in a folder, by name."""
    return sorted(folder.glob("*.arrow"))


def refuse_missing(path: Path, domain: Path, what: str, command: str) -> None:
    """DataError that lists what is there, where a domain has no table `path`. `what`: such as "split"."""
    if not path.is_file():
        there = ", ".join(other.stem for other in stored_in(path.parent)) or "none"
        raise DataError(
            f"{domain}: data.split: has no {what} {path.stem!r}; there are: {there}; `pmmrec data {command} {domain} "
            f"--from FILE --name {path.stem}` stores some"
        )


def content_hash(columns: Iterable[pa.Array | pa.ChunkedArray]) -> str:
    """SHA-256 of the values of columns, and of the lengths of lists, however they are cut into batches."""
    digest = hashlib.sha256()
    for column in columns:
        is_list = pa.types.is_large_list(column.type)
        for part in [pc.list_value_length(column), pc.list_flatten(column)] if is_list else [column]:
            for chunk in part.chunks if isinstance(part, pa.ChunkedArray) else [part]:
                digest.update(chunk.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def is_changed(path: Path) -> bool:
    """Whether a table has another content than when it was stored; False if its file does not say, as older ones."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    said = (table.schema.metadata or {}).get(CONTENT_KEY)
    return said is not None and said.decode(errors="replace") != content_hash(table.columns)


def open_stored(path: Path, fields: Sequence[pa.Field], key: bytes, of_domain: str, what: str) -> ArrowTable:
    """The table in a file, which was stored for one domain: its schema says `of_domain` under `key`.

    Raises DataError for a file that cannot be read, lacks a column, or was stored for another domain.
    """
    table = ArrowTable([path], fields, None, f"store the {what} again")
    if table.metadata.get(key, b"").decode(errors="replace") != of_domain:
        raise DataError(f"{path}: was stored for other items or sequences than the domain's; store the {what} again")
    return table
