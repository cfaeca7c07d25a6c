"""Scores by loops over queries and items."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pmmrec.contracts import ItemVectors, Query
from pmmrec.models import scorers
from pmmrec.models.attention import AttentionScorer
from pmmrec.models.dot import Dot
from pmmrec.testing.twins import twin_of


@twin_of(scorers, "dot")
def dot_by_loops(scorer: Dot, query: Query, items: ItemVectors, count_N: Tensor) -> Tensor:
    """One dot product or cosine after another; with a prior of popularity, a temperature divides the product."""
    found = []
    for user, position in zip(query.user_K.tolist(), query.position_K.tolist(), strict=True):
        state_D = query.states.hidden_BLD[user, position]
        scores = [torch.dot(state_D, item_D) for item_D in items.fused_UD]
        if scorer.unit_states:
            norms = [torch.sqrt((state_D**2).sum() * (item_D**2).sum()) for item_D in items.fused_UD]
            scores = [score / norm for score, norm in zip(scores, norms, strict=True)]
        if scorer.popularity:
            priors = [scorer.popularity * math.log(1 + count) for count in count_N.tolist()]
            scores = [score / scorer.temperature + prior for score, prior in zip(scores, priors, strict=True)]
        found.append(torch.stack(scores))
    return torch.stack(found)


@twin_of(scorers, "attention")
def attention_by_loops(scorer: AttentionScorer, query: Query, items: ItemVectors, count_N: Tensor) -> Tensor:
    """One query, one candidate, one head and one state after another."""
    del count_N
    places = list(zip(query.user_K.tolist(), query.position_K.tolist(), strict=True))
    rows = [[_attention(scorer, query, *place, item_D) for item_D in items.fused_UD] for place in places]
    return torch.stack([torch.stack(row) for row in rows])


def _attention(scorer: AttentionScorer, query: Query, user: int, position: int, item_D: Tensor) -> Tensor:
    """The score of one candidate at one position of a user."""

    def mapped(linear: nn.Linear, x_D: Tensor) -> Tensor:
        out: Tensor = linear(x_D)
        return torch.where(out > 0, out, 0.2 * out) if scorer.is_leaky else out

    q_D = mapped(scorer.query, item_D)
    size = len(q_D) // scorer.num_heads
    seen = [place for place in range(position + 1) if query.states.is_valid_BL[user, place]]
    found = []
    for head in range(scorer.num_heads):
        part = slice(head * size, (head + 1) * size)
        states = [query.states.hidden_BLD[user, place] for place in seen]
        keys, values = ([mapped(linear, state)[part] for state in states] for linear in (scorer.key, scorer.value))
        weights = [torch.exp(torch.dot(q_D[part], key) / math.sqrt(size)) for key in keys]
        shares = [weight / torch.stack(weights).sum() for weight in weights]
        mixed = torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(dim=0)
        factors = {"projection": q_D[part], "candidate": item_D[part], None: torch.ones_like(mixed)}
        found.append(mixed * factors[scorer.multiplies])
    score: Tensor = scorer.out(torch.cat(found))[0]
    return score
