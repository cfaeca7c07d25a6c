"""Blocks that keep no activations say and learn what they did, and hold less for the way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs, PrefixInputs, TokenInputs
from pmmrec.encoders.vision_timm import TimmConfig, TimmVision
from pmmrec.packing import HostArray

TIMM: dict[str, dict[str, Any]] = {
    "convnext": {"name": "convnext_atto", "depths": [2, 2, 2, 2], "dims": [4, 8, 8, 16]},
    "swin": {
        "name": "swin_tiny_patch4_window7_224",
        "window_size": 4,
        "depths": [2, 2],
        "embed_dim": 8,
        "num_heads": [2, 2],
    },
    "vit": {"name": "vit_tiny_patch16_224", "depth": 3, "embed_dim": 8, "num_heads": 2, "patch_size": 8},
}


def fresh_timm(folder: Path, name: str, **settings: Any) -> TimmVision:
    config = TimmConfig(architecture=TIMM[name], image_size=32, pool="mean", **settings)
    TimmVision.start(config, folder, [])
    torch.manual_seed(0)
    return TimmVision(config, BuildContext(6, {"": Backbone(folder, is_pretrained=False)}))


def step(encoder: Any, inputs: Any) -> tuple[Tensor, dict[str, Tensor], int]:
    """Vectors and gradients of one step under the dropout of one seed, and the bytes held between its two ways."""
    own = {parameter.data_ptr() for parameter in encoder.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    encoder.train().zero_grad()
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = encoder(inputs)
    (states.cls_RD.square().sum() + states.token_KD.sin().sum()).backward()
    gradients = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return states.cls_RD.detach(), gradients, sum(held.values())


def assert_only_memory_changes(encoder: Any, inputs: Any) -> None:
    vectors, gradients, num_bytes = step(encoder, inputs)
    encoder.checkpoint_activations()
    again, others, fewer_bytes = step(encoder, inputs)
    assert torch.equal(again, vectors)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(others[name], gradient), name
    assert fewer_bytes < 0.7 * num_bytes


def test_blocks_of_a_text_encoder(fresh_text: Callable[..., Any], texts: list[str]) -> None:
    encoder = fresh_text(trainable_blocks="all")
    assert_only_memory_changes(encoder, TokenInputs.of(encoder.tokenizer.encode(texts)))


def test_blocks_of_a_vision_encoder(fresh_vision: Callable[..., Any], pixels: Tensor) -> None:
    assert_only_memory_changes(fresh_vision(trainable_blocks="all"), PixelInputs(pixels, HostArray(range(3))))


@pytest.mark.parametrize("name", TIMM)
def test_blocks_of_timm(tmp_path: Path, pixels: Tensor, name: str) -> None:
    encoder = fresh_timm(tmp_path, name, trainable_blocks="all")
    assert_only_memory_changes(encoder, PixelInputs(pixels, HostArray(range(3))))


@pytest.mark.parametrize("name", TIMM)
def test_blocks_of_timm_from_kept_states(tmp_path: Path, pixels: Tensor, name: str) -> None:
    encoder = fresh_timm(tmp_path, name, trainable_blocks=1)
    states_R = encoder.prefix.states(PixelInputs(pixels, HostArray(range(3))))
    kept = PrefixInputs(states_R, None, HostArray(range(3)))
    assert_only_memory_changes(encoder, kept)


def test_blocks_from_kept_states_of_texts(fresh_text: Callable[..., Any], texts: list[str]) -> None:
    encoder = fresh_text(trainable_blocks=2)
    inputs = TokenInputs.of(encoder.tokenizer.encode(texts))
    kept = PrefixInputs(encoder.prefix.states(inputs), inputs.packing, inputs.item_index_R)
    assert_only_memory_changes(encoder, kept)
