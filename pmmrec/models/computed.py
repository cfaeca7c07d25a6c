"""Items that no longer change: their vectors were computed once and are looked up."""
# Shapes: U distinct items, N items of a domain, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pmmrec.contracts import FieldSpec, ItemInputs, ItemVectors
from pmmrec.models import ItemEncoder
from pmmrec.models.recommender import unpacked


class Computed(ItemEncoder):
    """Stands in for an item encoder of which nothing learns; its parts, and so its checkpoints, are the same.

    Vectors that rank are kept: an objective that compares fields has nothing to learn here.
    """

    vectors_ND: Tensor
    start_of_domain: Tensor

    def __init__(self, encoder: ItemEncoder, vectors_ND: Sequence[Tensor]) -> None:
        """`vectors_ND`: of every domain of the run, in its order."""
        super().__init__()
        self.encoder = encoder
        sizes = [len(vectors) for vectors in vectors_ND]
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        self.register_buffer("vectors_ND", torch.cat(list(vectors_ND)), persistent=False)
        self.register_buffer("start_of_domain", torch.tensor(starts, device=vectors_ND[0].device), persistent=False)

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        return self.encoder.reads

    @property
    def knows_ids(self) -> bool:
        return self.encoder.knows_ids

    @property
    def streams(self) -> Mapping[str, int]:
        return self.encoder.streams

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return self.encoder.parts

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items, as the encoder would give them; it is not asked."""
        packed_UW = self.vectors_ND[self.start_of_domain[items.domain_U] + items.row_U]
        return replace(unpacked(packed_UW, self.streams), has_U=items.has_U)
