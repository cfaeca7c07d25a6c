"""A ResNet gives a token for each place of its map, brought to the common width by a convolution (MMSR)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelSpec, TokenStates
from pmmrec.encoders import vision_encoders
from pmmrec.errors import RecipeError
from pmmrec.testing.subjects import pixel_inputs

RESNET: dict[str, Any] = {
    "type": "timm",
    "architecture": {"name": "resnet18", "channels": [4, 4, 8, 8], "zero_init_last": False},
    "image_size": 96,
    "pool": "mean",
    "projection": "conv3x3",
}
OF_TRANSFORMERS: dict[str, Any] = {
    **RESNET,
    "type": "hf_vision",
    "architecture": {
        "model_type": "resnet",
        "embedding_size": 64,
        "hidden_sizes": [4, 4, 8, 8],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
    },
}


def encoder_of(folder: Path, tree: dict[str, Any]) -> Any:
    config = vision_encoders.config(tree)
    part_class: Any = vision_encoders.part_class(config)
    part_class.start(config, folder, [])
    torch.manual_seed(0)
    return part_class(config, BuildContext(5, {"": Backbone(folder, is_pretrained=False)})).double().eval()


def of_transformers(backbone: Any) -> ResNetModel:
    """The same ResNet in transformers, with the weights of timm's."""
    sizes = {"embedding_size": 64, "hidden_sizes": [4, 4, 8, 8], "depths": [2, 2, 2, 2]}
    model = ResNetModel(ResNetConfig(layer_type="basic", **sizes)).double().eval()
    kinds = {"conv": "convolution", "bn": "normalization"}
    kinds |= {"downsample.0": "convolution", "downsample.1": "normalization"}
    renamed = {}
    for name, tensor in backbone.state_dict().items():
        head, _, last = name.rpartition(".")
        if not head.startswith("layer"):
            renamed[f"embedder.embedder.{kinds[head[:-1]]}.{last}"] = tensor
            continue
        stage, block, module = head.split(".", 2)
        inside = f"shortcut.{kinds[module]}" if module in kinds else f"layer.{int(module[-1]) - 1}.{kinds[module[:-1]]}"
        renamed[f"encoder.stages.{int(stage[-1]) - 1}.layers.{block}.{inside}.{last}"] = tensor
    model.load_state_dict(renamed)
    return model


def convolved(weight_DC33: Tensor, map_CHW: Tensor) -> Tensor:
    """relu(W * x) by loops: a token for each place, rows of the map one after another."""
    channels, height, breadth = map_CHW.shape
    tokens = []
    for h in range(height):
        for w in range(breadth):
            numbers = []
            for kernel_C33 in weight_DC33:
                total = torch.zeros((), dtype=torch.float64)
                for c in range(channels):
                    for i in range(3):
                        for j in range(3):
                            if 0 <= h + i - 1 < height and 0 <= w + j - 1 < breadth:
                                total = total + kernel_C33[c, i, j] * map_CHW[c, h + i - 1, w + j - 1]
                numbers.append(total * (total > 0))
            tokens.append(torch.stack(numbers))
    return torch.stack(tokens)


def test_tokens_are_those_of_transformers_resnet_and_of_loops_over_its_map(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, RESNET)
    for name, tensor in encoder.named_parameters():
        if ".bn" in name or ".downsample.1" in name:  # else the map is near 0
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    inputs = pixel_inputs(encoder.pixel_spec)
    pixels = encoder.normalise(inputs.pixels_RCHW, torch.float64)
    with torch.no_grad():
        map_RCHW = of_transformers(encoder.backbone)(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(encoder.hidden(inputs), map_RCHW, rtol=0, atol=1e-12)
    expected_RPD = torch.stack([convolved(encoder.projection.weight, map_CHW) for map_CHW in map_RCHW])
    states = encoder(inputs)
    assert states.length_R.tolist() == [9, 9, 9]
    assert expected_RPD.mean() > 0.1
    torch.testing.assert_close(states.token_KD, expected_RPD.flatten(0, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(states.cls_RD, expected_RPD.mean(1), rtol=0, atol=1e-12)
    ours = torch.autograd.grad(states.token_KD.square().sum(), encoder.projection.weight)
    theirs = torch.autograd.grad(expected_RPD.square().sum(), encoder.projection.weight)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("projection", ["conv3x3", "linear"])
def test_the_resnets_of_both_libraries_give_the_same(tmp_path: Path, projection: str) -> None:
    theirs, ours = (tmp_path / name for name in ("timm", "transformers"))
    for folder in (theirs, ours):
        folder.mkdir()
    timm = encoder_of(theirs, {**RESNET, "projection": projection})
    encoder = encoder_of(ours, {**OF_TRANSFORMERS, "projection": projection})
    encoder.backbone.load_state_dict(of_transformers(timm.backbone).state_dict())
    encoder.projection.load_state_dict(timm.projection.state_dict())
    inputs = pixel_inputs(encoder.pixel_spec)
    assert encoder.pixel_spec == timm.pixel_spec
    for one, other in zip(_told(encoder(inputs)), _told(timm(inputs)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(encoder.pooled(inputs), timm.pooled(inputs), rtol=0, atol=1e-12)


def _told(states: TokenStates) -> tuple[Tensor, Tensor]:
    return states.token_KD, states.cls_RD


def test_a_classifier_of_transformers_is_opened_without_its_head(tmp_path: Path) -> None:
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes)).double().eval()
    model.save_pretrained(tmp_path)
    config = vision_encoders.config({"type": "hf_vision", "weights": "resnet", "pool": "mean", "projection": "conv3x3"})
    part_class: Any = vision_encoders.part_class(config)
    encoder = part_class(config, BuildContext(5, {"": Backbone(tmp_path, is_pretrained=True)})).double().eval()
    assert encoder.pixel_spec == PixelSpec(224)
    inputs = pixel_inputs(PixelSpec(32))
    expected = model.resnet(encoder.normalise(inputs.pixels_RCHW, torch.float64)).last_hidden_state
    torch.testing.assert_close(encoder.hidden(inputs), expected, rtol=0, atol=1e-6)  # opened in float32


def test_an_image_of_224_pixels_has_49_tokens(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, {**RESNET, "image_size": 224})
    assert encoder(pixel_inputs(encoder.pixel_spec)).length_R.tolist() == [49, 49, 49]


def test_what_gives_no_map_is_refused(tmp_path: Path) -> None:
    sizes = {"embed_dim": 8, "depth": 2, "num_heads": 2}
    vit = {"model_type": "vit", "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for tree in (
        {**RESNET, "architecture": {"name": "vit_tiny_patch16_224", **sizes}, "image_size": 32},
        {**OF_TRANSFORMERS, "architecture": vit, "image_size": 32},
    ):
        with pytest.raises(RecipeError, match="gives no feature map of channels; use linear"):
            encoder_of(tmp_path, tree)
