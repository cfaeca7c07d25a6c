"""The GRU user encoder equals its gates one position after another, and is unmoved by padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import History
from pmmrec.errors import RecipeError
from pmmrec.users.gru import GRUConfig, GRUUserEncoder

WIDTH = 4


def fresh(**settings: object) -> GRUUserEncoder:
    torch.manual_seed(0)
    return GRUUserEncoder(GRUConfig(**{"max_inputs": 7, **settings}), BuildContext(WIDTH)).double().eval()


def states_by_loops(encoder: GRUUserEncoder, history_LD: Tensor) -> Tensor:
    """Reset gate, update gate and new state of every layer, at one position after another."""
    rows = history_LD
    for layer in range(encoder.gru.num_layers):
        of_input = getattr(encoder.gru, f"weight_ih_l{layer}").chunk(3)
        of_state = getattr(encoder.gru, f"weight_hh_l{layer}").chunk(3)
        state, states = torch.zeros(WIDTH, dtype=torch.float64), []
        for x in rows:
            reset = torch.sigmoid(of_input[0] @ x + of_state[0] @ state)
            update = torch.sigmoid(of_input[1] @ x + of_state[1] @ state)
            new = torch.tanh(of_input[2] @ x + reset * (of_state[2] @ state))
            state = (1 - update) * new + update * state
            states.append(state)
        rows = torch.stack(states)
    return torch.stack([encoder.output(row) for row in rows])


@pytest.mark.parametrize("settings", [{"num_layers": 1}, {"num_layers": 2}, {"output_layer": True}])
def test_values_and_gradients_are_those_of_loops(settings: dict[str, object]) -> None:
    encoder, lengths = fresh(**settings), [5, 3, 1]
    item_BLD = torch.randn(3, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    is_valid_BL = torch.tensor([[place >= 5 - length for place in range(5)] for length in lengths])
    leaf_BLD = item_BLD.requires_grad_()
    item_BLD = torch.where(is_valid_BL[:, :, None], leaf_BLD, 0)  # as histories are gathered
    hidden_BLD = encoder(History(item_BLD, is_valid_BL)).hidden_BLD
    expected = [states_by_loops(encoder, item_BLD[user, -length:]) for user, length in enumerate(lengths)]
    weights = torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sources = [leaf_BLD, *encoder.parameters()]
    actual = [hidden_BLD[user, -length:] for user, length in enumerate(lengths)]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)  # float64; measured 6e-17
    ours_by_source, theirs_by_source = (
        torch.autograd.grad(sum((states @ weights).sum() for states in found), sources, retain_graph=True)
        for found in (actual, expected)
    )
    for one, other in zip(ours_by_source, theirs_by_source, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)  # float64; measured 7e-16


def test_padding_keeps_the_state_at_exactly_zero() -> None:
    encoder = fresh()
    item_BLD = torch.randn(1, 3, WIDTH, dtype=torch.float64)
    wider = encoder(History(F.pad(item_BLD, (0, 0, 2, 0)), torch.tensor([[False, False, True, True, True]]))).hidden_BLD
    assert not wider[:, :2].any()
    alone = encoder(History(item_BLD, torch.ones(1, 3, dtype=torch.bool))).hidden_BLD
    torch.testing.assert_close(wider[:, 2:], alone, rtol=0, atol=1e-15)  # float64; measured 4e-17


def test_longer_histories_than_it_can_read_are_an_error_that_names_both() -> None:
    with pytest.raises(RecipeError, match="max_inputs: 7, but histories of 8 inputs came"):
        fresh()(History(torch.zeros(1, 8, WIDTH, dtype=torch.float64), torch.ones(1, 8, dtype=torch.bool)))
