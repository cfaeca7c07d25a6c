"""CARCA's blocks equal their formula, and no score under its scorer knows a later item."""
# Shapes: B users, L inputs, D width.

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import History, ItemVectors, Places, Query
from pmmrec.errors import RecipeError
from pmmrec.models.attention import AttentionConfig, AttentionScorer
from pmmrec.users.carca import Carca, CarcaBlock, CarcaConfig

WIDTH = 6
LENGTHS = [5, 3, 1]


def fresh(**settings: object) -> Carca:
    torch.manual_seed(0)
    encoder = Carca(CarcaConfig(**{"max_inputs": 7, "num_layers": 2, **settings}), BuildContext(WIDTH)).double().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # norms start at 1 and 0
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=torch.float64))
    return encoder


def histories() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    item_BLD = torch.randn(len(LENGTHS), LENGTHS[0], WIDTH, dtype=torch.float64, generator=draw).requires_grad_()
    return item_BLD, torch.arange(LENGTHS[0]) >= LENGTHS[0] - torch.tensor(LENGTHS)[:, None]


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def block_by_loops(block: CarcaBlock, x_LD: Tensor) -> Tensor:
    """One place, one head and one seen place after another, over one history without padding."""
    size, rows = WIDTH // block.num_heads, []
    keys, values = ([leaky(linear(x_D)) for x_D in x_LD] for linear in (block.key, block.value))
    for place, x_D in enumerate(x_LD):
        normed_D = block.query_norm(x_D)
        query_D, heads = leaky(block.query(normed_D)), []
        for head in range(block.num_heads):
            part = slice(head * size, (head + 1) * size)
            weights = [torch.exp(torch.dot(query_D[part], key[part]) / math.sqrt(size)) for key in keys[: place + 1]]
            total = torch.stack(weights).sum()
            heads.append(sum(weight / total * value[part] for weight, value in zip(weights, values, strict=False)))
        row_D = block.feed_forward_norm(torch.cat(heads) * normed_D)
        rows.append(row_D + block.contract(leaky(block.expand(row_D))))
    return torch.stack(rows)


def states_by_loops(encoder: Carca, history_LD: Tensor) -> Tensor:
    for block in encoder.blocks:
        history_LD = block_by_loops(block, history_LD)
    return torch.stack([encoder.norm(row_D) for row_D in history_LD])


@pytest.mark.parametrize("num_heads", [1, 3])
def test_values_and_gradients_are_those_of_loops(num_heads: int) -> None:
    encoder = fresh(num_heads=num_heads)
    item_BLD, is_valid_BL = histories()
    hidden_BLD = encoder(History(item_BLD, is_valid_BL)).hidden_BLD
    actual = [hidden_BLD[user, -length:] for user, length in enumerate(LENGTHS)]
    expected = [states_by_loops(encoder, item_BLD[user, -length:]) for user, length in enumerate(LENGTHS)]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)  # float64; measured 1e-15
    weights = torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sources = [item_BLD, *encoder.parameters()]
    ours_by_source, theirs_by_source = (
        torch.autograd.grad(sum((states @ weights).sum() for states in found), sources, retain_graph=True)
        for found in (actual, expected)
    )
    for one, other in zip(ours_by_source, theirs_by_source, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # float64; measured 5e-15


def test_another_later_item_changes_no_earlier_score() -> None:
    """The released code lets every state see the whole history, with the targets of training in it."""
    encoder, (item_BLD, is_valid_BL) = fresh(), histories()
    settings = AttentionConfig(activation="leaky_relu", multiplies="candidate")
    scorer = AttentionScorer(settings, BuildContext(WIDTH)).double().eval()
    items = ItemVectors(torch.randn(4, WIDTH, dtype=torch.float64))

    def scores(history_BLD: Tensor) -> tuple[Query, Tensor]:
        query = Query.at(encoder(History(history_BLD, is_valid_BL)), Places.where(is_valid_BL))
        return query, scorer(query, items)

    query, before_KN = scores(item_BLD)
    for place in range(1, LENGTHS[0]):
        changed_BLD = item_BLD.detach().clone()
        changed_BLD[:, place] += torch.arange(WIDTH)
        _, after_KN = scores(changed_BLD)
        is_early_K = query.position_K < place
        torch.testing.assert_close(after_KN[is_early_K], before_KN[is_early_K], rtol=0, atol=1e-12)
        assert (after_KN - before_KN)[~is_early_K].abs().max() > 1e-6


def test_more_padding_changes_nothing_whatever_it_holds() -> None:
    encoder, (item_BLD, is_valid_BL) = fresh(), histories()
    hidden_BLD = encoder(History(item_BLD, is_valid_BL)).hidden_BLD
    wider_BLD = F.pad(item_BLD, (0, 0, 2, 0), value=9.0)
    wider = encoder(History(wider_BLD, F.pad(is_valid_BL, (2, 0)))).hidden_BLD[:, 2:]
    torch.testing.assert_close(wider[is_valid_BL], hidden_BLD[is_valid_BL], rtol=0, atol=1e-12)


def test_what_it_cannot_read_or_share_is_an_error() -> None:
    item_BLD, is_valid_BL = torch.zeros(1, 8, WIDTH, dtype=torch.float64), torch.ones(1, 8, dtype=torch.bool)
    with pytest.raises(RecipeError, match="max_inputs: 7, but histories of 8 inputs came"):
        fresh()(History(item_BLD, is_valid_BL))
    with pytest.raises(RecipeError, match=r"user_encoder\.num_heads: 4 do not divide the width 6"):
        fresh(num_heads=4)
