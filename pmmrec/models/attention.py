"""Score items by attending from each candidate to what the user touched (CARCA)."""
# Shapes: B users, L positions, K queries, N items, C candidates of a query, D width, H heads.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, Query
from pmmrec.errors import RecipeError
from pmmrec.models import Scorer, scorers
from pmmrec.precision import widened
from pmmrec.settings import PartConfig

NUMBERS_AT_ONCE = 1 << 26  # of weights and of what is found: 256 MB of float32


class AttentionConfig(PartConfig):
    """Settings of the attention scorer."""

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"num_heads": 2, "multiplies_candidate": False})
    type: Literal["attention"] = "attention"
    num_heads: int = Field(default=1, ge=1, description="Must divide the width.")
    multiplies_candidate: bool = Field(
        default=True, description="What is found is multiplied by the candidate's own projection, as a residual."
    )


@scorers.register("attention", AttentionConfig)
class AttentionScorer(Scorer):
    """Attend from a candidate to the states of the user up to the queried one, and map what is found to a score.

    The cross-attention of CARCA (https://doi.org/10.1145/3523227.3546777), with `q = W_q c` of a candidate, `k, v` of
    the states: `score = w . (softmax(q k / sqrt(D / H)) v * q) + b`. Differs from the released code: a state sees no
    later one, and the score has no sigmoid, which the objective `bce` applies. The score is no inner product, so there
    is no index for it, and ranking costs N x L per user.

    Example:
        model: {scorer: {type: attention, num_heads: 2}}
    """

    reads_histories = True

    def __init__(self, config: AttentionConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        if width % config.num_heads:
            raise RecipeError(f"scorer.num_heads: {config.num_heads} do not divide the width {width}; choose a divisor")
        self.num_heads, self.multiplies_candidate = config.num_heads, config.multiplies_candidate
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, 1)

    def forward(self, query: Query, items: ItemVectors, candidate_KC: Tensor | None = None) -> Tensor:
        """Scores `(K, N)`, or `(K, C)` of the candidates; some queries at a time, where all would need much memory."""
        num_candidates = items.fused_UD.shape[0] if candidate_KC is None else candidate_KC.shape[1]
        num_states, width = query.states.hidden_BLD.shape[1:]
        at_once = max(1, NUMBERS_AT_ONCE // (num_candidates * (self.num_heads * num_states + width)))
        if len(query) <= at_once:
            return self._scores(query, items, candidate_KC)
        chunks = [slice(start, start + at_once) for start in range(0, len(query), at_once)]
        some = [None if candidate_KC is None else candidate_KC[chunk] for chunk in chunks]
        return torch.cat([self._scores(query[chunk], items, one) for chunk, one in zip(chunks, some, strict=True)])

    def _scores(self, query: Query, items: ItemVectors, candidate_KC: Tensor | None) -> Tensor:
        dtype = self.out.weight.dtype
        item_ND = self._heads(self.query, widened(items.fused_UD).to(dtype))
        states_BLD = widened(query.states.hidden_BLD).to(dtype)
        is_seen_KL = _seen(query)
        key_KLHD = self._heads(self.key, states_BLD)[query.user_K]
        value_KLHD = self._heads(self.value, states_BLD)[query.user_K]
        scale = 1 / math.sqrt(item_ND.shape[-1])
        if candidate_KC is None:
            share_KHNL = torch.einsum("nhd,klhd->khnl", item_ND, key_KLHD) * scale
        else:
            item_KCHD = item_ND[candidate_KC]
            share_KHNL = torch.einsum("kchd,klhd->khcl", item_KCHD, key_KLHD) * scale
        share_KHNL = share_KHNL.masked_fill(~is_seen_KL[:, None, None], -math.inf).softmax(dim=-1)
        found_KNHD = torch.einsum("khnl,klhd->knhd", share_KHNL, value_KLHD)
        if self.multiplies_candidate:
            found_KNHD = found_KNHD * (item_ND if candidate_KC is None else item_KCHD)
        scores: Tensor = self.out(found_KNHD.flatten(2))[:, :, 0]
        return scores

    def _heads(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """`(..., D)` -> `(..., H, D / H)`."""
        mapped: Tensor = linear(x)
        return mapped.view(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)


def _seen(query: Query) -> Tensor:
    """`(K, L)`: valid states up to the queried one, which is always among them."""
    is_valid_KL = query.states.is_valid_BL[query.user_K]
    place_L = torch.arange(is_valid_KL.shape[1], device=is_valid_KL.device)
    is_asked_KL = place_L == query.position_K[:, None]
    return (is_valid_KL & (place_L <= query.position_K[:, None])) | is_asked_KL
