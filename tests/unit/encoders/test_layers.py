"""The hidden states of all layers are those that transformers gives, pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from pmmrec.context import Backbone, BuildContext
from pmmrec.encoders import text_encoders, vision_encoders
from pmmrec.errors import RecipeError
from pmmrec.testing.subjects import pixel_inputs, token_inputs

SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = {
    "type": "hf_text",
    "architecture": {"model_type": "bert", "max_position_embeddings": 24, **SIZES},
    "vocab_size": 300,
    "max_tokens": 12,
}
VIT = {"type": "hf_vision", "architecture": {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZES}}


def encoder_of(folder: Path, tree: dict[str, Any]) -> Any:
    family: Any = text_encoders if tree["type"] == "hf_text" else vision_encoders
    config = family.config(tree)
    family.part_class(config).start(config, folder, ["red shoes", "green"])
    torch.manual_seed(0)
    context = BuildContext(4, {"": Backbone(folder, is_pretrained=False)})
    return family.part_class(config)(config, context).double().eval()


@pytest.mark.parametrize("depth", [0, 1, "all"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_texts_are_those_of_transformers(tmp_path: Path, pool: str, depth: int | str) -> None:
    encoder = encoder_of(tmp_path, {**TEXT, "pool": pool, "trainable_blocks": depth})
    inputs = token_inputs(encoder.tokenizer)
    layers_RTH = encoder.layers(inputs)
    options = {"attn_implementation": "eager", "add_pooling_layer": False}
    plain = AutoModel.from_config(encoder.backbone.config, **options).double()
    plain.load_state_dict(encoder.backbone.state_dict())
    first_R = inputs.packing.first_R.values
    for row, (first, length) in enumerate(zip(first_R, inputs.packing.length_R, strict=True)):
        token_id = inputs.token_id_K[first : first + length][None]
        states = plain.eval()(input_ids=token_id, output_hidden_states=True).hidden_states
        expected = torch.stack([one[0, 0] if pool == "cls" else one[0].mean(0) for one in states])
        torch.testing.assert_close(layers_RTH[row], expected, rtol=0, atol=1e-13)  # measured 4e-16


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_images_are_those_of_transformers(tmp_path: Path, pool: str) -> None:
    encoder = encoder_of(tmp_path, {**VIT, "pool": pool})
    inputs = pixel_inputs(encoder.pixel_spec)
    pixels = encoder.normalise(inputs.pixels_RCHW, torch.float64)
    states = encoder.backbone(pixel_values=pixels, output_hidden_states=True).hidden_states
    expected = torch.stack([one[:, 0] if pool == "cls" else one[:, 1:].mean(1) for one in states], dim=1)
    torch.testing.assert_close(encoder.layers(inputs), expected, rtol=0, atol=1e-13)  # measured 0


RESNET = {"type": "timm", "architecture": {"name": "resnet18"}, "image_size": 64, "pool": "mean"}
STAGES = {"depths": [1, 1], "num_heads": [1, 1], "patch_size": 4, "window_size": 4, "embed_dim": 4}
SWIN = {"type": "hf_vision", "architecture": {"model_type": "swin", "image_size": 32, **STAGES}, "pool": "mean"}


@pytest.mark.parametrize("tree", [RESNET, SWIN], ids=["resnet", "swin"])
def test_stages_of_different_shapes_are_refused(tmp_path: Path, tree: dict[str, Any]) -> None:
    encoder = encoder_of(tmp_path, tree).float()
    with pytest.raises(RecipeError, match="different shapes"):
        encoder.layers(pixel_inputs(encoder.pixel_spec))
