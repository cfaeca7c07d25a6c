"""Images are pooled by cls, mean, maximum, or the pooler of the architecture; what it does not have is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs
from pmmrec.encoders.vision_hf import HFVision, HFVisionConfig
from pmmrec.encoders.vision_timm import TimmConfig, TimmVision
from pmmrec.errors import RecipeError
from pmmrec.packing import HostArray
from tests.support.tiny_encoders import MORE_OF_TIMM, TIMM, tiny_image

Fresh = Callable[..., HFVision]


def images_of(pixels_RCHW: Tensor) -> PixelInputs:
    return PixelInputs(pixels_RCHW, HostArray(range(len(pixels_RCHW))))


def fresh_timm(folder: Path, architecture: Any, **settings: Any) -> TimmVision:
    config = TimmConfig(architecture=dict(architecture), image_size=32, **settings)
    folder.mkdir()
    TimmVision.start(config, folder, [])
    torch.manual_seed(0)
    return TimmVision(config, BuildContext(6, {"": Backbone(folder, is_pretrained=False)}))


def assert_pooled(encoder: Any, inputs: PixelInputs, expected_RH: Tensor) -> None:
    """The whole is this vector, with tokens beside it and without, entered at the cut too; its pooler learns."""
    torch.testing.assert_close(encoder.pooled(inputs), expected_RH, rtol=0, atol=1e-6)
    for gives_tokens in (True, False):
        encoder.gives_tokens = gives_tokens
        whole_RD = encoder(inputs).cls_RD
        torch.testing.assert_close(whole_RD, encoder.projection(expected_RH), rtol=0, atol=1e-6)
        torch.testing.assert_close(encoder(encoder.prefix.at_cut(inputs)).cls_RD, whole_RD, rtol=0, atol=1e-6)
    generator = torch.Generator().manual_seed(0)
    (whole_RD * torch.randn(whole_RD.shape, generator=generator)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(
    ("model_type", "pool"),
    [
        ("vit", "pooler"),
        ("clip_vision_model", "pooler"),
        ("convnextv2", "pooler"),
        ("siglip_vision_model", "attention"),
        ("siglip2_vision_model", "attention"),
    ],
)
def test_a_pooler_gives_what_it_gives_in_transformers(
    fresh_vision: Fresh, pixels: Tensor, tmp_path: Path, model_type: str, pool: str
) -> None:
    encoder, inputs = fresh_vision(tiny_image(model_type), pool=pool, trainable_blocks=1).eval(), images_of(pixels)
    seen: list[Tensor] = []
    hook = encoder.backbone.register_forward_hook(lambda _model, _inputs, out: seen.append(out.pooler_output))
    encoder.hidden(inputs)
    hook.remove()
    assert_pooled(encoder, inputs, seen[0])
    assert any("pooler" in name or "head" in name or "norm" in name for name in encoder._trained)
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    config = HFVisionConfig(weights="saved", pool=pool)
    again = HFVision(config, BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)})).eval()
    torch.testing.assert_close(again.pooled(inputs), seen[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
def test_the_greatest_of_patches(fresh_vision: Fresh, pixels: Tensor, model_type: str) -> None:
    encoder, inputs = fresh_vision(tiny_image(model_type), pool="max", trainable_blocks=1).eval(), images_of(pixels)
    hidden = encoder.hidden(inputs)
    tokens_RPH = hidden.flatten(2).transpose(1, 2) if model_type == "resnet" else hidden[:, 1:]
    expected = torch.stack([torch.stack([max(column) for column in image.T]) for image in tokens_RPH])
    assert_pooled(encoder, inputs, expected)


def test_the_attention_of_siglip_gives_what_it_gives_in_timm(pixels: Tensor, tmp_path: Path) -> None:
    encoder = fresh_timm(tmp_path / "fresh", MORE_OF_TIMM["siglip"], pool="attention", trainable_blocks=1).eval()
    normal = encoder.normalise(pixels, torch.float32)
    assert_pooled(encoder, images_of(pixels), encoder.backbone(normal))


@pytest.mark.parametrize(
    ("model_type", "pool", "message"),
    [
        ("swin", "cls", "pool: swin has no cls token; use mean or max"),
        ("resnet", "pooler", "pool: resnet has no pooler; use mean or max"),
        ("vit", "attention", "pool: vit has no attention; use cls or mean or max or pooler"),
        ("siglip_vision_model", "pooler", "pool: siglip_vision_model has no pooler; use mean or max or attention"),
    ],
)
def test_what_an_architecture_does_not_have_is_refused(
    fresh_vision: Fresh, model_type: str, pool: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=f"^{message}$"):
        fresh_vision(tiny_image(model_type), pool=pool)


def test_what_a_model_of_timm_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="pool: vit_tiny_patch16_224 has no attention; use cls or mean or max"):
        fresh_timm(tmp_path / "fresh", TIMM["VisionTransformer"], pool="attention")


def test_a_map_below_a_convolution_has_its_mean_alone() -> None:
    with pytest.raises(ValidationError, match="pool: max is not computed above projection: conv3x3; use mean"):
        HFVisionConfig(architecture=tiny_image("resnet"), pool="max", projection="conv3x3")


def test_states_of_layers_are_not_pooled_by_a_pooler(fresh_vision: Fresh, pixels: Tensor) -> None:
    encoder = fresh_vision(tiny_image("vit"), pool="pooler")
    with pytest.raises(RecipeError, match="layers: pooler pools the last one alone; use pool: mean"):
        encoder.layers(images_of(pixels))
