"""Read a domain piece by piece as exports write it: its items, its interactions and its pictures."""
# N items of the domain, H interactions of one piece.

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmmrec.data.domain import Domain, items_table
from pmmrec.data.importers.named import Named
from pmmrec.data.splits import Split, SplitPart
from pmmrec.data.wording import cleaned
from pmmrec.modality import Modality

INTERACTIONS_AT_ONCE = 1 << 20
WORDS = [part.name.lower() for part in SplitPart]
IMAGES_FOLDER = "images"
_FILE_NAME = re.compile(r"[^\s./\\:*?\"<>|\x00-\x1f][^/\\:*?\"<>|\x00-\x1f]{0,199}")


class Piece(NamedTuple):
    """Interactions of a domain, in its order."""

    user_H: NDArray[np.int64]  # rows of users
    item_H: NDArray[np.int64]  # rows of items
    time_H: NDArray[np.int64] | None  # as the domain stores them; None: it has none
    part_H: NDArray[np.uint8] | None  # the `SplitPart` of each, where a split was asked for

    def ids(self, domain: Domain) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Ids of users and of items."""
        return domain.user_ids.take(pa.array(self.user_H)), domain.item_ids.take(pa.array(self.item_H))

    def words(self) -> list[str]:
        """The part of each interaction as `pmmrec data split --from` reads it."""
        return [] if self.part_H is None else [WORDS[part] for part in self.part_H.tolist()]


def pieces(domain: Domain, split: Split | None) -> Iterator[Piece]:
    """All interactions, some at a time."""
    for stretch in domain.sequences.stretches(with_times=domain.info.time_unit is not None):
        part_H = None if split is None else split.parts(stretch)
        user_H = stretch.first + np.repeat(np.arange(len(stretch.offset_B) - 1), np.diff(stretch.offset_B))
        for first in range(0, len(user_H), INTERACTIONS_AT_ONCE):
            here = slice(first, first + INTERACTIONS_AT_ONCE)
            time_H = None if stretch.time_H is None else stretch.time_H[here]
            item_H = stretch.item_H[here].astype(np.int64)
            yield Piece(user_H[here], item_H, time_H, None if part_H is None else part_H[here])


def item_batches(domain: Domain) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Items with all columns: the row of the first, and a batch. Texts are written so that an import gives them back.

    An import decodes HTML entities, so the `&` of a text that would read as one is written as an entity.
    """
    table = items_table(domain.folder, domain.info)
    for number in range(table.num_batches):
        batch = table.read(number)
        texts = [text if cleaned(text) == text else _escaped(text) for text in batch.column("text").to_pylist()]
        place = batch.schema.get_field_index("text")
        yield table.starts[number], batch.set_column(place, "text", pa.array(texts, pa.large_string()))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;")


def write_pictures(domain: Domain, folder: Path) -> str | None:
    """Write each stored image as `<item_id>.jpg`. Returns a line on those whose ids cannot name files, if any."""
    has_N = domain.has[Modality.IMAGE]
    folder.mkdir()
    ids, unnamed = domain.item_ids, Named()
    for row in np.flatnonzero(has_N).tolist():
        item_id = ids[row].as_py()
        if _FILE_NAME.fullmatch(item_id) is None or len(item_id.encode()) > 200:
            unnamed.add([item_id], np.ones(1, dtype=bool))
            continue
        (jpeg,) = domain.jpegs(np.array([row]))
        (folder / f"{item_id}.jpg").write_bytes(jpeg or b"")
    if not unnamed.count:
        return None
    return f"pictures left out, of items whose ids cannot name files: {unnamed}; `--kind parquet` holds them"
