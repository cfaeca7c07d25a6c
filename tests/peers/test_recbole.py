"""Our systems score items as RecBole's classes do, once they have the same weights and settings.

What had to be set for that is in `README.md`. RecBole counts positions from the oldest item and pads on the right; we
count from the latest and pad on the left. Its classes are therefore asked twice: with histories padded on the left,
where both count alike, and padded as its data sets are, one length at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from recbole_models import (
    LENGTH,
    copied,
    histories,
    left_padded,
    our_scores,
    ours,
    peer,
    right_padded,
    their_scores,
    transformer_weights,
)
from torch import Tensor

from pmmrec.models.recommender import Recommender

pytestmark = pytest.mark.skipif(find_spec("recbole") is None, reason="RecBole is not installed: see `make peers`")
LENGTHS = (LENGTH, 1, 3, LENGTH - 1)
BERT = {"type": "transformer", "activation": "gelu", "qkv_bias": True, "norm_eps": 1e-12}


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def assert_equal_scores(actual: Tensor, expected: Tensor) -> None:
    """Both in float64; measured: at most 4e-15, of scores up to 3."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def with_items(model: Recommender, item_ND: Tensor) -> Recommender:
    copied({"weight": item_ND}, model.item_encoder.item_table.vector)
    return model


def sasrec(theirs: Any, position_PD: Tensor) -> Recommender:
    """Ours with their weights; `position_PD`: from the latest position on."""
    model = ours({**BERT, "max_inputs": LENGTH})
    weights = transformer_weights(theirs, theirs.trm_encoder)
    copied({**weights, "position.weight": position_PD}, model.user_encoder)
    return with_items(model, theirs.item_embedding.weight[1:])


def bert4rec(theirs: Any, position_PD: Tensor) -> Recommender:
    """Ours with their weights; one of their positions is that of the mask."""
    model = ours({**BERT, "attends": "all", "output_head": True, "max_inputs": LENGTH - 1})
    weights = transformer_weights(theirs, theirs.trm_encoder)
    for place, layer in ((0, theirs.output_ffn), (2, theirs.output_ln)):
        weights |= {f"head.{place}.{kind}": getattr(layer, kind) for kind in ("weight", "bias")}
    mask_D = theirs.item_embedding.weight[theirs.mask_token]
    copied({**weights, "position.weight": position_PD, "mask": mask_D}, model.user_encoder)
    return with_items(model, theirs.item_embedding.weight[1 : theirs.mask_token])


def gru4rec(theirs: Any) -> Recommender:
    model = ours({"type": "gru", "num_layers": 2, "output_layer": True, "max_inputs": LENGTH})
    weights = {f"gru.{name}": weight for name, weight in theirs.gru_layers.named_parameters()}
    copied({**weights, "output.weight": theirs.dense.weight, "output.bias": theirs.dense.bias}, model.user_encoder)
    return with_items(model, theirs.item_embedding.weight[1:])


def counted_from_latest(theirs: Any, length: int) -> Tensor:
    """Their positions, which the oldest of `length` inputs begins, in our order; no other position is read."""
    position_PD = theirs.position_embedding.weight
    return torch.cat((position_PD[:length].flip(0), torch.full_like(position_PD[length:], torch.nan)))


def test_sasrec_scores_left_padded_histories_as_recbole() -> None:
    theirs, rows = peer("SASRec"), histories(LENGTHS)
    expected = their_scores(theirs, left_padded(rows), [LENGTH] * len(rows))
    assert_equal_scores(our_scores(sasrec(theirs, counted_from_latest(theirs, LENGTH)), rows), expected)


def test_sasrec_scores_right_padded_histories_as_recbole() -> None:
    theirs = peer("SASRec")
    for length in LENGTHS:
        rows = histories([length])
        expected = their_scores(theirs, right_padded(rows), [length])
        assert_equal_scores(our_scores(sasrec(theirs, counted_from_latest(theirs, length)), rows), expected)


def without_item_bias(theirs: Any) -> Any:
    """BERT4Rec of RecBole without a bias of each item, which starts at 0."""
    theirs.output_bias.zero_()
    return theirs


def test_bert4rec_scores_right_padded_histories_as_recbole_without_their_oldest_item() -> None:
    theirs = without_item_bias(peer("BERT4Rec"))
    for length in (2, 4, LENGTH):  # RecBole drops the oldest item, also where there is room for the mask behind it
        rows = histories([length])
        expected = their_scores(theirs, right_padded(rows), [length])
        model = bert4rec(theirs, counted_from_latest(theirs, length))
        assert_equal_scores(our_scores(model, [rows[0][1:]]), expected)


def test_bert4rec_states_of_masked_histories_are_those_of_recbole() -> None:
    theirs, rows = without_item_bias(peer("BERT4Rec")), histories([LENGTH - 1, 3, 1])
    model = bert4rec(theirs, counted_from_latest(theirs, LENGTH))
    padded_BL = left_padded([torch.cat((row, torch.tensor([theirs.mask_token - 1]))) for row in rows])
    expected = theirs(padded_BL)[:, -1] @ theirs.item_embedding.weight[1 : theirs.mask_token].T
    assert_equal_scores(our_scores(model, rows), expected)


@pytest.mark.parametrize("pad", [left_padded, right_padded])
def test_gru4rec_scores_histories_as_recbole(pad: Callable[..., Tensor]) -> None:
    theirs, rows = peer("GRU4Rec", num_layers=2), histories(LENGTHS)
    theirs.item_embedding.weight[0] = 0  # the padding, which must not move the state where it comes first
    lengths = list(map(len, rows)) if pad is right_padded else [LENGTH] * len(rows)
    assert_equal_scores(our_scores(gru4rec(theirs), rows), their_scores(theirs, pad(rows), lengths))
