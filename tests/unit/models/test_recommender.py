"""A recommender gathers histories from item vectors and keeps its parts apart."""
# Shapes: B users, L inputs, N items, D width.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pmmrec.context import BuildContext
from pmmrec.errors import RecipeError
from pmmrec.models import scorers
from pmmrec.models.dot import Dot, DotConfig

MakeWorld = Callable[..., Any]
INDEX_BL = torch.tensor([[0, 2, 1], [0, 0, 3]])
IS_VALID_BL = torch.tensor([[True, True, True], [False, True, True]])


def test_histories_are_gathered_and_padding_is_zero(world: MakeWorld) -> None:
    recommender = world("text").recommender.eval()
    vectors_ND = torch.randn(4, 8)
    expected_BLD = torch.stack([vectors_ND[[0, 2, 1]], vectors_ND[[0, 0, 3]]])
    expected_BLD[1, 0] = 0
    expected = recommender.user_encoder(expected_BLD, IS_VALID_BL)
    assert torch.equal(recommender.user_states(vectors_ND, INDEX_BL, IS_VALID_BL), expected)


def test_gradients_gather_at_items_and_none_at_padding(world: MakeWorld) -> None:
    recommender = world("text").recommender.eval().double()
    vectors_ND = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    inputs_BLD = vectors_ND[INDEX_BL].detach()
    inputs_BLD[~IS_VALID_BL] = 0
    inputs_BLD.requires_grad_()
    weights = torch.randn(8, dtype=torch.float64)
    (recommender.user_states(vectors_ND, INDEX_BL, IS_VALID_BL)[IS_VALID_BL] @ weights).sum().backward()
    (recommender.user_encoder(inputs_BLD, IS_VALID_BL)[IS_VALID_BL] @ weights).sum().backward()
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
    actual = Dot(DotConfig(), BuildContext(3))(hidden_BD, items_ND)
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-6)  # float32; measured 0


def test_popularity_adds_its_log_to_the_dot_product() -> None:
    torch.manual_seed(0)
    hidden_BD, items_ND, count_N = torch.randn(2, 4), torch.randn(3, 4), torch.tensor([0, 1, 9])
    actual = Dot(DotConfig(popularity=0.5, temperature="sqrt_width"), BuildContext(4))(hidden_BD, items_ND, count_N)
    for b in range(2):
        for n in range(3):
            expected = float(hidden_BD[b] @ items_ND[n]) / 2 + 0.5 * math.log(1 + int(count_N[n]))
            assert actual[b, n].item() == pytest.approx(expected, abs=1e-6)  # float32; measured 2e-7


def test_popularity_without_counts_is_an_error() -> None:
    with pytest.raises(ValueError, match="how often each item was touched"):
        Dot(DotConfig(popularity=1.0), BuildContext(3))(torch.zeros(1, 3), torch.zeros(2, 3))


def test_a_temperature_that_cannot_change_a_ranking_is_refused() -> None:
    with pytest.raises(RecipeError, match="has no effect on a ranking without popularity"):
        scorers.config({"type": "dot", "temperature": "sqrt_width"})
