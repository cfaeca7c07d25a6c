"""States of users after their histories."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pmmrec.evaluation.states import states_after
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
        return states_after(recommender.user_encoder.eval(), vectors_ND, offset_B, np.concatenate(histories), CPU)


def test_states_are_those_of_the_recommender_one_user_at_a_time(
    recommender: Recommender, vectors_ND: torch.Tensor
) -> None:
    recommender.eval()
    found = after(recommender, vectors_ND, HISTORIES)
    for history, state_D in zip(HISTORIES, found, strict=True):
        latest = torch.tensor([history[-4:]])  # the encoder reads four
        with torch.no_grad():
            alone_BLD = recommender.user_states(vectors_ND, latest, torch.ones_like(latest, dtype=torch.bool))
        torch.testing.assert_close(state_D, alone_BLD[0, -1], rtol=0, atol=2e-6)  # near 1; measured 5e-7


class Echo(UserEncoder):
    """Records what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.max_inputs = 10
        self.lengths: list[tuple[int, ...]] = []

    def forward(self, inputs_BLD: torch.Tensor, is_valid_BL: torch.Tensor) -> torch.Tensor:
        self.lengths.append(tuple(is_valid_BL.shape))
        return inputs_BLD


def test_short_histories_are_padded_to_no_more_than_they_need() -> None:
    encoder, vectors_ND = Echo(), torch.arange(30.0)[:, None]
    histories = [[1], [1, 2, 3, 4, 5], list(range(20)), [7, 8], list(range(9))]
    offset_B = np.cumsum([0, *map(len, histories)])
    found = states_after(encoder, vectors_ND, offset_B, np.concatenate(histories), CPU)
    assert encoder.lengths == [(2, 4), (1, 8), (2, 10)]
    assert found[:, 0].tolist() == [1, 5, 19, 8, 8]
