"""Items whose vectors are kept elsewhere: what a recommender needs to rank them without its item encoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pmmrec.contracts import ItemInputs, ItemVectors
from pmmrec.models import ItemEncoder


class StoredItems(ItemEncoder):
    """Stands in for an item encoder that is not built; it encodes nothing and has no parts."""

    def __init__(self, fields: frozenset[str], streams: Mapping[str, int]) -> None:
        """`fields`, `streams`: those of the item encoder that made the vectors."""
        super().__init__()
        self._fields, self._streams = fields, dict(streams)

    @property
    def fields(self) -> frozenset[str]:
        return self._fields

    @property
    def streams(self) -> Mapping[str, int]:
        return self._streams

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {}

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Always raises RuntimeError: the vectors of these items are kept."""
        raise RuntimeError(f"items: the vectors of these {items.num_items} items are kept; nothing encodes them here")
