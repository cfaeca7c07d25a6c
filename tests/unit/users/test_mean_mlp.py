"""The mean of items under an MLP equals its loops, whatever the order, and no item is part of its own state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.contracts import History
from pmmrec.users.mean_mlp import MeanMLP, MeanMLPConfig

WIDTH, LENGTHS = 4, (5, 3, 1)


def fresh(**settings: object) -> MeanMLP:
    torch.manual_seed(0)
    return MeanMLP(MeanMLPConfig(**settings), BuildContext(WIDTH)).double().eval()


def random_history() -> tuple[History, Tensor]:
    """Left-padded random items, and the leaf that gradients can be asked for."""
    draw = torch.Generator().manual_seed(1)
    leaf_BLD = torch.randn(3, 5, WIDTH, dtype=torch.float64, generator=draw).requires_grad_()
    is_valid_BL = torch.tensor([[place >= 5 - length for place in range(5)] for length in LENGTHS])
    return History(torch.where(is_valid_BL[:, :, None], leaf_BLD, 0), is_valid_BL), leaf_BLD


def state_by_loops(encoder: MeanMLP, items: list[Tensor]) -> Tensor:
    """The mean of some items, then one layer after another, one output after another."""
    state = [sum(item[d] for item in items) / len(items) if items else torch.zeros(()).double() for d in range(WIDTH)]
    for layer in encoder.layers:
        if isinstance(layer, torch.nn.Linear):
            outputs = [sum((layer.weight[e, d] * state[d] for d in range(WIDTH)), layer.bias[e]) for e in range(WIDTH)]
            state = [torch.clamp(output, min=0) for output in outputs]
    return torch.stack(state)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("attends", ["past", "others"])
def test_values_and_gradients_are_those_of_loops(attends: str, num_layers: int) -> None:
    encoder, (history, leaf_BLD) = fresh(num_layers=num_layers, attends=attends), random_history()
    hidden_BLD, actual, expected = encoder(history).hidden_BLD, [], []
    for user, length in enumerate(LENGTHS):
        rows = list(history.item_BLD[user, -length:])
        for place in range(length):
            read = rows[: place + 1] if attends == "past" else [*rows[:place], *rows[place + 1 :]]
            actual.append(hidden_BLD[user, 5 - length + place])
            expected.append(state_by_loops(encoder, read))
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected), rtol=0, atol=1e-14)  # float64
    sources = [leaf_BLD, *encoder.parameters()]
    weight_D = torch.arange(1.0, WIDTH + 1, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((torch.stack(rows) @ weight_D).sum(), sources, retain_graph=True)
        for rows in (actual, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)  # float64


def test_no_gradient_flows_from_a_state_to_the_item_at_its_place() -> None:
    encoder, (history, leaf_BLD) = fresh(attends="others"), random_history()
    hidden_BLD = encoder(history).hidden_BLD
    for place in range(5):
        (gradient_BLD,) = torch.autograd.grad(hidden_BLD[0, place].sum(), leaf_BLD, retain_graph=True)
        assert not gradient_BLD[0, place].any()
        assert gradient_BLD[0].any()


@pytest.mark.parametrize("attends", ["past", "others"])
def test_the_query_is_the_mean_of_the_whole_history_in_any_order(attends: str) -> None:
    encoder, (history, _) = fresh(attends=attends), random_history()
    item_BLD = torch.stack(
        [torch.cat((rows[: 5 - n], rows[5 - n :].flip(0))) for rows, n in zip(history.item_BLD, LENGTHS, strict=True)]
    )
    for given_BLD in (history.item_BLD, item_BLD):
        query = encoder.query(History(given_BLD, history.is_valid_BL))
        expected = [state_by_loops(encoder, list(rows[-n:])) for rows, n in zip(given_BLD, LENGTHS, strict=True)]
        torch.testing.assert_close(query.hidden_KD, torch.stack(expected), rtol=0, atol=1e-14)  # float64
