"""Score items by attending from each candidate to what the user touched (CARCA)."""
# Shapes: B users, L positions, K queries, N items, C candidates of a query, D width, H heads.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.blocks import CARCA_SLOPE
from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, Query
from pmmrec.dropout import Dropout
from pmmrec.errors import RecipeError
from pmmrec.models import Scorer, scorers
from pmmrec.precision import widened
from pmmrec.settings import PartConfig

NUMBERS_AT_ONCE = 1 << 26  # of weights and of what is found: 256 MB of float32


class AttentionConfig(PartConfig):
    """Settings of the attention scorer."""

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"num_heads": 2, "multiplies_candidate": False},
        {"num_heads": 2, "activation": "leaky_relu", "multiplies": "candidate", "dropout": 0.3},
    )
    type: Literal["attention"] = "attention"
    num_heads: int = Field(default=1, ge=1, description="Must divide the width.")
    multiplies_candidate: bool = Field(
        default=True, description="Whether what is found is multiplied by the candidate, as a residual."
    )
    multiplies: Literal["projection", "candidate"] = Field(
        default="projection", description="By its projection, or by its own vector (the released code of CARCA)."
    )
    activation: Literal["none", "leaky_relu"] = Field(
        default="none", description="Of queries, keys and values; leaky_relu: with slope 0.2 below 0, as in CARCA."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Of the weights of attention.")

    @model_validator(mode="after")
    def _factor_matters(self) -> Self:
        if self.multiplies != "projection" and not self.multiplies_candidate:
            raise ValueError("multiplies: has no effect with multiplies_candidate: false; leave it out")
        return self


@scorers.register("attention", AttentionConfig)
class AttentionScorer(Scorer):
    """Attend from a candidate to the states of the user up to the queried one, and map what is found to a score.

    The cross-attention of CARCA (arXiv 2204.06519), with `q = W_q c` of a candidate c and `k, v` of the states:
    `score = w . (softmax(q k / sqrt(D / H)) v * q) + b`. The released code passes q, k and v through a leaky ReLU
    (`activation`) and multiplies by c (`multiplies: candidate`) or by nothing (`multiplies_candidate: false`). Differs
    from it: a state sees no later one, and the score has no sigmoid, which the objective `bce` applies. The score is no
    inner product, so there is no index for it, and ranking costs N x L per user.

    Example:
        model: {scorer: {type: attention, num_heads: 2}}
    """

    reads_histories = True

    def __init__(self, config: AttentionConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        if width % config.num_heads:
            raise RecipeError(f"scorer.num_heads: {config.num_heads} do not divide the width {width}; choose a divisor")
        self.num_heads, self.is_leaky = config.num_heads, config.activation == "leaky_relu"
        self.multiplies = config.multiplies if config.multiplies_candidate else None
        self.dropout = Dropout(config.dropout)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, 1)

    def forward(self, query: Query, items: ItemVectors, candidate_KC: Tensor | None = None) -> Tensor:
        """Scores `(K, N)`, or `(K, C)` of the candidates.

        Some queries at a time, where all would need much memory; some items at a time, where one query would.
        """
        num_candidates = items.fused_UD.shape[0] if candidate_KC is None else candidate_KC.shape[1]
        num_states, width = query.states.hidden_BLD.shape[1:]
        at_once = NUMBERS_AT_ONCE // (self.num_heads * num_states + width)  # pairs of a query and an item
        if candidate_KC is None and num_candidates > max(1, at_once):
            pieces = torch.split(items.fused_UD, max(1, at_once))
            return torch.cat([self(query, ItemVectors(piece_UD)) for piece_UD in pieces], dim=1)
        at_once = max(1, at_once // max(1, num_candidates))
        if len(query) <= at_once:
            return self._scores(query, items, candidate_KC)
        chunks = [slice(start, start + at_once) for start in range(0, len(query), at_once)]
        some = [None if candidate_KC is None else candidate_KC[chunk] for chunk in chunks]
        return torch.cat([self._scores(query[chunk], items, one) for chunk, one in zip(chunks, some, strict=True)])

    def _scores(self, query: Query, items: ItemVectors, candidate_KC: Tensor | None) -> Tensor:
        dtype = self.out.weight.dtype
        item_ND = widened(items.fused_UD).to(dtype)
        asked_NHD = self._heads(self.query, item_ND)
        states_BLD = widened(query.states.hidden_BLD).to(dtype)
        is_seen_KL = _seen(query)
        key_KLHD = self._heads(self.key, states_BLD)[query.user_K]
        value_KLHD = self._heads(self.value, states_BLD)[query.user_K]
        scale = 1 / math.sqrt(asked_NHD.shape[-1])
        if candidate_KC is None:
            share_KHNL = torch.einsum("nhd,klhd->khnl", asked_NHD, key_KLHD) * scale
        else:
            item_ND, asked_NHD = item_ND[candidate_KC], asked_NHD[candidate_KC]
            share_KHNL = torch.einsum("kchd,klhd->khcl", asked_NHD, key_KLHD) * scale
        share_KHNL = share_KHNL.masked_fill(~is_seen_KL[:, None, None], -math.inf).softmax(dim=-1)
        found_KNHD = torch.einsum("khnl,klhd->knhd", self.dropout(share_KHNL), value_KLHD)
        if self.multiplies is not None:
            found_KNHD = found_KNHD * (asked_NHD if self.multiplies == "projection" else item_ND.view_as(asked_NHD))
        scores: Tensor = self.out(found_KNHD.flatten(2))[:, :, 0]
        return scores

    def _heads(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """`(..., D)` -> `(..., H, D / H)`."""
        mapped: Tensor = F.leaky_relu(linear(x), CARCA_SLOPE) if self.is_leaky else linear(x)
        return mapped.view(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)


def _seen(query: Query) -> Tensor:
    """`(K, L)`: valid states up to the queried one, which is always among them."""
    is_valid_KL = query.states.is_valid_BL[query.user_K]
    place_L = torch.arange(is_valid_KL.shape[1], device=is_valid_KL.device)
    is_asked_KL = place_L == query.position_K[:, None]
    return (is_valid_KL & (place_L <= query.position_K[:, None])) | is_asked_KL
