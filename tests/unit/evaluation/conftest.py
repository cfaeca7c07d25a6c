"""Tiny domains on disk, and the split of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pmmrec.data.domain import Domain, Filters, ImportSummary
from pmmrec.data.split import Split
from pmmrec.data.write import DomainFolder

MakeSplit = Callable[[list[list[int]], int], Split]


@pytest.fixture
def make_split(tmp_path: Path) -> MakeSplit:
    """A split of the domain with these sequences: users u0, u1, ... and items i0 .. i(N-1) with titles."""

    def make(sequences: list[list[int]], num_items: int) -> Split:
        folder = tmp_path / f"domain{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        writer = DomainFolder(folder)
        item_ids = [f"i{row}" for row in range(num_items)]
        titles = [f"title {row}" for row in range(num_items)]
        writer.write_items(iter([pa.record_batch({"item_id": item_ids, "text": titles})]), [])
        users = pa.array([f"u{user}" for user in range(len(sequences))], pa.large_string())
        rows = pa.record_batch({"user_id": users, "items": pa.array(sequences, pa.large_list(pa.int32()))})
        writer.write_sequences(iter([rows]), has_times=False)
        summary = ImportSummary(
            num_items_read=num_items, num_interactions_read=0, kept={}, rejected={}, num_pictures_ignored=0
        )
        writer.seal("tiny", filters=Filters(k_core=None), image_side=None, time_unit=None, sources={}, summary=summary)
        return Split(Domain.open(folder))

    return make
