"""The two streams equal their formula, share positions and LayerNorm, and never read ahead."""
# Shapes: B users, L inputs, D width.

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import History
from pmmrec.errors import RecipeError
from pmmrec.testing.twins.blocks import transformer_block_by_loops
from pmmrec.users.two_stream import CONTENT, TwoStream, TwoStreamConfig

WIDTH = 8
LENGTHS = [5, 3, 1]


def fresh(**settings: object) -> TwoStream:
    torch.manual_seed(0)
    config = TwoStreamConfig(**{"max_inputs": 7, **settings})
    encoder = TwoStream(config, BuildContext(WIDTH)).double().eval()
    with torch.no_grad():
        for parameter in encoder.norm.parameters():
            parameter.add_(torch.rand(WIDTH, dtype=torch.float64))
    return encoder


def histories() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shape = len(LENGTHS), LENGTHS[0], WIDTH
    item_BLD, content_BLD = (torch.randn(shape, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(2))
    place_L, length_B1 = torch.arange(LENGTHS[0]), torch.tensor(LENGTHS)[:, None]
    return item_BLD, content_BLD, place_L >= LENGTHS[0] - length_B1


def states_by_loops(encoder: TwoStream, item_LD: Tensor, content_LD: Tensor) -> Tensor:
    """The formula of FDSA over one history without padding."""
    found = []
    for x_LD, blocks in ((item_LD, encoder.item_blocks), (content_LD, encoder.content_blocks)):
        rows = [x_D + encoder.position.weight[len(x_LD) - 1 - place] for place, x_D in enumerate(x_LD)]
        hidden_LD = encoder.norm(torch.stack(rows))
        for block in blocks:
            hidden_LD = transformer_block_by_loops(block, hidden_LD, is_causal=True)
        found.append(hidden_LD)
    joined = [encoder.join(torch.cat(pair)) for pair in zip(*found, strict=True)]
    return torch.stack([encoder.norm(one) for one in joined])


def test_values_and_gradients_are_those_of_loops_over_users() -> None:
    encoder = fresh()
    item_BLD, content_BLD, is_valid_BL = histories()
    hidden_BLD = encoder(History(item_BLD, is_valid_BL, {CONTENT: content_BLD})).hidden_BLD
    actual = [hidden_BLD[user, -length:] for user, length in enumerate(LENGTHS)]
    expected = [
        states_by_loops(encoder, item_BLD[user, -length:], content_BLD[user, -length:])
        for user, length in enumerate(LENGTHS)
    ]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)  # float64; measured 9e-16
    weights = torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sources = [item_BLD, content_BLD, *encoder.parameters()]
    ours_by_source, theirs_by_source = (
        torch.autograd.grad(sum((states @ weights).sum() for states in found), sources, retain_graph=True)
        for found in (actual, expected)
    )
    for one, other in zip(ours_by_source, theirs_by_source, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # float64; measured 8e-15


def test_neither_stream_looks_ahead_and_both_are_read() -> None:
    encoder = fresh()
    item_BLD, content_BLD, is_valid_BL = histories()
    before = encoder(History(item_BLD, is_valid_BL, {CONTENT: content_BLD})).hidden_BLD[0]
    for place in range(1, LENGTHS[0]):
        changed_BLD = torch.zeros_like(item_BLD)
        changed_BLD[0, place] = torch.arange(WIDTH)  # not the same everywhere: LayerNorm would take that away
        for items, contents in ((item_BLD + changed_BLD, content_BLD), (item_BLD, content_BLD + changed_BLD)):
            after = encoder(History(items, is_valid_BL, {CONTENT: contents})).hidden_BLD[0]
            torch.testing.assert_close(after[:place], before[:place], rtol=0, atol=1e-12)
            assert (after[place:] - before[place:]).abs().amax(dim=1).min() > 1e-6


def test_longer_histories_than_it_can_read_are_an_error_that_names_both() -> None:
    item_BLD, is_valid_BL = torch.zeros(1, 8, WIDTH, dtype=torch.float64), torch.ones(1, 8, dtype=torch.bool)
    with pytest.raises(RecipeError, match="max_inputs: 7, but histories of 8 inputs came"):
        fresh()(History(item_BLD, is_valid_BL, {CONTENT: item_BLD}))


def test_more_padding_changes_nothing() -> None:
    encoder = fresh()
    item_BLD, content_BLD, is_valid_BL = histories()
    hidden_BLD = encoder(History(item_BLD, is_valid_BL, {CONTENT: content_BLD})).hidden_BLD
    wider = [F.pad(x_BLD, (0, 0, 2, 0), value=9.0) for x_BLD in (item_BLD, content_BLD)]
    padded = encoder(History(wider[0], F.pad(is_valid_BL, (2, 0)), {CONTENT: wider[1]})).hidden_BLD[:, 2:]
    torch.testing.assert_close(padded[is_valid_BL], hidden_BLD[is_valid_BL], rtol=0, atol=1e-12)
