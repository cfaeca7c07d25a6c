"""Images through encoders of timm: maps become tokens, batch statistics of frozen stages stay, folders open in timm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from timm.models import save_for_hf
from torch import Tensor, nn

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs, PixelSpec
from pmmrec.encoders.timm_layouts import LAYOUTS
from pmmrec.encoders.vision_timm import TimmConfig, TimmVision
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.packing import HostArray
from tests.support.tiny_encoders import TIMM

Fresh = Callable[..., TimmVision]
RESNET, VIT, SWIN = (TIMM[name] for name in ("ResNet", "VisionTransformer", "SwinTransformer"))


@pytest.fixture
def fresh(tmp_path: Path) -> Fresh:
    def build(architecture: dict[str, Any], folder: str = "fresh", **settings: Any) -> TimmVision:
        config = TimmConfig(architecture=architecture, **{"image_size": 32, "pool": "mean", **settings})
        (tmp_path / folder).mkdir()
        TimmVision.start(config, tmp_path / folder, [])
        torch.manual_seed(0)
        return TimmVision(config, BuildContext(6, {"": Backbone(tmp_path / folder, is_pretrained=False)}))

    return build


def images_of(pixels_RCHW: Tensor) -> PixelInputs:
    return PixelInputs(pixels_RCHW, HostArray(range(len(pixels_RCHW))))


def _arguments(example: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in example.items() if key != "name"}


def test_every_known_class_has_an_example() -> None:
    assert set(TIMM) == set(LAYOUTS)


@pytest.mark.parametrize("depth", [1, "all"])
@pytest.mark.parametrize("class_name", sorted(TIMM))
def test_gradients_reach_exactly_what_trains_of_every_known_class(
    fresh: Fresh, pixels: Tensor, class_name: str, depth: Any
) -> None:
    encoder = fresh(TIMM[class_name], trainable_blocks=depth)
    assert type(encoder.backbone).__name__ == class_name
    encoder(images_of(pixels)).cls_RD.square().sum().backward()
    for name, parameter in encoder.backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert any(parameter.requires_grad for parameter in encoder.backbone.parameters())


@pytest.mark.parametrize("class_name", sorted(TIMM))
def test_a_saved_backbone_opens_in_timm_and_says_the_same(
    fresh: Fresh, pixels: Tensor, tmp_path: Path, class_name: str
) -> None:
    encoder = fresh(TIMM[class_name]).eval()
    (tmp_path / "saved").mkdir()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    plain = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True, num_classes=0).eval()
    normal = encoder.normalise(pixels, torch.float32)
    assert torch.equal(plain.forward_features(normal), encoder.backbone.forward_features(normal))
    assert tuple(plain.pretrained_cfg["input_size"]) == (3, 32, 32)


@pytest.mark.parametrize("class_name", sorted(TIMM))
def test_a_saved_backbone_opens_here_and_says_the_same(
    fresh: Fresh, pixels: Tensor, tmp_path: Path, class_name: str
) -> None:
    encoder = fresh(TIMM[class_name]).eval()
    (tmp_path / "saved").mkdir()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    config = TimmConfig(weights="saved", pool="mean")
    again = TimmVision(config, BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)})).eval()
    again.projection.load_state_dict(encoder.projection.state_dict())
    assert again.pixel_spec == encoder.pixel_spec == PixelSpec(32)
    assert torch.equal(again(images_of(pixels)).token_KD, encoder(images_of(pixels)).token_KD)
    read, state = encoder.read_backbone(tmp_path / "saved"), encoder.backbone.state_dict()
    assert sorted(read) == sorted(state)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_a_feature_map_becomes_a_token_a_place(fresh: Fresh, pixels: Tensor) -> None:
    encoder = fresh(TIMM["RegNet"], image_size=64).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    map_RCHW = encoder.backbone.forward_features(encoder.normalise(pixels, torch.float32))
    tokens = encoder(images_of(pixels)).token_KD.view(2, 4, 6)
    torch.testing.assert_close(tokens[:, 1], encoder.projection(map_RCHW[:, :, 0, 1]))
    torch.testing.assert_close(tokens[:, 2], encoder.projection(map_RCHW[:, :, 1, 0]))


def test_a_swin_map_has_its_channels_last(fresh: Fresh, pixels: Tensor) -> None:
    encoder = fresh(SWIN).eval()
    map_RHWC = encoder.backbone.forward_features(encoder.normalise(pixels, torch.float32))
    second_RD = torch.stack([encoder(images_of(pixels)).of_item(row)[1] for row in range(len(pixels))])
    torch.testing.assert_close(second_RD, encoder.projection(map_RHWC[:, 0, 1]))


def test_the_cls_token_of_a_vit_is_not_a_patch(fresh: Fresh, pixels: Tensor) -> None:
    encoder = fresh(VIT, pool="cls").eval()
    tokens_RPD = encoder.backbone.forward_features(encoder.normalise(pixels, torch.float32))
    states = encoder(images_of(pixels))
    torch.testing.assert_close(states.cls_RD, encoder.projection(tokens_RPD[:, 0]))
    assert states.token_KD.shape == (3 * 16, 6)


def test_batch_statistics_of_frozen_stages_stay_in_training(fresh: Fresh, pixels: Tensor) -> None:
    encoder = fresh(RESNET, trainable_blocks=1).train()
    before = {name: buffer.clone() for name, buffer in encoder.backbone.named_buffers()}
    encoder(images_of(pixels))
    moved = {
        name.partition(".")[0]
        for name, buffer in encoder.backbone.named_buffers()
        if not torch.equal(buffer, before[name])
    }
    assert moved == {"layer4"}
    frozen = [module for name, module in encoder.backbone.named_modules() if not name.startswith("layer4")]
    assert not any(module.training for module in frozen if isinstance(module, nn.BatchNorm2d))


def test_images_too_small_for_a_patch_are_an_error(fresh: Fresh) -> None:
    with pytest.raises(RecipeError, match="image_size: vit_tiny_patch16_224 cannot read 4 pixels"):
        fresh(VIT, image_size=4)


def test_another_size_stretches_the_positions_and_is_saved(fresh: Fresh, tmp_path: Path) -> None:
    first = fresh(VIT)
    (tmp_path / "saved").mkdir()
    first.save_backbone(tmp_path / "saved", first.backbone.state_dict())
    config = TimmConfig(weights="saved", image_size=48)
    encoder = TimmVision(config, BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)}))
    assert encoder(images_of(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))).token_KD.shape == (36, 6)
    (tmp_path / "larger").mkdir()
    encoder.save_backbone(tmp_path / "larger", encoder.backbone.state_dict())
    again = TimmVision(
        TimmConfig(weights="larger"), BuildContext(6, {"": Backbone(tmp_path / "larger", is_pretrained=True)})
    )
    assert again.pixel_spec == PixelSpec(48)


@pytest.mark.parametrize("example", [RESNET, VIT], ids=["ResNet", "VisionTransformer"])
def test_a_checkpoint_with_a_classifier_gives_its_backbone(
    tmp_path: Path, pixels: Tensor, example: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    size = {"img_size": 32} if example is VIT else {}
    plain = timm.create_model(example["name"], num_classes=10, **_arguments(example), **size).eval()
    save_for_hf(plain, str(tmp_path), model_args={**_arguments(example), **size}, safe_serialization=True)
    config = TimmConfig(weights="classifier", image_size=32, pool="mean")
    encoder = TimmVision(config, BuildContext(6, {"": Backbone(tmp_path, is_pretrained=True)})).eval()
    normal = encoder.normalise(pixels, torch.float32)
    assert torch.equal(encoder.backbone.forward_features(normal), plain.forward_features(normal))
    torch.testing.assert_close(encoder.normalise.mean_C11.flatten(), torch.tensor(plain.pretrained_cfg["mean"]))


def test_a_backbone_of_grey_images_is_refused(tmp_path: Path) -> None:
    plain = timm.create_model("resnet18", in_chans=1, **_arguments(RESNET))
    args = {**_arguments(RESNET), "in_chans": 1}
    save_for_hf(plain, str(tmp_path), model_args=args, safe_serialization=True)
    with pytest.raises(CheckpointError, match="only backbones that read RGB are opened"):
        TimmVision(
            TimmConfig(weights="grey", pool="mean"), BuildContext(6, {"": Backbone(tmp_path, is_pretrained=True)})
        )


def test_cls_of_a_backbone_without_one_is_an_error(fresh: Fresh) -> None:
    with pytest.raises(RecipeError, match="pool: resnet18 has no cls token; use mean"):
        fresh(RESNET, pool="cls")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "resnet19"}, "timm has no model 'resnet19'; near: "),
        ({"name": "hf-hub:someone/model"}, "timm has no model 'hf-hub:someone/model'"),
        ({"name": "mixer_b16_224"}, "'MlpMixer' is not known here; known: ConvNeXt"),
        ({"name": "resnet18", "chanels": [8]}, "resnet18 cannot be built with"),
    ],
)
def test_a_wrong_architecture_is_an_error(fresh: Fresh, architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        fresh(architecture)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({}, "architecture: needs `name`"),
        ({"name": "resnet18", "checkpoint_path": "evil.pth"}, "checkpoint_path cannot be chosen here"),
        ({"name": "vit_tiny_patch16_224", "img_size": 32}, "img_size is set by `image_size`"),
    ],
)
def test_an_architecture_holds_only_what_shapes_the_model(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TimmConfig(architecture=architecture)


def test_a_folder_that_points_at_other_files_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    fresh(RESNET)
    path = tmp_path / "fresh" / "config.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "model_args": {"checkpoint_path": "/evil.pth"}}))
    with pytest.raises(CheckpointError, match=r"model_args\.checkpoint_path is never taken from a file"):
        TimmVision(TimmConfig(weights="evil"), BuildContext(6, {"": Backbone(tmp_path / "fresh", is_pretrained=False)}))


def test_missing_tensors_are_an_error(fresh: Fresh, tmp_path: Path) -> None:
    encoder = fresh(RESNET)
    state = dict(encoder.backbone.state_dict())
    state.pop("layer4.0.conv1.weight")
    with pytest.raises(CheckpointError, match=r"1 tensors do not fit.*layer4\.0\.conv1\.weight"):
        encoder.save_backbone(tmp_path, state)


def test_a_pickle_beside_the_configuration_is_not_read(fresh: Fresh, tmp_path: Path) -> None:
    encoder = fresh(RESNET)
    torch.save(encoder.backbone.state_dict(), tmp_path / "fresh" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be opened"):
        TimmVision(
            TimmConfig(weights="pickle", pool="mean"),
            BuildContext(6, {"": Backbone(tmp_path / "fresh", is_pretrained=True)}),
        )


def test_weights_that_are_no_numbers_and_adapters_beside_them_are_refused(fresh: Fresh, tmp_path: Path) -> None:
    encoder = fresh(RESNET)
    state = dict(encoder.backbone.state_dict())
    state["layer4.0.conv1.weight"] = torch.full_like(state["layer4.0.conv1.weight"], float("nan"))
    encoder.save_backbone(tmp_path / "fresh", state)
    backbone = Backbone(tmp_path / "fresh", is_pretrained=True)
    with pytest.raises(CheckpointError, match=r"1 tensors hold NaN .*model\.safetensors: layer4\.0\.conv1\.weight"):
        TimmVision(TimmConfig(weights="fresh", pool="mean"), BuildContext(6, {"": backbone}))
    (tmp_path / "fresh" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: adapters beside whole weights"):
        TimmVision(TimmConfig(weights="fresh", pool="mean"), BuildContext(6, {"": backbone}))


def test_a_dry_build_reads_no_weights(fresh: Fresh, tmp_path: Path) -> None:
    fresh(SWIN)
    with torch.device("meta"):
        config = TimmConfig(weights="dry", pool="mean", image_size=64)
        encoder = TimmVision(config, BuildContext(6, {"": Backbone(tmp_path / "fresh", is_pretrained=True)}))
    assert all(parameter.is_meta for parameter in encoder.parameters())
