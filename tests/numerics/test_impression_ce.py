"""The softmax over the candidates of an impression: its formula, what it leaves out, and the state that it scores."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from views import dot_of

from pmmrec.context import BuildContext
from pmmrec.contracts import Candidates, History, ItemVectors, Query, UserStates, Views, WindowPass, Windows
from pmmrec.objectives.impression_ce import ImpressionCE, ImpressionCEConfig
from pmmrec.testing.twins.impression_ce import impression_ce_by_loops
from pmmrec.testing.world import batch_of, task_of
from pmmrec.users.transformer import TransformerConfig, TransformerUserEncoder

ATOL = 1e-12  # float64; measured at most 3e-15
WIDTH, NUM_ITEMS = 5, 7
Lists = list[tuple[list[int], list[int]]]  # of each impression: items that were not clicked, clicked items


def objective(**settings: Any) -> ImpressionCE:
    return ImpressionCE(ImpressionCEConfig(**settings), BuildContext(WIDTH))


def views_of(lists: Lists, unreadable: tuple[int, ...] = (), seed: int = 0, request: Any = None) -> Views:
    """Views of impressions whose histories have two items each."""
    draw = torch.Generator().manual_seed(seed)
    longest = max(len(others) + len(clicked) for others, clicked in lists)
    shape = (len(lists), longest)
    index, is_shown, is_clicked = torch.zeros(shape, dtype=torch.int64), *(torch.zeros(shape).bool() for _ in range(2))
    for row, (others, clicked) in enumerate(lists):
        size = len(others) + len(clicked)
        index[row, :size], is_shown[row, :size] = torch.tensor([*others, *clicked]), True
        is_clicked[row, len(others) : size] = True
    index_BS, is_valid_BS = torch.zeros(len(lists), 2, dtype=torch.int64), torch.ones(len(lists), 2, dtype=torch.bool)
    request = request or objective().request
    of_pass = WindowPass(
        index_BS, is_valid_BS, index_BS, ~is_valid_BS, candidates=Candidates(index, is_shown, is_clicked)
    )
    has_U = torch.ones(NUM_ITEMS, dtype=torch.bool)
    has_U[list(unreadable)] = False
    vectors_UD = torch.randn(NUM_ITEMS, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
    hidden_BLD = torch.randn(len(lists), 2, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
    items = ItemVectors(vectors_UD, {}, {"text": has_U})
    windows = Windows(index_BS, is_valid_BS, {request: of_pass})
    return Views(items, windows, {request: UserStates(hidden_BLD, is_valid_BS)}, dot_of(items))


def leaves(views: Views) -> list[torch.Tensor]:
    return [views.items.fused_UD, *(states.hidden_BLD for states in views.states.values())]


@pytest.mark.parametrize("temperature", [1.0, 0.3, "sqrt_width"])
@pytest.mark.parametrize("unreadable", [(), (1, 4)])
def test_it_equals_its_loops_in_value_and_gradient(temperature: Any, unreadable: tuple[int, ...]) -> None:
    lists: Lists = [([0, 1, 2], [3]), ([4], [5, 6]), ([1], [0]), ([2, 3, 4, 5], [1]), ([0], [4, 2])]
    term_of, views = objective(temperature=temperature), views_of(lists, unreadable)
    term, (total, count) = term_of(views), impression_ce_by_loops(term_of, views)
    assert term.count == count
    torch.testing.assert_close(term.sum, total, rtol=0, atol=ATOL)
    for found, wanted in zip(
        torch.autograd.grad(term.sum, leaves(views)), torch.autograd.grad(total, leaves(views)), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)


def test_one_click_is_the_cross_entropy_of_nrms() -> None:
    views = views_of([([0, 1, 2, 3], [4])])
    state = next(iter(views.states.values())).hidden_BLD[0, -1]
    scores = views.items.fused_UD[[4, 0, 1, 2, 3]] @ state
    expected = torch.nn.functional.cross_entropy(scores[None], torch.tensor([0]))
    term = objective()(views)
    torch.testing.assert_close(term.mean, expected, rtol=0, atol=ATOL)
    assert float(term.metrics["chance"][0]) == pytest.approx(math.log(5))
    assert float(term.metrics["accuracy"][0]) == float(scores.argmax() == 0)


@pytest.mark.parametrize("unreadable", [(4,), (0, 1)])
def test_an_impression_of_which_nothing_is_left_counts_as_nothing(unreadable: tuple[int, ...]) -> None:
    views = views_of([([0, 1], [4])], unreadable)
    term = objective()(views)
    assert (term.sum.item(), term.count.item()) == (0, 0)
    gradients = torch.autograd.grad(term.sum, leaves(views))
    assert all(gradient.isfinite().all() and not gradient.any() for gradient in gradients)
    assert all(figure.isfinite().all() for figure in term.metrics.values())


@pytest.mark.parametrize("attends", ["past", "all"])
def test_the_state_that_ranks_is_scored_whatever_the_user_encoder_attends_to(attends: Any) -> None:
    term_of = objective()
    task, batch = task_of(term_of), batch_of(term_of.requests)
    users = TransformerUserEncoder(TransformerConfig(num_layers=1, dropout=0.0, attends=attends), BuildContext(8))
    task.recommender.user_encoder = users
    states, of_pass = task.views(batch).states[term_of.request], batch.windows.passes[term_of.request]
    history = History.of(task.recommender.item_encoder(batch.items), of_pass.item_index_BL, of_pass.is_valid_BL)
    alone, whole = (task.recommender.query(dataclasses.replace(history, last_alone=some)) for some in (True, False))
    assert torch.equal(Query.last(states).hidden_KD, alone.hidden_KD)
    assert states.hidden_BLD.shape[1] == 1  # no other state is read
    assert whole.states.hidden_BLD.shape[1] == of_pass.item_index_BL.shape[1] + (attends == "all")  # a mask behind
    torch.testing.assert_close(alone.hidden_KD, whole.hidden_KD, rtol=0, atol=1e-6)  # near 1; measured 4e-7


def test_a_pass_without_candidates_is_refused() -> None:
    views, request = views_of([([0], [1])]), objective().request
    bare = dataclasses.replace(views.windows.passes[request], candidates=None)
    windows = dataclasses.replace(views.windows, passes={request: bare})
    with pytest.raises(ValueError, match="the pass holds no candidates"):
        objective()(dataclasses.replace(views, windows=windows))
