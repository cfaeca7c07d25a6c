"""Sizes of images that a backbone cannot read are refused with sizes that it can; those it can are never refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs
from pmmrec.encoders.vision_hf import HFVision, HFVisionConfig
from pmmrec.encoders.vision_timm import TimmConfig, TimmVision
from pmmrec.errors import RecipeError
from pmmrec.packing import HostArray

USUAL = {"patch_size": 4, "embed_dim": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 7}
# One stage is deep enough to shift its windows; a stage of depth 0 has no window that could fail.
ODD: list[dict[str, Any]] = [
    {"patch_size": 2, "embed_dim": 4, "depths": [2, 1], "num_heads": [1, 1], "window_size": 3},
    {"patch_size": 3, "embed_dim": 4, "depths": [1, 0], "num_heads": [1, 1], "window_size": 4},
    {
        "patch_size": 3,
        "embed_dim": 4,
        "depths": [1],
        "num_heads": [1],
        "window_size": 2,
        "use_absolute_embeddings": True,
    },
]
SIZES = (6, 7, 8, 9, 12, 13, 16, 17, 24)


def runs(architecture: dict[str, Any]) -> bool:
    """Whether the library itself reads an image of the size that its configuration names."""
    try:
        model = AutoModel.from_config(AutoConfig.for_model(**architecture)).eval()
        with torch.no_grad():
            states = model(pixel_values=torch.zeros(1, 3, *[architecture["image_size"]] * 2)).last_hidden_state
    except (RuntimeError, ValueError, ZeroDivisionError):
        return False
    return bool(states.isfinite().all())


def opened(architecture: dict[str, Any], folder: Path) -> HFVision:
    config = HFVisionConfig(architecture=architecture, pool="mean", trainable_blocks=0)
    HFVision.start(config, folder, [])
    return HFVision(config, BuildContext(4, {"": Backbone(folder, is_pretrained=False)}))


def images(size: int) -> PixelInputs:
    return PixelInputs(torch.zeros(1, 3, size, size, dtype=torch.uint8), HostArray(range(1)))


@pytest.mark.parametrize("model_type", ["swin", "swinv2"])
@pytest.mark.parametrize("settings", ODD, ids=["shifted", "empty stage", "absolute positions"])
def test_exactly_the_sizes_that_a_windowed_backbone_runs_are_accepted(
    tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    for size in SIZES:
        architecture = {"model_type": model_type, "image_size": size, **settings}
        try:
            encoder = opened(architecture, tmp_path / str(size))
        except RecipeError:
            accepted = False
        else:
            accepted = True
            assert encoder.eval()(images(size)).cls_RD.isfinite().all()
        assert accepted == runs(architecture), (size, settings)


@pytest.mark.parametrize("size", [32, 64, 192])
def test_a_swin_whose_windows_do_not_fit_names_a_size_that_works(tmp_path: Path, size: int) -> None:
    architecture = {"model_type": "swin", **USUAL}
    with pytest.raises(RecipeError, match=rf"image_size: swin cannot read {size} pixels: .*sizes that work: 196$"):
        opened({**architecture, "image_size": size}, tmp_path)
    assert runs({**architecture, "image_size": 196})


def test_sizes_below_and_above_are_named_where_both_work(tmp_path: Path) -> None:
    architecture = {"model_type": "swin", "image_size": 17, **ODD[2]}
    with pytest.raises(RecipeError, match="near sizes that work: 15, 18"):
        opened(architecture, tmp_path)


def test_a_pretrained_swin_is_asked_for_its_recipes_size(tmp_path: Path) -> None:
    encoder = opened({"model_type": "swin", "image_size": 28, **ODD[0]}, tmp_path / "fresh")
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    backbone = Backbone(tmp_path / "saved", is_pretrained=True)
    with pytest.raises(RecipeError, match=r"image_size: swin cannot read 8 pixels: .*: 10"):
        HFVision(HFVisionConfig(weights="saved", pool="mean", image_size=8), BuildContext(4, {"": backbone}))
    smaller = HFVision(
        HFVisionConfig(weights="saved", pool="mean", image_size=10), BuildContext(4, {"": backbone})
    ).eval()
    assert smaller(images(10)).cls_RD.isfinite().all()


TIMM: dict[str, dict[str, Any]] = {
    "convnext": {"name": "convnext_atto", "depths": [1, 1, 1, 1], "dims": [4, 4, 4, 4]},
    "resnet": {"name": "resnet18", "channels": [4, 4, 8, 8]},
    "swin": {"name": "swin_tiny_patch4_window7_224", "depths": [1, 1], "embed_dim": 8, "num_heads": [2, 2]},
    "swinv2": {"name": "swinv2_tiny_window8_256", "depths": [1, 2], "embed_dim": 8, "num_heads": [2, 2]},
    "vit": {"name": "vit_tiny_patch16_224", "depth": 1, "embed_dim": 8, "num_heads": 2, "patch_size": 8},
}


def timm_opened(name: str, size: int, folder: Path) -> TimmVision:
    config = TimmConfig(architecture=TIMM[name], pool="mean", image_size=size, trainable_blocks=0)
    TimmVision.start(config, folder, [])
    return TimmVision(config, BuildContext(4, {"": Backbone(folder, is_pretrained=False)}))


@pytest.mark.parametrize("name", sorted(TIMM))
def test_sizes_that_timm_cannot_read_are_refused_with_sizes_that_it_can(tmp_path: Path, name: str) -> None:
    for size in (3, 12, 33):
        try:
            encoder = timm_opened(name, size, tmp_path / str(size))
        except RecipeError as error:
            (named,) = re.findall(r"sizes that work: ([\d, ]+)$", str(error))
            size = int(named.split(", ")[-1])  # noqa: PLW2901 - the nearest that works is read instead
            encoder = timm_opened(name, size, tmp_path / f"near {size}")
        assert encoder.eval()(images(size)).cls_RD.isfinite().all()


def test_a_convnext_names_the_smallest_size_of_its_stages(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"image_size: convnext_atto cannot read 20 pixels: .*sizes that work: 32$"):
        timm_opened("convnext", 20, tmp_path)


@pytest.mark.parametrize("size", [24, 96])
@pytest.mark.parametrize("name", ["swin", "swinv2"])
def test_windows_stay_when_images_change_their_size_and_the_saved_backbone_says_the_same(
    tmp_path: Path, name: str, size: int
) -> None:
    torch.manual_seed(0)
    first = timm_opened(name, 56, tmp_path / "first")
    first.save_backbone(tmp_path / "first", first.backbone.state_dict())
    config = TimmConfig(weights="first", pool="mean", image_size=size)
    encoder = TimmVision(config, BuildContext(4, {"": Backbone(tmp_path / "first", is_pretrained=True)})).eval()
    (tmp_path / "saved").mkdir()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    again = TimmVision(config, BuildContext(4, {"": Backbone(tmp_path / "saved", is_pretrained=True)})).eval()
    again.projection.load_state_dict(encoder.projection.state_dict())
    pixels = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    rows = PixelInputs(pixels, HostArray(range(2)))
    assert torch.equal(again(rows).token_KD, encoder(rows).token_KD)
