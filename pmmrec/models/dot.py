"""Score items by the dot product with a user's state, or by the cosine."""
# Shapes: K queries, N items, C candidates, D width.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, Query
from pmmrec.models import Scorer, scorers
from pmmrec.precision import widened
from pmmrec.settings import PartConfig


class DotConfig(PartConfig):
    """Settings of the dot product."""

    type: Literal["dot"] = "dot"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"popularity": 1.0},
        {"popularity": 0.5, "temperature": "sqrt_width"},
        {"similarity": "cosine"},
        {"similarity": "cosine", "popularity": 0.5, "temperature": 0.07},
    )
    similarity: Literal["dot", "cosine"] = Field(
        "dot", description="cosine: states and items are divided by their norms (UniSRec, VQRec)."
    )
    popularity: float = Field(
        0.0, ge=0, description="Weight of log(1 + how often an item was touched) in the score; 1 undoes what DAP takes."
    )
    temperature: Annotated[float, Field(gt=0)] | Literal["sqrt_width"] = Field(
        1.0, description="Divides the dot product before popularity is added: the temperature of the objective."
    )

    @model_validator(mode="after")
    def _temperature_matters(self) -> Self:
        if self.temperature != 1 and not self.popularity:
            raise ValueError("temperature: has no effect on a ranking without popularity; leave it out")
        return self


@scorers.register("dot", DotConfig)
class Dot(Scorer):
    """The dot product of a queried state `(K, D)` and an item vector `(N, D)`, or their cosine; a prior may be added.

    What DAP trains (eq. 5 of https://arxiv.org/abs/2312.09602); the paper ranks without a prior. In-batch negatives
    come as often as items are popular, so DAP without a log q correction learns log p(item | user) - log q(item): what
    this user wants more than others do. Its sum with log q ranks by p(item | user). With `logq` or `catalogue_ce`
    nothing is missing and `popularity` stays 0.

    With `similarity: cosine` both sides are unit vectors, as UniSRec (https://arxiv.org/abs/2206.05941) and VQRec
    (https://arxiv.org/abs/2210.12316) train and rank; the temperature that divides it in training is that of the
    objective.

    Example:
        model: {scorer: {type: dot, popularity: 1}}
    """

    def __init__(self, config: DotConfig, context: BuildContext) -> None:
        super().__init__()
        self.popularity, self.reads_counts = config.popularity, config.popularity > 0
        self.unit_states = config.similarity == "cosine"
        self.temperature = math.sqrt(context.width) if isinstance(config.temperature, str) else config.temperature

    def forward(self, query: Query, items: ItemVectors, candidate_KC: Tensor | None = None) -> Tensor:
        """Dot products or cosines, `(K, N)` or `(K, C)`."""
        hidden_KD, item_ND = self.asked(widened(query.hidden_KD)), self._compared(widened(items.fused_UD))
        if candidate_KC is None:
            return hidden_KD @ item_ND.T
        # Not a product of matrices: those of torch are slow where each has one row.
        return (hidden_KD[:, None] * F.embedding(candidate_KC, item_ND)).sum(dim=-1)

    def ranked(self, score_KN: Tensor, count_N: Tensor | None) -> Tensor:
        """The scores and the prior. ValueError when popularity is wanted and no counts are given."""
        if not self.popularity:
            return score_KN
        return score_KN / self.temperature + self._prior(count_N, score_KN.dtype)

    def keys(self, items: ItemVectors, count_N: Tensor | None) -> Tensor:
        """Items `(N, D)`; with popularity items over the temperature and their prior, `(N, D + 1)`."""
        item_ND = self._compared(items.fused_UD)
        if not self.popularity:
            return item_ND
        return torch.cat((item_ND / self.temperature, self._prior(count_N, item_ND.dtype)[:, None]), dim=1)

    def _compared(self, item_ND: Tensor) -> Tensor:
        return F.normalize(item_ND, dim=1) if self.unit_states else item_ND

    def _prior(self, count_N: Tensor | None, dtype: torch.dtype) -> Tensor:
        if count_N is None:
            raise ValueError("popularity: the scorer needs how often each item was touched, found None")
        return self.popularity * count_N.to(dtype).log1p()
