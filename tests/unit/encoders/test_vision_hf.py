"""Images through encoders of transformers: patches, cls, sizes, scales, and what plain transformers makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, CLIPConfig, CLIPModel, CLIPVisionModel

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs, PixelSpec
from pmmrec.encoders.vision_hf import HFVision, HFVisionConfig
from pmmrec.encoders.vision_layouts import LAYOUTS
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.packing import HostArray
from tests.support.tiny_encoders import SIZES, tiny_image, whole_of

Fresh = Callable[..., HFVision]
CLIP = tiny_image("clip_vision_model")


def images_of(pixels_RCHW: Tensor) -> PixelInputs:
    return PixelInputs(pixels_RCHW, HostArray(range(len(pixels_RCHW))))


@pytest.mark.parametrize("depth", [1, "all"])
@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_gradients_reach_exactly_what_trains_of_every_known_tiny_image(
    fresh_vision: Fresh, pixels: Tensor, model_type: str, depth: Any
) -> None:
    encoder = fresh_vision(tiny_image(model_type), pool=whole_of(model_type), trainable_blocks=depth)
    states = encoder(images_of(pixels))
    generator = torch.Generator().manual_seed(0)
    (states.cls_RD * torch.randn(states.cls_RD.shape, generator=generator)).sum().backward()
    for name, parameter in encoder.backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert any(parameter.requires_grad for parameter in encoder.backbone.parameters())


@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_the_tokens_are_the_patches_of_the_image(fresh_vision: Fresh, pixels: Tensor, model_type: str) -> None:
    encoder = fresh_vision(tiny_image(model_type), pool=whole_of(model_type)).eval()
    states = encoder(images_of(pixels))
    # 4 x 4 patches of 8 pixels; Swin: 8 x 8 of 4, merged once; of others a map.
    assert states.token_KD.shape == (3 * 16, 6)
    assert states.length_R.tolist() == [16, 16, 16]


def test_clip_is_read_before_its_last_norm(fresh_vision: Fresh, pixels: Tensor) -> None:
    encoder = fresh_vision(CLIP).eval()
    output = encoder.backbone(encoder.normalise(pixels, torch.float32))
    assert torch.equal(encoder(images_of(pixels)).cls_RD, encoder.projection(output.last_hidden_state[:, 0]))
    assert not torch.equal(encoder(images_of(pixels)).cls_RD, encoder.projection(output.pooler_output))
    trains = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert not any("post_layernorm" in name for name in trains)


def test_the_mean_is_over_patches(fresh_vision: Fresh, pixels: Tensor) -> None:
    states = fresh_vision(pool="mean").eval()(images_of(pixels))
    torch.testing.assert_close(states.cls_RD, states.token_KD.view(3, 16, 6).mean(1), rtol=0, atol=0)


def test_cls_of_a_backbone_without_one_is_an_error(fresh_vision: Fresh) -> None:
    with pytest.raises(RecipeError, match="pool: swin has no cls token; use mean"):
        fresh_vision(tiny_image("swin"))


def test_pixels_are_scaled_as_the_image_processor_of_transformers_scales_them(
    fresh_vision: Fresh, pixels: Tensor, tmp_path: Path
) -> None:
    encoder = fresh_vision(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    theirs = processor(images=list(pixels), return_tensors="pt")["pixel_values"]
    ours = encoder.normalise(pixels, torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # float32, values up to 3; measured 2.4e-7


def test_pixels_are_scaled_in_the_dtype_of_the_parameters(fresh_vision: Fresh, pixels: Tensor) -> None:
    encoder = fresh_vision().eval().to(torch.bfloat16)
    assert encoder(images_of(pixels)).cls_RD.dtype == torch.bfloat16


def test_white_and_black_are_one_and_minus_one_by_default(fresh_vision: Fresh) -> None:
    pixels_RCHW = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    normal = fresh_vision().normalise(pixels_RCHW, torch.float32)
    assert torch.equal(normal[0], -torch.ones(3, 4, 4))
    assert torch.equal(normal[1], torch.ones(3, 4, 4))


def test_the_scale_of_a_pretrained_folder_is_kept_unless_told_otherwise(fresh_vision: Fresh, tmp_path: Path) -> None:
    first = fresh_vision(mean=(0.4, 0.5, 0.6))
    first.save_backbone(tmp_path / "saved", first.backbone.state_dict())
    backbone = Backbone(tmp_path / "saved", is_pretrained=True)
    kept = HFVision(HFVisionConfig(weights="saved"), BuildContext(6, {"": backbone}))
    torch.testing.assert_close(kept.normalise.mean_C11.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    told = HFVision(HFVisionConfig(weights="saved", mean=(0.1, 0.1, 0.1)), BuildContext(6, {"": backbone}))
    torch.testing.assert_close(told.normalise.mean_C11.flatten(), torch.tensor([0.1, 0.1, 0.1]))


@pytest.mark.parametrize("model_type", ["clip_vision_model", "vit", "swin"])
def test_a_saved_backbone_opens_with_plain_transformers_and_says_the_same(
    fresh_vision: Fresh, pixels: Tensor, tmp_path: Path, model_type: str
) -> None:
    encoder = fresh_vision(tiny_image(model_type), pool=whole_of(model_type)).eval()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    plain = AutoModel.from_pretrained(tmp_path / "saved").eval()
    normal = encoder.normalise(pixels, torch.float32)
    assert torch.equal(plain(normal).last_hidden_state, encoder.backbone(normal).last_hidden_state)


@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_what_was_saved_is_read_by_the_same_names(fresh_vision: Fresh, tmp_path: Path, model_type: str) -> None:
    encoder = fresh_vision(tiny_image(model_type), pool=whole_of(model_type))
    state = {
        name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in encoder.backbone.state_dict().items()
    }
    encoder.save_backbone(tmp_path / "saved", state)
    read = encoder.read_backbone(tmp_path / "saved")
    assert list(read) == list(state)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_the_vision_half_of_a_clip_checkpoint_is_read(pixels: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=CLIP, projection_dim=4)).eval()
    clip.save_pretrained(tmp_path / "clip")
    encoder = HFVision(
        HFVisionConfig(weights="clip"), BuildContext(6, {"": Backbone(tmp_path / "clip", is_pretrained=True)})
    ).eval()
    assert isinstance(encoder.backbone, CLIPVisionModel)
    normal = encoder.normalise(pixels, torch.float32)
    theirs = clip.vision_model(normal).last_hidden_state
    assert torch.equal(encoder.backbone(normal).last_hidden_state, theirs)
    encoder.save_backbone(tmp_path / "half", encoder.backbone.state_dict())
    plain = AutoModel.from_pretrained(tmp_path / "half").eval()
    assert torch.equal(plain(normal).last_hidden_state, theirs)


@pytest.mark.parametrize("model_type", ["clip_vision_model", "vit", "dinov2", "swin"])
def test_images_of_another_size_stretch_the_positions(fresh_vision: Fresh, tmp_path: Path, model_type: str) -> None:
    first = fresh_vision(tiny_image(model_type), pool=whole_of(model_type))
    first.save_backbone(tmp_path / "saved", first.backbone.state_dict())
    config = HFVisionConfig(weights="saved", image_size=48, pool=whole_of(model_type))
    encoder = HFVision(config, BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)}))
    assert encoder.pixel_spec == PixelSpec(48)
    assert encoder(images_of(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))).token_KD.shape == (36, 6)


def test_the_size_of_a_fresh_backbone_is_the_one_asked_for(fresh_vision: Fresh, tmp_path: Path) -> None:
    encoder = fresh_vision({"model_type": "vit", **SIZES}, image_size=64)
    assert encoder.pixel_spec == PixelSpec(64)
    assert json.loads((tmp_path / "fresh" / "config.json").read_text())["image_size"] == 64
    assert json.loads((tmp_path / "fresh" / "preprocessor_config.json").read_text())["size"]["height"] == 64


def test_the_size_is_given_once(fresh_vision: Fresh, vit: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"architecture\.image_size: is set for you"):
        fresh_vision(vit, image_size=64)


def test_a_dry_build_reads_no_weights(fresh_vision: Fresh, tmp_path: Path) -> None:
    fresh_vision()
    with torch.device("meta"):
        encoder = HFVision(
            HFVisionConfig(weights="dry"), BuildContext(6, {"": Backbone(tmp_path / "fresh", is_pretrained=True)})
        )
    assert all(parameter.is_meta for parameter in encoder.parameters())


def test_missing_weights_are_an_error(fresh_vision: Fresh, tmp_path: Path) -> None:
    fresh_vision()
    with pytest.raises(CheckpointError, match=r"its model\.safetensors cannot be opened"):
        HFVision(HFVisionConfig(weights="dry"), BuildContext(6, {"": Backbone(tmp_path / "fresh", is_pretrained=True)}))


def test_an_architecture_that_is_not_known_is_an_error_that_lists_the_known(fresh_vision: Fresh) -> None:
    with pytest.raises(RecipeError, match="'levit' is not known here; known: beit, clip_vision_model"):
        fresh_vision({"model_type": "levit"})


@pytest.mark.parametrize(("size", "near"), [(4, "8"), (33, "32, 40")])
def test_an_image_that_patches_do_not_fill_is_an_error(fresh_vision: Fresh, size: int, near: str) -> None:
    message = rf"image_size: patches of 8 pixels do not fill {size}; near sizes that work: {near}$"
    with pytest.raises(RecipeError, match=message):
        fresh_vision({**tiny_image("vit"), "image_size": size})


@pytest.mark.parametrize("scale", [[0.5], 0.5])
def test_a_scale_that_is_not_three_numbers_is_refused(fresh_vision: Fresh, tmp_path: Path, scale: Any) -> None:
    encoder = fresh_vision()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    path = tmp_path / "saved" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": scale}))
    with pytest.raises(CheckpointError, match=r"image_mean must hold 3 numbers, found \[?0.5"):
        HFVision(
            HFVisionConfig(weights="saved"), BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)})
        )


def test_a_negative_depth_is_an_error(vit: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="trainable_blocks: -1 is below 0"):
        HFVisionConfig(architecture=vit, trainable_blocks=-1)
