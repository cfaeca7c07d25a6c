"""States of users after their histories."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pmmrec.contracts import History, ItemVectors, UserStates
from pmmrec.evaluation.queries import queries_after
from pmmrec.models.recommender import Recommender
from pmmrec.users import UserEncoder

CPU = torch.device("cpu")
HISTORIES = [[3], [0, 1, 2], list(range(10)), [5, 5], [4, 3, 2, 1, 0, 1], [9, 8, 7, 6]]


@pytest.fixture
def vectors_ND() -> torch.Tensor:
    return torch.randn(10, 8, generator=torch.Generator().manual_seed(1))


def after(recommender: Recommender, vectors_ND: torch.Tensor, histories: list[list[int]]) -> torch.Tensor:
    offset_B = np.cumsum([0, *map(len, histories)])
    with torch.no_grad():
        items, encoder = ItemVectors(vectors_ND), recommender.user_encoder.eval()
        return queries_after(encoder, items, offset_B, np.concatenate(histories), CPU).hidden_KD


def test_states_are_those_of_the_recommender_one_user_at_a_time(
    recommender: Recommender, vectors_ND: torch.Tensor
) -> None:
    recommender.eval()
    found = after(recommender, vectors_ND, HISTORIES)
    for history, state_D in zip(HISTORIES, found, strict=True):
        latest = torch.tensor([history[-4:]])  # the encoder reads four
        with torch.no_grad():
            history_of_one = History.of(ItemVectors(vectors_ND), latest, torch.ones_like(latest, dtype=torch.bool))
            alone_BLD = recommender.states(history_of_one).hidden_BLD
        torch.testing.assert_close(state_D, alone_BLD[0, -1], rtol=0, atol=2e-6)  # near 1; measured 5e-7


class Echo(UserEncoder):
    """Records what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.max_inputs = 10
        self.lengths: list[tuple[int, ...]] = []

    def forward(self, history: History) -> UserStates:
        self.lengths.append(tuple(history.is_valid_BL.shape))
        return UserStates(history.item_BLD, history.is_valid_BL)


def test_short_histories_are_padded_to_no_more_than_they_need() -> None:
    encoder, vectors_ND = Echo(), torch.arange(30.0)[:, None]
    histories = [[1], [1, 2, 3, 4, 5], list(range(20)), [7, 8], list(range(9))]
    offset_B = np.cumsum([0, *map(len, histories)])
    items = ItemVectors(vectors_ND)
    found = queries_after(encoder, items, offset_B, np.concatenate(histories), CPU).hidden_KD
    assert encoder.lengths == [(2, 4), (1, 8), (2, 10)]
    assert found[:, 0].tolist() == [1, 5, 19, 8, 8]


def test_the_histories_before_a_query_are_kept_where_they_are_asked_for() -> None:
    items, histories = ItemVectors(torch.arange(1.0, 31.0)[:, None]), [[1], [0, 1, 2, 3, 4], [7, 8]]
    offset_B = np.cumsum([0, *map(len, histories)])
    query = queries_after(Echo(), items, offset_B, np.concatenate(histories), CPU, keeps_histories=True)
    assert query.hidden_KD[:, 0].tolist() == [2, 5, 9]
    rows = zip(query.states.hidden_BLD[:, :, 0].tolist(), query.states.is_valid_BL.tolist(), strict=True)
    shown = [[value for value, is_valid in zip(*row, strict=True) if is_valid] for row in rows]
    assert shown == [[2], [1, 2, 3, 4, 5], [8, 9]]
