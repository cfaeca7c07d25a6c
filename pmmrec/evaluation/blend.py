"""Add co-occurrence and popularity to the scores of a model."""
# Q queries, q queries of a slice, N items of the catalogue. B users of one chunk, C candidates, c of one tile.

from __future__ import annotations

import json
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from pmmrec.data.domain import Domain
from pmmrec.data.splits import Holdout, Split
from pmmrec.errors import MachineError
from pmmrec.evaluation.baselines import MAX_HELD, ItemKNN
from pmmrec.evaluation.ranking import Rows, ScoreRows
from pmmrec.evaluation.scan import WriteScores
from pmmrec.packing import Ints
from pmmrec.settings import Config

if TYPE_CHECKING:
    from scipy import sparse

MAX_WEIGHT = 1e9  # scores stay finite in float32


class BlendConfig(Config):
    """Settings of a blend, such as `--blend '{cooccurrence: 40, popularity: 8}'`."""

    cooccurrence: float = Field(0.0, ge=0, le=MAX_WEIGHT, description="Weight of the score of item-kNN.")
    popularity: float = Field(0.0, ge=0, le=MAX_WEIGHT, description="Weight of log(1 + how often an item was touched).")
    num_neighbours: int | None = Field(None, ge=1, description="Of item-kNN; null: all items.")
    shrinkage: float = Field(10.0, ge=0, description="Of item-kNN.")

    @model_validator(mode="after")
    def _neighbours_are_read(self) -> Self:
        if not self.cooccurrence and self.model_fields_set & {"num_neighbours", "shrinkage"}:
            raise ValueError("num_neighbours and shrinkage have no effect without cooccurrence; leave them out")
        return self

    def written(self) -> str:
        """The settings as one line of YAML, without those at their default."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True))


class Blend:
    """What known interactions add to the score of an item i for a history h: a KNN(h, i) + b log(1 + count of i).

    KNN is the item-kNN of the baselines, `ItemKNN`, and counts are those of the same interactions. Both weights are on
    the scale of the model's scores without popularity. Nothing is learned. An item that occurs in none of the
    interactions has no co-occurrence: it keeps the score of the model.

    Args:
        config: The settings.
        offsets: Whose interactions are counted: user u has `items[offsets[u]:offsets[u + 1]]`.
        items: Rows of items.
        num_items: N. Items behind those of the domain were never touched.
    """

    def __init__(self, config: BlendConfig, offsets: Rows, items: Rows, num_items: int) -> None:
        self.config = config
        counts = np.bincount(items, minlength=num_items)
        self._prior_N = torch.from_numpy(config.popularity * np.log1p(counts)).float()
        knn: dict[str, Any] = {"num_neighbours": config.num_neighbours, "shrinkage": config.shrinkage}
        self._knn = ItemKNN(offsets, items, num_items, **knn) if config.cooccurrence else None

    @classmethod
    def of_split(cls, config: BlendConfig, split: Split) -> Blend:
        """Count the training part of a split. MachineError where it does not fit in memory."""
        refuse_large(split.domain)
        return cls(config, split.train_offsets, split.train_items, split.domain.num_items)

    @classmethod
    def of_domain(cls, config: BlendConfig, domain: Domain, num_items: int) -> Blend:
        """Count all interactions of a domain. MachineError where they do not fit in memory."""
        refuse_large(domain)
        stretches = list(domain.sequences.stretches())
        lengths = np.concatenate([np.diff(stretch.offset_B) for stretch in stretches])
        items = np.concatenate([stretch.item_H for stretch in stretches])
        return cls(config, np.concatenate([[0], np.cumsum(lengths)]), items, num_items)

    def added_to(self, score: ScoreRows, holdout: Holdout) -> Callable[[slice], Tensor]:
        """Scores `(q, N)` of a model for slices of a holdout's queries, with what the blend adds."""
        cooccurring = self._cooccurring(holdout.history_offsets, holdout.history_items)

        def blended(rows: slice) -> Tensor:
            score_qN = score(rows)
            near_qN = torch.from_numpy(cooccurring(rows).toarray()).to(score_qN)
            return score_qN + near_qN + self._prior_N.to(score_qN)

        return blended

    def asked(self, query: Sized, offset_B: Ints, item_H: Ints, item_C: Ints) -> BlendedQuery:
        """The queries of some users with what co-occurrence adds to the candidates `item_C`."""
        near_BN = self._cooccurring(offset_B, item_H)(slice(0, len(offset_B) - 1))
        return BlendedQuery(query, near_BN[:, item_C].tocsc())

    def writing(self, write: WriteScores, item_C: Ints) -> WriteScores:
        """A function that writes scores of candidates with what the blend adds; queries are those of `asked`."""
        prior_C = self._prior_N[torch.from_numpy(item_C)]

        def blended(query: BlendedQuery, columns: slice, score_Bc: Tensor) -> None:
            write(query.query, columns, score_Bc)
            near = query.near_BC[:, columns].tocoo()
            places = tuple(torch.from_numpy(place.astype(np.int64)).to(score_Bc.device) for place in near.coords)
            score_Bc.index_put_(places, torch.from_numpy(near.data).to(score_Bc), accumulate=True)
            score_Bc += prior_C[columns].to(score_Bc.device)

        return blended

    def _cooccurring(self, offsets: Rows, items: Rows) -> Callable[[slice], Any]:
        """The weighted scores of item-kNN after some histories, sparse."""
        from scipy.sparse import csr_array

        if self._knn is None:
            return lambda rows: csr_array((rows.stop - rows.start, len(self._prior_N)))
        after = self._knn.after(offsets, items)
        return lambda rows: self.config.cooccurrence * after(rows)


@dataclass(frozen=True)
class BlendedQuery:
    """Queries as the scorer reads them, and what co-occurrence adds to each candidate."""

    query: Any
    near_BC: sparse.csc_array

    def __len__(self) -> int:
        return len(self.query)


def refuse_large(domain: Domain) -> None:
    """MachineError for a domain whose interactions do not fit in memory."""
    if domain.num_interactions > MAX_HELD:
        raise MachineError(
            f"--blend: {domain.name} has {domain.num_interactions:,} interactions, and co-occurrence holds all in "
            f"memory, {MAX_HELD:,} at most; leave it out"
        )
