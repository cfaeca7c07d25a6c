"""The attention scorer equals its loops in values and gradients, for all items and for candidates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, Places, Query, UserStates
from pmmrec.errors import RecipeError
from pmmrec.models import attention, scorers
from pmmrec.models.attention import AttentionConfig, AttentionScorer
from pmmrec.testing.twins.scorers import attention_by_loops

ATOL = 1e-12  # float64; measured 2e-15


def scorer_of(**settings: object) -> AttentionScorer:
    torch.manual_seed(0)
    return AttentionScorer(AttentionConfig(**settings), BuildContext(6)).double()


def some_query() -> tuple[Query, ItemVectors, list[Tensor]]:
    draw = torch.Generator().manual_seed(1)
    hidden_BLD = torch.randn(3, 4, 6, dtype=torch.float64, generator=draw).requires_grad_()
    item_ND = torch.randn(5, 6, dtype=torch.float64, generator=draw).requires_grad_()
    is_valid_BL = torch.tensor([[True] * 4, [False, False, True, True], [False] * 3 + [True]])
    query = Query.at(UserStates(hidden_BLD, is_valid_BL), Places.where(is_valid_BL))
    return query, ItemVectors(item_ND), [hidden_BLD, item_ND]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"multiplies_candidate": False},
        {"multiplies": "candidate", "activation": "leaky_relu"},
        {"multiplies_candidate": False, "activation": "leaky_relu"},
    ],
)
@pytest.mark.parametrize("num_heads", [1, 3])
def test_all_items_and_candidates_score_as_their_loops(num_heads: int, settings: dict[str, Any]) -> None:
    scorer = scorer_of(num_heads=num_heads, **settings)
    query, items, leaves = some_query()
    candidate_KC = torch.randint(0, 5, (len(query), 2), generator=torch.Generator().manual_seed(2))
    looped = attention_by_loops(scorer, query, items, torch.arange(5))
    weights = torch.randn(looped.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    sources = [*leaves, *scorer.parameters()]
    for actual, expected, weight in (
        (scorer(query, items), looped, weights),
        (scorer(query, items, candidate_KC), looped.gather(1, candidate_KC), weights.gather(1, candidate_KC)),
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)
        ours, theirs = (
            torch.autograd.grad((scores * weight).sum(), sources, retain_graph=True, allow_unused=True)
            for scores in (actual, expected)
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=ATOL)


def test_a_later_state_changes_no_score() -> None:
    scorer = scorer_of()
    query, items, _ = some_query()
    hidden_BLD = query.states.hidden_BLD.detach().clone()
    hidden_BLD[:, 2:] *= -1
    changed = Query(UserStates(hidden_BLD, query.states.is_valid_BL), query.user_K, query.position_K)
    before, after = scorer(query, items), scorer(changed, items)
    is_early_K = query.position_K < 2
    torch.testing.assert_close(after[is_early_K], before[is_early_K], rtol=0, atol=ATOL)
    assert (after[~is_early_K] - before[~is_early_K]).abs().max() > 1e-6


def test_a_user_without_any_item_scores_finitely() -> None:
    states = UserStates(torch.zeros(1, 3, 6, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.bool))
    assert scorer_of()(Query.last(states), some_query()[1]).isfinite().all()


@pytest.mark.parametrize(
    "at_once",
    [200, 40, 1],  # two queries over five items, six over two candidates; one query over two items, over one
)
def test_queries_and_items_in_chunks_score_as_all_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, (query, items, _) = scorer_of(num_heads=3), some_query()
    candidate_KC = torch.randint(0, 5, (len(query), 2), generator=torch.Generator().manual_seed(2))
    whole = scorer(query, items), scorer(query, items, candidate_KC)
    monkeypatch.setattr(attention, "NUMBERS_AT_ONCE", at_once)
    torch.testing.assert_close(scorer(query, items), whole[0], rtol=0, atol=1e-15)
    torch.testing.assert_close(scorer(query, items, candidate_KC), whole[1], rtol=0, atol=1e-15)


def test_dropout_of_weights_keeps_the_mean_of_scores_and_nothing_is_dropped_in_evaluation() -> None:
    scorer, (query, items, _) = scorer_of(dropout=0.5), some_query()
    plain = scorer_of()(query, items)
    assert torch.equal(scorer.eval()(query, items), plain)
    scorer.train()
    drawn = torch.stack([scorer(query, items) for _ in range(2000)])
    assert drawn.std(dim=0).min() > 1e-3
    torch.testing.assert_close(drawn.mean(dim=0), plain, rtol=0, atol=0.05)  # measured 0.02


def test_a_residual_that_is_left_out_has_no_kind() -> None:
    with pytest.raises(RecipeError, match="multiplies: has no effect with multiplies_candidate: false"):
        scorers.config({"type": "attention", "multiplies_candidate": False, "multiplies": "candidate"})


def test_heads_that_do_not_divide_the_width_are_an_error() -> None:
    with pytest.raises(RecipeError, match=r"scorer\.num_heads: 4 do not divide the width 6"):
        scorer_of(num_heads=4)
