"""NextItNet and FDSA score items as RecBole's classes do, once they have the same weights and settings."""
# Shapes: B users, L inputs, N items, F features, D width.

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from recbole_models import (
    LENGTH,
    NUM_ITEMS,
    WIDTH,
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
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import History, ItemVectors
from pmmrec.models.features import FieldAttention
from pmmrec.users.two_stream import CONTENT, TwoStream, TwoStreamConfig

pytestmark = pytest.mark.skipif(find_spec("recbole") is None, reason="RecBole is not installed: see `make peers`")
ATOL = 1e-12  # float64, of scores up to 22; measured at most 9e-15
NUM_FEATURES = 3


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def nextitnet(theirs: Any) -> Any:
    """Ours with their weights: a convolution is a linear layer over its taps, oldest first."""
    model = ours({"type": "nextitnet", "dilations": [1, 4], "repeats": 5, "output_layer": True, "max_inputs": LENGTH})
    weights: dict[str, Tensor] = {"output.weight": theirs.final_layer.weight, "output.bias": theirs.final_layer.bias}
    for place, block in enumerate(theirs.residual_blocks):
        for which, convolution, norm in (("first", block.conv1, block.ln1), ("second", block.conv2, block.ln2)):
            taps = convolution.weight[:, :, 0].transpose(1, 2).flatten(1)
            weights |= {f"blocks.{place}.{which}.weights.weight": taps}
            weights |= {f"blocks.{place}.{which}.weights.bias": convolution.bias}
            weights |= {f"blocks.{place}.{which}_norm.{kind}": getattr(norm, kind) for kind in ("weight", "bias")}
    copied(weights, model.user_encoder)
    copied({"weight": theirs.item_embedding.weight[1:]}, model.item_encoder.item_table.vector)
    return model


def test_nextitnet_scores_whole_histories_as_recbole() -> None:
    theirs, rows = peer("NextItNet"), histories([LENGTH] * 4)
    expected = their_scores(theirs, right_padded(rows), [LENGTH] * 4)
    torch.testing.assert_close(our_scores(nextitnet(theirs), rows), expected, rtol=0, atol=ATOL)


def test_recbole_reads_the_padding_behind_a_short_history_in_nextitnet() -> None:
    """It takes the state of the last column, whatever stands there, and pads on the right."""
    theirs, rows = peer("NextItNet"), histories([3])
    found = [their_scores(theirs, pad(rows), [3]) for pad in (right_padded, left_padded)]
    assert (found[0] - found[1]).abs().max() > 0.1
    ours_scores = our_scores(nextitnet(theirs), rows)
    assert all((one - ours_scores).abs().max() > 0.1 for one in found)  # on the left, biases turn zeros into items


class Features(nn.Module):
    """Vectors of the features of items, `(B, L, F, D)`, in place of RecBole's layer that reads its data sets."""

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.vector = nn.Embedding(NUM_ITEMS + 1, NUM_FEATURES * WIDTH)

    def forward(self, _: None, item_BL: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"item": self.vector(item_BL).unflatten(2, (NUM_FEATURES, WIDTH))}, {"item": None}


@pytest.mark.parametrize("length", [LENGTH, 3, 1])
def test_fdsa_scores_right_padded_histories_as_recbole(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr("recbole.model.sequential_recommender.fdsa.FeatureSeqEmbLayer", Features)
    theirs, rows = peer("FDSA"), histories([length])
    expected = their_scores(theirs, right_padded(rows), [length])

    attention = FieldAttention(WIDTH).double()
    given = theirs.feature_att_layer.projection
    copied({"0.weight": given[0].weight, "0.bias": given[0].bias, "2.weight": given[2].weight}, attention.weigh)
    feature_NFD = theirs.feature_embed_layer.vector.weight[1:].unflatten(1, (NUM_FEATURES, WIDTH))
    content_ND = attention(feature_NFD, torch.ones(NUM_ITEMS, NUM_FEATURES, dtype=torch.bool))

    encoder = TwoStream(TwoStreamConfig(max_inputs=LENGTH), BuildContext(WIDTH)).double().eval()
    weights = transformer_weights(theirs, theirs.item_trm_encoder, "item_")
    weights |= transformer_weights(theirs, theirs.feature_trm_encoder, "content_")
    position_PD = theirs.position_embedding.weight
    weights["position.weight"] = torch.cat((position_PD[:length].flip(0), position_PD[length:]))
    weights |= {f"join.{kind}": getattr(theirs.concat_layer, kind) for kind in ("weight", "bias")}
    copied(weights, encoder)

    item_ND = theirs.item_embedding.weight[1:]
    items = ItemVectors(item_ND, streams_UD={CONTENT: content_ND})
    history = History.of(items, rows[0][None], torch.ones(1, length, dtype=torch.bool))
    torch.testing.assert_close(encoder.query(history).hidden_KD @ item_ND.T, expected, rtol=0, atol=ATOL)
