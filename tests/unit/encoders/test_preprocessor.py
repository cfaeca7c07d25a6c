"""Pixels are scaled as the folder of a backbone says, in whichever file and words, and never by a guess in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from timm.models import save_for_hf
from transformers import AutoImageProcessor, CLIPImageProcessor

from pmmrec.context import Backbone, BuildContext
from pmmrec.encoders.vision_hf import HFVision, HFVisionConfig
from pmmrec.encoders.vision_timm import TimmConfig, TimmVision
from pmmrec.errors import CheckpointError

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}


@pytest.fixture
def saved(fresh_vision: Callable[..., HFVision], tmp_path: Path) -> Path:
    """A tiny vit whose folder says nothing of pixels."""
    encoder = fresh_vision()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    (tmp_path / "saved" / "preprocessor_config.json").unlink()
    return tmp_path / "saved"


def opened(folder: Path, **settings: Any) -> HFVision:
    return HFVision(
        HFVisionConfig(weights="saved", **settings), BuildContext(6, {"": Backbone(folder, is_pretrained=True)})
    ).eval()


def say(folder: Path, name: str = "preprocessor_config.json", **keys: Any) -> None:
    (folder / name).write_text(json.dumps({"image_processor_type": "ViTImageProcessor", **keys}))


def scale(encoder: HFVision) -> list[float]:
    return [*encoder.normalise.mean_C11.flatten().tolist(), *encoder.normalise.std_C11.flatten().tolist()]


def test_the_scale_of_a_processor_that_transformers_5_writes_is_read(saved: Path, tmp_path: Path) -> None:
    say(saved, "processor_config.json", image_processor={"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3})
    encoder = opened(saved)
    assert scale(encoder) == pytest.approx([*CLIP_MEAN, *CLIP_STD])
    assert encoder.warnings == ()
    encoder.save_backbone(tmp_path / "again", encoder.backbone.state_dict())
    assert scale(opened(tmp_path / "again")) == scale(encoder)


def test_of_two_files_the_one_that_transformers_takes_counts(saved: Path) -> None:
    say(saved, **HALF)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(saved.parent / "clip")
    nested = json.loads((saved.parent / "clip" / "preprocessor_config.json").read_text())
    say(saved, "processor_config.json", image_processor=nested)
    theirs = AutoImageProcessor.from_pretrained(saved)
    assert scale(opened(saved)) == pytest.approx([*theirs.image_mean, *theirs.image_std])


def test_a_processor_without_images_leaves_the_preprocessor_to_count(saved: Path) -> None:
    say(saved, image_mean=CLIP_MEAN, image_std=CLIP_STD)
    (saved / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert scale(opened(saved)) == pytest.approx([*CLIP_MEAN, *CLIP_STD])


@pytest.mark.parametrize(
    "keys",
    [
        HALF,
        {**HALF, "do_normalize": False},
        {**HALF, "do_rescale": False},
        {**HALF, "do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 55.0, 50.0]},
        {**HALF, "rescale_factor": 1 / 127.5},
        {"do_normalize": False, "do_rescale": False, "resample": 3},
    ],
    ids=str,
)
def test_pixels_are_scaled_as_the_processor_of_the_folder_scales_them(
    saved: Path, pixels: torch.Tensor, tmp_path: Path, keys: dict[str, Any]
) -> None:
    say(saved, do_resize=False, **keys)
    theirs = AutoImageProcessor.from_pretrained(saved)(images=list(pixels), return_tensors="pt")["pixel_values"]
    encoder = opened(saved)
    ours = encoder.normalise(pixels, torch.float32)
    torch.testing.assert_close(
        ours, theirs.float(), rtol=1e-5, atol=1e-5
    )  # float32, values up to 510; measured 6e-5 of 510
    encoder.save_backbone(tmp_path / "again", encoder.backbone.state_dict())
    assert torch.equal(opened(tmp_path / "again").normalise(pixels, torch.float32), ours)


def test_without_a_word_of_pixels_a_pretrained_folder_is_told_of(saved: Path) -> None:
    encoder = opened(saved)
    assert scale(encoder) == [0.5] * 6
    assert [warning.split("; ")[0].rpartition(": ")[2] for warning in encoder.warnings] == [
        "says no mean of pixels",
        "says no std of pixels",
    ]
    assert opened(saved, mean=CLIP_MEAN, std=CLIP_STD).warnings == ()


def test_a_recipe_that_contradicts_the_folder_wins_and_is_told_so(saved: Path) -> None:
    say(saved, **HALF)
    encoder = opened(saved, mean=CLIP_MEAN, std=(0.5, 0.5, 0.5))
    assert scale(encoder) == pytest.approx([*CLIP_MEAN, 0.5, 0.5, 0.5])
    (warning,) = encoder.warnings
    assert warning.startswith("mean: the recipe says [0.48145466")
    assert warning.endswith("the recipe counts")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"resample": 2}, "resized with bilinear, here it is bicubic"),
        ({"resample": 9}, "resized with 9, here"),
        ({"size": [48, 48]}, "its images are of 48 pixels, and 32 are read.*image_size: 48"),
        ({"size": {"height": 48, "width": 48}}, "its images are of 48 pixels, and 32 are read.*image_size: 48"),
        ({"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 24}, "of 24 pixels"),
    ],
)
def test_what_the_backbone_met_otherwise_is_told(saved: Path, keys: dict[str, Any], told: str) -> None:
    say(saved, **{**HALF, **keys})
    (warning,) = opened(saved).warnings
    assert re.search(told, warning)


@pytest.mark.parametrize(
    "keys",
    [
        {"size": 32},
        {"size": [32, 32]},
        *({"size": size} for size in (-1, 0, True, "wide", [], [1.5, 1.5], {})),  # no size at all
        {"size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    ],
)
def test_a_folder_that_agrees_is_not_told_of(saved: Path, keys: dict[str, Any]) -> None:
    say(saved, **{**HALF, **keys})
    assert opened(saved).warnings == ()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std must hold 3 numbers above 0"),
        ({"image_std": [0.5, -1, 0.5]}, "image_std must hold 3 numbers above 0"),
        ({"image_mean": [float("nan"), 0.5, 0.5]}, "image_mean must hold 3 numbers"),
        ({"image_mean": "imagenet"}, "image_mean must hold 3 numbers"),
        ({"rescale_factor": 0}, "rescale_factor: 0: must be a number above 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor: 1/255: must be a number above 0"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order: true: pixels are RGB here"),
    ],
)
def test_a_scale_that_no_pixels_can_have_is_refused(saved: Path, keys: dict[str, Any], message: str) -> None:
    say(saved, **{**HALF, **keys})
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: {message}"):
        opened(saved)


def test_a_recipe_may_not_divide_by_zero(vit: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"std: .* must hold 3 numbers above 0"):
        HFVisionConfig(architecture=vit, std=(0.5, 0.0, 0.5))


def test_a_beit_that_was_pooled_by_its_mean_is_told_of(
    fresh_vision: Callable[..., HFVision], tmp_path: Path, vit: dict[str, Any]
) -> None:
    encoder = fresh_vision({**vit, "model_type": "beit", "use_mean_pooling": True})
    assert encoder.warnings == ()  # nothing was learned with it yet
    encoder.save_backbone(tmp_path / "beit", encoder.backbone.state_dict())
    (warning,) = opened(tmp_path / "beit").warnings
    assert warning.endswith("pooled by the mean of patches; pool: mean")
    assert opened(tmp_path / "beit", pool="mean").warnings == ()


VIT = {"depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 8, "img_size": 32}


def timm_saved(folder: Path, pool: str = "token", **pretrained: Any) -> Path:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool=pool, **VIT)
    save_for_hf(model, str(folder), model_args=VIT, safe_serialization=True)
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    looks = {**tree["pretrained_cfg"], "interpolation": "bicubic", "input_size": [3, 32, 32], **pretrained}
    kept = {key: value for key, value in looks.items() if value is not None}
    path.write_text(json.dumps({**tree, "pretrained_cfg": kept}))
    return folder


@pytest.mark.parametrize(
    ("pretrained", "told"),
    [
        ({}, []),
        ({"interpolation": "bilinear"}, ["resized with bilinear"]),
        ({"mean": None}, ["says no mean of pixels"]),
        ({"mean": None, "std": None}, ["says no mean of pixels", "says no std of pixels"]),
    ],
)
def test_what_timm_met_otherwise_is_told(tmp_path: Path, pretrained: dict[str, Any], told: list[str]) -> None:
    backbone = Backbone(timm_saved(tmp_path, **pretrained), is_pretrained=True)
    warnings = TimmVision(TimmConfig(weights="saved"), BuildContext(6, {"": backbone})).warnings
    assert len(warnings) == len(told)
    assert all(words in warning for words, warning in zip(told, warnings, strict=True))


def test_a_deviation_of_zero_is_refused_in_timms_words_too(tmp_path: Path) -> None:
    backbone = Backbone(timm_saved(tmp_path, std=[0.0, 1.0, 1.0]), is_pretrained=True)
    with pytest.raises(CheckpointError, match=r"config\.json: std must hold 3 numbers above 0"):
        TimmVision(TimmConfig(weights="saved"), BuildContext(6, {"": backbone}))


def test_a_vit_of_timm_that_was_pooled_by_its_mean_is_told_of(tmp_path: Path) -> None:
    backbone = Backbone(timm_saved(tmp_path, pool="avg"), is_pretrained=True)
    (warning,) = TimmVision(TimmConfig(weights="saved"), BuildContext(6, {"": backbone})).warnings
    assert warning.endswith("pooled by the mean of patches; pool: mean")
    assert TimmVision(TimmConfig(weights="saved", pool="mean"), BuildContext(6, {"": backbone})).warnings == ()
