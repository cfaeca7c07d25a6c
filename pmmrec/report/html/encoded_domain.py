"""Encode the items and users of one domain with a checkpoint."""
# Q histories, N items of the catalogue, D width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.data.contents import Contents
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Split
from pmmrec.evaluation.catalogue import users_at_once
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.evaluation.queries import queries_after
from pmmrec.evaluation.ranking import Seen
from pmmrec.evaluation.recommend import top_k
from pmmrec.models.recommender import Recommender
from pmmrec.progress import bars
from pmmrec.serving.encoding import encode
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender


@dataclass(frozen=True)
class SampledHistories:
    """Histories of some users of a domain, oldest first: those of user i are items[offsets[i]:offsets[i+1]]."""

    users: NDArray[np.int64]  # their rows in the domain
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]

    @classmethod
    def of(cls, users: Sequence[int], each: list[NDArray[np.int32]]) -> SampledHistories:
        """Join one array per user; none may be empty."""
        offsets = np.concatenate([[0], np.cumsum([len(items) for items in each])]).astype(np.int64)
        return cls(np.array(users, dtype=np.int64), offsets, np.concatenate(each).astype(np.int32))

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class EncodedDomain:
    """The model of a checkpoint and its vectors of the items of a domain."""

    domain: Domain
    split: Split
    recommender: Recommender
    vectors_ND: Tensor
    contents: Contents

    @classmethod
    def open(cls, checkpoint: Checkpoint, domain: Domain, cache: Path, device: torch.device) -> EncodedDomain:
        """Load the model and encode the whole catalogue."""
        split = checkpoint.split_of(domain)
        recommender = load_recommender(checkpoint, [domain.catalogue], [split.graph]).to(device)
        encoder = recommender.item_encoder
        with bars() as progress:
            reader = ItemReader([domain], encoder.reads, cache, progress, max_unreadable=1.0)
            encoded = encode(checkpoint, recommender, reader, domain, cache=cache, device=device, progress=progress)
        return cls(domain, split, recommender, encoded.vectors_ND.to(device), encoded.contents)

    def item_vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of the items in `rows`, `(R, D)`."""
        vectors: NDArray[np.float32] = self.vectors_ND[torch.from_numpy(rows).to(self.vectors_ND.device)].cpu().numpy()
        return vectors

    def user_vectors(self, histories: SampledHistories) -> NDArray[np.float32]:
        """The state of each user after the history, `(Q, D)`."""
        chunk, parts = users_at_once(self.domain.num_items), []
        model, device = self.recommender, self.vectors_ND.device
        with evaluating(model):
            catalogue = model.catalogue(self.vectors_ND)
        for start in range(0, len(histories), chunk):
            offsets = histories.offsets[start : start + chunk + 1].astype(np.int64)
            some = histories.items[offsets[0] : offsets[-1]]
            with evaluating(model):
                query = queries_after(
                    *(model.user_encoder, catalogue.items, offsets - offsets[0], some, device),
                    user_index_B=histories.users[start : start + chunk],
                    user_MD=catalogue.user_MD,
                )
            parts.append(query.hidden_KD.float().cpu().numpy())
        return np.concatenate(parts)

    def best(self, histories: SampledHistories, k: int, seen: Seen) -> list[list[int]]:
        """The top-k item rows of each user, best first, ranked by the rules of the test."""
        counts, chunk = self.split.train_counts, users_at_once(self.domain.num_items)
        offsets, items = histories.offsets, histories.items
        model, k = self.recommender, min(k, self.domain.num_items)
        rules: dict[str, Any] = {"counts": counts, "contents": self.contents, "seen": seen, "chunk": chunk}
        shown = top_k(model, self.vectors_ND, offsets, items, k, **rules, users=histories.users)
        return [
            [int(row) for row, filled in zip(rows, is_filled, strict=True) if filled]
            for top in shown
            for rows, is_filled in zip(top.item_index_BK.tolist(), top.is_filled_BK.tolist(), strict=True)
        ]
