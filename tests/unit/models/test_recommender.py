"""A recommender gathers histories from item vectors and keeps its parts apart."""
# Shapes: B users, L inputs, N items, D width.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pmmrec.context import BuildContext
from pmmrec.contracts import History, ItemVectors, Query, UserStates
from pmmrec.errors import RecipeError
from pmmrec.models import scorers
from pmmrec.models.dot import Dot, DotConfig
from pmmrec.models.recommender import Recommender

MakeWorld = Callable[..., Any]
INDEX_BL = torch.tensor([[0, 2, 1], [0, 0, 3]])
IS_VALID_BL = torch.tensor([[True, True, True], [False, True, True]])


def states_of(recommender: Recommender, vectors_ND: torch.Tensor) -> torch.Tensor:
    return recommender.states(History.of(ItemVectors(vectors_ND), INDEX_BL, IS_VALID_BL)).hidden_BLD


def query_of(hidden_KD: torch.Tensor) -> Query:
    """Users whose only state is the one that is asked about."""
    return Query.last(UserStates(hidden_KD[:, None], torch.ones(len(hidden_KD), 1, dtype=torch.bool)))


def test_histories_are_gathered_and_padding_is_zero(world: MakeWorld) -> None:
    recommender = world("text").recommender.eval()
    vectors_ND = torch.randn(4, 8)
    expected_BLD = torch.stack([vectors_ND[[0, 2, 1]], vectors_ND[[0, 0, 3]]])
    expected_BLD[1, 0] = 0
    expected = recommender.user_encoder(History(expected_BLD, IS_VALID_BL)).hidden_BLD
    assert torch.equal(states_of(recommender, vectors_ND), expected)


def test_gradients_gather_at_items_and_none_at_padding(world: MakeWorld) -> None:
    recommender = world("text").recommender.eval().double()
    vectors_ND = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    inputs_BLD = vectors_ND[INDEX_BL].detach()
    inputs_BLD[~IS_VALID_BL] = 0
    inputs_BLD.requires_grad_()
    weights = torch.randn(8, dtype=torch.float64)
    (states_of(recommender, vectors_ND)[IS_VALID_BL] @ weights).sum().backward()
    (recommender.user_encoder(History(inputs_BLD, IS_VALID_BL)).hidden_BLD[IS_VALID_BL] @ weights).sum().backward()
    expected_ND = torch.zeros_like(vectors_ND)
    for user in range(2):
        for place in range(3):
            if IS_VALID_BL[user, place]:
                expected_ND[INDEX_BL[user, place]] += inputs_BLD.grad[user, place]
    torch.testing.assert_close(vectors_ND.grad, expected_ND, rtol=0, atol=1e-12)
    assert not vectors_ND.grad[4].any()


def test_the_parts_hold_every_parameter_once(world: MakeWorld) -> None:
    recommender = world().recommender
    assert list(recommender.parts) == ["text_encoder", "vision_encoder", "fusion", "user_encoder"]
    in_parts = [parameter for part in recommender.parts.values() for parameter in part.parameters()]
    assert {id(parameter) for parameter in in_parts} == {id(parameter) for parameter in recommender.parameters()}
    assert len(in_parts) == len(list(recommender.parameters()))


def test_the_dot_scorer_is_a_dot_product() -> None:
    torch.manual_seed(0)
    hidden_BD, items_ND = torch.randn(2, 3), torch.randn(4, 3)
    expected = [[sum(h * i for h, i in zip(hidden, item, strict=True)) for item in items_ND] for hidden in hidden_BD]
    scorer, items = Dot(DotConfig(), BuildContext(3)), ItemVectors(items_ND)
    actual = scorer(query_of(hidden_BD), items)
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-6)  # float32; measured 0
    some = scorer(query_of(hidden_BD), items, torch.tensor([[3, 0, 0], [1, 1, 2]]))
    chosen = [[expected[0][3], expected[0][0], expected[0][0]], [expected[1][1], expected[1][1], expected[1][2]]]
    torch.testing.assert_close(some, torch.tensor(chosen), rtol=0, atol=1e-6)  # float32; measured 6e-8


def test_popularity_adds_its_log_to_the_dot_product() -> None:
    torch.manual_seed(0)
    hidden_BD, items_ND, count_N = torch.randn(2, 4), torch.randn(3, 4), torch.tensor([0, 1, 9])
    scorer = Dot(DotConfig(popularity=0.5, temperature="sqrt_width"), BuildContext(4))
    actual = scorer.ranked(scorer(query_of(hidden_BD), ItemVectors(items_ND)), count_N)
    for b in range(2):
        for n in range(3):
            expected = float(hidden_BD[b] @ items_ND[n]) / 2 + 0.5 * math.log(1 + int(count_N[n]))
            assert actual[b, n].item() == pytest.approx(expected, abs=1e-6)  # float32; measured 2e-7


def test_popularity_without_counts_is_an_error() -> None:
    with pytest.raises(ValueError, match="how often each item was touched"):
        Dot(DotConfig(popularity=1.0), BuildContext(3)).ranked(torch.zeros(1, 2), None)


def test_a_temperature_that_cannot_change_a_ranking_is_refused() -> None:
    with pytest.raises(RecipeError, match="has no effect on a ranking without popularity"):
        scorers.config({"type": "dot", "temperature": "sqrt_width"})
