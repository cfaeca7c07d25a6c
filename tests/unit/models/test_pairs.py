"""A text fused with the image of another item is the vector of an item that has both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pmmrec.contracts import ItemInputs
from pmmrec.models import item_encoders
from pmmrec.models.towers import _TINY_TEXT, _TINY_VISION
from pmmrec.packing import HostArray
from pmmrec.requests import View
from pmmrec.testing.subjects import NUM_ITEMS, Subject, item_inputs, pixel_inputs

FUSIONS = (
    {"type": "merge_attention", "num_heads": 2},
    {"type": "merge_attention", "num_heads": 2, "pool": "mean", "mm_cls": False, "with_cls": True},
    {"type": "sum"},
)


def with_images_of(items: ItemInputs, encoder: Any, order: list[int]) -> ItemInputs:
    """The items with the images of others."""
    images = pixel_inputs(encoder.reads["image"], order)
    given = dataclasses.replace(images, item_index_R=HostArray(range(len(order))))
    return dataclasses.replace(items, fields={**items.fields, "image": given})


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_pairs_are_items_of_another_text_and_image(tmp_path: Path, fusion: dict[str, Any], normalize: str) -> None:
    tree = {"type": "towers", "text": _TINY_TEXT, "vision": _TINY_VISION, "fusion": fusion, "normalize": normalize}
    encoder = Subject(item_encoders, item_encoders.config(tree), tmp_path).build().double().eval()
    encoder.asked = frozenset({View.TOKENS.value})
    items = item_inputs(encoder)
    vectors = encoder(items)
    own = torch.arange(NUM_ITEMS)
    torch.testing.assert_close(encoder.fused_pairs(vectors, own, own), vectors.fused_UD, rtol=0, atol=1e-12)
    order = [2, 0, 1]
    crossed = encoder.fused_pairs(vectors, own, torch.tensor(order))
    expected = encoder(with_images_of(items, encoder, order)).fused_UD
    torch.testing.assert_close(crossed, expected, rtol=0, atol=1e-12)
    parameters = [one for one in encoder.parameters() if one.requires_grad]
    found, wanted = (
        torch.autograd.grad(one.square().sum(), parameters, materialize_grads=True, allow_unused=True)
        for one in (crossed, expected)
    )
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-10)
