"""An encoder whose tokens nobody reads pools before it projects, and gives the same vectors and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.contracts import PixelInputs, TokenInputs
from pmmrec.packing import HostArray

Fresh = Callable[..., Any]
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
VIT = {"model_type": "vit", **SIZES, "image_size": 32, "patch_size": 8}
TIMM: dict[str, dict[str, Any]] = {
    "ConvNeXt": {"name": "convnext_atto", "depths": [1, 1, 1, 1], "dims": [4, 8, 8, 16]},
    "VisionTransformer": {"name": "vit_tiny_patch16_224", "depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 8},
}
BERT = {"model_type": "bert", "max_position_embeddings": 40, **SIZES}
DEBERTA = {"model_type": "deberta-v2", "max_position_embeddings": 40, **SIZES}
HEAD = {"head": {"layers": 2, "activation": "gelu", "dropout": 0.0}}
RESNET = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}


def step(encoder: Any, inputs: TokenInputs | PixelInputs, *, is_kept: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The whole of each row, and the gradients of a loss of them, in float64."""
    encoder.double().eval().zero_grad()
    states = encoder(encoder.at_cut(inputs, encoder.up_to_cut(inputs).detach()) if is_kept else inputs)
    states.cls_RD.pow(3).sum().backward()
    return states.cls_RD.detach(), {
        name: weight.grad.clone()
        for name, weight in encoder.named_parameters()
        if weight.grad is not None and weight.grad.any()
    }


def assert_wholes_are_the_same(encoder: Any, inputs: TokenInputs | PixelInputs, *, is_kept: bool) -> None:
    whole_RD, gradients = step(encoder, inputs, is_kept=is_kept)
    encoder.gives_tokens = False
    alone_RD, gradients_alone = step(encoder, inputs, is_kept=is_kept)
    torch.testing.assert_close(alone_RD, whole_RD, rtol=0, atol=1e-13)
    assert gradients_alone.keys() == gradients.keys()
    assert "projection.weight" in gradients
    for name, gradient in gradients_alone.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("head", [{}, HEAD], ids=["no head", "head"])
def test_texts(
    fresh_text: Fresh, texts: list[str], head: dict[str, Any], pool: str, depth: int, *, is_kept: bool
) -> None:
    encoder = fresh_text(BERT, pool=pool, trainable_blocks=depth, **head)
    assert_wholes_are_the_same(encoder, TokenInputs.of(encoder.tokenizer.encode(texts)), is_kept=is_kept)


@pytest.mark.parametrize("is_kept", [False, True])
def test_texts_that_are_padded(fresh_text: Fresh, texts: list[str], *, is_kept: bool) -> None:
    encoder = fresh_text(DEBERTA, pool="mean", trainable_blocks=0)
    assert_wholes_are_the_same(encoder, TokenInputs.of(encoder.tokenizer.encode(texts)), is_kept=is_kept)


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_images(fresh_vision: Fresh, pixels: Tensor, pool: str, depth: int, *, is_kept: bool) -> None:
    encoder = fresh_vision(VIT, pool=pool, trainable_blocks=depth, **HEAD)
    assert_wholes_are_the_same(encoder, PixelInputs(pixels, HostArray(range(len(pixels)))), is_kept=is_kept)


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("class_name", ["ConvNeXt", "VisionTransformer"])
def test_images_of_timm(fresh_timm: Fresh, pixels: Tensor, class_name: str, *, is_kept: bool) -> None:
    encoder = fresh_timm(TIMM[class_name], trainable_blocks=0)
    assert_wholes_are_the_same(encoder, PixelInputs(pixels, HostArray(range(len(pixels)))), is_kept=is_kept)


def test_a_convolution_over_a_map_is_never_pooled_first(fresh_vision: Fresh, pixels: Tensor) -> None:
    encoder = fresh_vision(RESNET, pool="mean", projection="conv3x3", trainable_blocks=0)
    inputs = PixelInputs(pixels, HostArray(range(len(pixels))))
    assert_wholes_are_the_same(encoder, inputs, is_kept=True)
    assert encoder.up_to_cut(inputs).dim() == 4


def test_kept_states_of_frozen_encoders_are_one_a_row_and_have_names_of_their_own(
    fresh_text: Fresh, texts: list[str]
) -> None:
    encoder = fresh_text(BERT, pool="mean", trainable_blocks=0)
    inputs = TokenInputs.of(encoder.tokenizer.encode(texts))
    of_tokens = encoder.prefix
    names = [of_tokens.fingerprint]
    assert (len(of_tokens.states(inputs)), of_tokens.is_pooled) == (inputs.packing.num_places, False)
    encoder.gives_tokens = False
    for pool in ("mean", "cls"):
        encoder._pool = pool
        pooled = encoder.prefix
        names.append(pooled.fingerprint)
        assert (len(pooled.states(inputs)), pooled.is_pooled) == (len(texts), True)
        assert pooled.at_cut(inputs).packing is None
    assert len(set(names)) == 3
