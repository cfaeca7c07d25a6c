"""The layers above the projection of an encoder, against loops in float64; without them nothing changes."""
# Shapes: R rows, K tokens, D width.

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.context import Backbone, BuildContext
from pmmrec.encoders import text_encoders, vision_encoders
from pmmrec.fusion.paired import pooled
from pmmrec.testing.subjects import pixel_inputs, token_inputs

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TEXT: dict[str, Any] = {
    "type": "hf_text",
    "architecture": {"model_type": "bert", "max_position_embeddings": 24, **SIZES},
    "vocab_size": 300,
    "max_tokens": 12,
}
VIT: dict[str, Any] = {
    "type": "hf_vision",
    "architecture": {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZES},
}
RESNET: dict[str, Any] = {
    "type": "timm",
    "architecture": {"name": "resnet18", "channels": [4, 4, 8, 8], "zero_init_last": False},
    "image_size": 64,
}
WIDTH = 4


def encoder_of(folder: Path, tree: dict[str, Any]) -> Any:
    family = text_encoders if tree["type"] == "hf_text" else vision_encoders
    config = family.config(tree)
    folder.mkdir(exist_ok=True)
    family.part_class(config).start(config, folder, ["red shoes", "green"])
    torch.manual_seed(0)
    context = BuildContext(WIDTH, {"": Backbone(folder, is_pretrained=False)})
    return family.part_class(config)(config, context).double().eval()


def by_loops(vector_D: Tensor, head: torch.nn.Sequential, activation: str) -> Tensor:
    """act(x), then act(W x + b) for each block."""

    def act(x: Tensor) -> Tensor:
        if activation == "none":
            return x
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2 if activation == "gelu" else x * (x > 0)

    numbers = [act(number) for number in vector_D]
    for layer in (one for one in head if isinstance(one, torch.nn.Linear)):
        numbers = [
            act(layer.bias[d] + sum(layer.weight[d, k] * numbers[k] for k in range(WIDTH))) for d in range(WIDTH)
        ]
    return torch.stack(numbers)


@pytest.mark.parametrize(
    ("tree", "pool"),
    [(TEXT, "cls"), (TEXT, "mean"), (VIT, "cls"), (VIT, "mean"), (RESNET, "mean")],
    ids=["text-cls", "text-mean", "vit-cls", "vit-mean", "resnet-mean"],
)
@pytest.mark.parametrize(
    "head", [{}, {"layers": 2, "activation": "relu", "dropout": 0.5}, {"layers": 1, "activation": "none"}], ids=str
)
def test_tokens_and_the_whole_are_those_of_loops(
    tmp_path: Path, tree: dict[str, Any], pool: str, head: dict[str, Any]
) -> None:
    encoder = encoder_of(tmp_path / "one", {**tree, "pool": pool, "head": head})
    inputs = token_inputs(encoder.tokenizer) if tree is TEXT else pixel_inputs(encoder.pixel_spec)
    found, layers = encoder(inputs), encoder.head
    encoder.head = None
    plain, activation = encoder(inputs), head.get("activation", "gelu")
    draw, losses = torch.Generator().manual_seed(3), [torch.zeros((), dtype=torch.float64)] * 2
    for one, below in ((found.token_KD, plain.token_KD), (found.cls_RD, plain.cls_RD)):
        expected = torch.stack([by_loops(vector_D, layers, activation) for vector_D in below])
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-14)  # measured 2e-16
        weights = torch.randn(one.shape, generator=draw, dtype=torch.float64)
        losses = [losses[0] + (one * weights).sum(), losses[1] + (expected * weights).sum()]
    learned = [*encoder.projection.parameters(), *layers.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(loss, learned) for loss in losses), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)  # sums of about 100 numbers; measured 2e-15


def test_without_a_head_there_are_the_same_tensors_under_the_same_names(tmp_path: Path) -> None:
    plain = encoder_of(tmp_path / "plain", TEXT).state_dict()
    headed = encoder_of(tmp_path / "headed", {**TEXT, "head": {"layers": 1}}).state_dict()
    assert set(headed) - set(plain) == {"head.2.weight", "head.2.bias"}
    assert all(torch.equal(headed[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("head", [None, {"layers": 1}], ids=["bare", "head"])
@pytest.mark.parametrize("tree", [TEXT, VIT, RESNET], ids=["text", "vit", "resnet"])
def test_the_first_token_is_that_of_cls_whichever_way_the_whole_is_pooled(
    tmp_path: Path, tree: dict[str, Any], head: dict[str, Any] | None
) -> None:
    """A fusion counts it once; an encoder without a cls token has none."""
    encoder = encoder_of(tmp_path, {**tree, "pool": "mean", "head": head})
    states = encoder(token_inputs(encoder.tokenizer) if tree is TEXT else pixel_inputs(encoder.pixel_spec))
    if tree is RESNET:
        assert states.first_RD is None
        expected = [states.of_item(row).mean(0) for row in range(3)]
    else:
        encoder._pool = "cls"
        of_cls = encoder(token_inputs(encoder.tokenizer) if tree is TEXT else pixel_inputs(encoder.pixel_spec))
        assert of_cls.first_RD is of_cls.cls_RD
        torch.testing.assert_close(states.first_RD, of_cls.cls_RD, rtol=0, atol=1e-14)
        expected = [torch.cat([of_cls.cls_RD[row][None], states.of_item(row)]).mean(0) for row in range(3)]
    torch.testing.assert_close(pooled(states, "mean"), torch.stack(expected), rtol=0, atol=1e-14)
