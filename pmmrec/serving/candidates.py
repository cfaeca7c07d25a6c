"""Collect the candidates of a platform: the items of its domain, and new items without interactions."""
# N items of the catalogue, D width.

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pmmrec.data.contents import Contents
from pmmrec.data.domain import Domain
from pmmrec.errors import DataError
from pmmrec.evaluation.blend import Blend, BlendConfig
from pmmrec.evaluation.ranking import Seen
from pmmrec.evaluation.recommend import ListMaker
from pmmrec.models.recommender import Recommender
from pmmrec.zoo.checkpoint import Checkpoint

MAX_SHOWN = 5


@dataclass(frozen=True)
class EncodedItems:
    """A catalogue and its item vectors."""

    domain: Domain
    vectors_ND: Tensor  # float32, row i is item `domain.item_ids[i]`
    contents: Contents  # which items are equal, and which the model cannot read (their vectors are zeros)
    fingerprint: str  # of the items as the model reads them, stored features included

    @property
    def item_ids(self) -> list[str]:
        ids: list[str] = self.domain.item_ids.to_pylist()
        return ids


@dataclass(frozen=True)
class CandidateItems:
    """The items that may be recommended: those of a domain in its order, then new ones."""

    item_ids: pa.Array
    vectors_ND: Tensor
    contents: Contents

    @classmethod
    def of(cls, known: EncodedItems, new: EncodedItems | None = None) -> CandidateItems:
        """The items of a domain and of a table of new items; the two must be disjoint (see `check_new`).

        A new item with the same content as a known one is scored separately: the two may differ in the last digits.
        """
        ids = known.domain.item_ids
        if new is None:
            return cls(pa.chunked_array([ids]).combine_chunks(), known.vectors_ND, known.contents)
        new_ids = new.domain.item_ids
        contents = Contents(
            np.concatenate([known.contents.same_as_N, new.contents.same_as_N + len(ids)]),
            np.concatenate([known.contents.is_readable_N, new.contents.is_readable_N]),
        )
        joined = pa.chunked_array([*ids.chunks, *new_ids.chunks]).combine_chunks()
        return cls(joined, torch.cat((known.vectors_ND, new.vectors_ND)), contents)


def list_maker(
    recommender: Recommender,
    candidates: CandidateItems | EncodedItems,
    domain: Domain,
    k: int,
    seen: Seen,
    device: torch.device,
    blend: BlendConfig | None = None,
    **how: Any,
) -> ListMaker:
    """What makes the lists of users of a domain; all of its interactions are counted, new items have none.

    `how`: `sizes` and `threads` of the ListMaker.
    """
    num_items = len(candidates.vectors_ND)
    counts = None
    if recommender.scorer.reads_counts:
        counts = np.concatenate([domain.item_counts, np.zeros(num_items - domain.num_items, np.int64)])
    added = None if blend is None else Blend.of_domain(blend, domain, num_items)
    known: dict[str, Any] = {"counts": counts, "contents": candidates.contents, "blend": added}
    return ListMaker(recommender, candidates.vectors_ND, k, seen=seen, device=device, **known, **how)


def check_new(new: Domain, known: Domain) -> None:
    """DataError if a new item is already an item of the domain. Call it before anything is encoded."""
    both = new.item_ids.filter(pc.is_in(new.item_ids, value_set=known.item_ids))
    if len(both):
        raise DataError(
            f"--new-items: {len(both):,} of {len(new.item_ids):,} items are already items of {known.name}: "
            f"{', '.join(map(repr, both.slice(0, MAX_SHOWN).to_pylist()))}; leave them out, they are candidates anyway"
        )


def report_rejected(new: Domain, warn: Callable[[str], None]) -> None:
    """Warn about the rows and images of a table of new items that were rejected, with the reasons."""
    for kind in ("item", "image"):
        for reason, count in new.info.summary.rejected.get(kind, {}).items():
            warn(f"--new-items: {count:,} x {kind} left out: {reason}")
    for note in new.info.summary.notes:
        if note.startswith(("items:", "images:")):
            warn(f"--new-items: {note}")


def weights_name(checkpoint: Checkpoint) -> str:
    """A hash that changes with any file of the parts and any setting of the item encoder."""
    names = sorted(checkpoint.parts)
    index = checkpoint.index
    tree = {
        "parts": {name: checkpoint.parts[name].files for name in names},
        "adapted": {name: index.adapted[name].files for name in names if name in index.adapted},
        "adapters": index.adapters,
        "item_encoder": checkpoint.model_config.item_encoder.model_dump(mode="json"),
        "width": index.width,
    }
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
