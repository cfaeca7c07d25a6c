"""A masked autoencoder sees a share of its patches: others at each step of training, the same ones in ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, ViTConfig, ViTModel

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs
from pmmrec.encoders import vision_encoders
from pmmrec.encoders.masking import noise_of_images
from pmmrec.errors import RecipeError
from pmmrec.packing import HostArray

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
MAE: dict[str, Any] = {
    "type": "hf_vision",
    "architecture": {"model_type": "vit_mae", "image_size": 32, "patch_size": 8, **SIZES},
    "pool": "mean",
}


def encoder_of(folder: Path, **settings: Any) -> Any:
    config = vision_encoders.config({**MAE, **settings})
    folder.mkdir(exist_ok=True)
    part_class: Any = vision_encoders.part_class(config)
    part_class.start(config, folder, [])
    torch.manual_seed(0)
    return part_class(config, BuildContext(4, {"": Backbone(folder, is_pretrained=False)})).double().eval()


def images(rows: tuple[int, ...] = (0, 1, 2)) -> PixelInputs:
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return PixelInputs(pixels[list(rows)], HostArray(range(len(rows))))


@pytest.mark.parametrize("ratio", [None, 0.0, 0.5, 0.75])
def test_states_are_those_of_transformers_given_the_same_patches(tmp_path: Path, ratio: float | None) -> None:
    encoder, inputs = encoder_of(tmp_path, mask_ratio=ratio), images()
    plain = AutoModel.from_config(encoder.backbone.config).double().eval()
    plain.load_state_dict(encoder.backbone.state_dict())
    pixels = encoder.normalise(inputs.pixels_RCHW, torch.float64)
    noise_RP = noise_of_images(inputs.pixels_RCHW, 16) if ratio else torch.arange(16.0).expand(3, 16)
    hidden_RPH = plain(pixel_values=pixels, noise=noise_RP).last_hidden_state
    num_kept = int(16 * (1 - (ratio or 0)))
    assert hidden_RPH.shape[1] == 1 + num_kept
    expected_RPD = encoder.projection(hidden_RPH)[:, 1:]
    states = encoder(inputs)
    assert states.length_R.tolist() == [num_kept] * 3
    torch.testing.assert_close(states.token_KD, expected_RPD.flatten(0, 1), rtol=0, atol=1e-13)  # measured 0
    torch.testing.assert_close(states.cls_RD, expected_RPD.mean(1), rtol=0, atol=1e-13)  # measured 0


def test_without_a_mask_it_is_a_vit_whose_patches_keep_their_order(tmp_path: Path) -> None:
    encoder, inputs = encoder_of(tmp_path), images()
    vit = ViTModel(ViTConfig(image_size=32, patch_size=8, **SIZES), add_pooling_layer=False).double().eval()
    vit.load_state_dict(encoder.backbone.state_dict())
    pixels = encoder.normalise(inputs.pixels_RCHW, torch.float64)
    expected = vit(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(encoder.hidden(inputs), expected, rtol=0, atol=1e-13)  # measured 0


def test_an_image_is_seen_the_same_in_any_company_and_two_images_are_not_masked_alike(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, mask_ratio=0.75)
    whole = encoder(images())
    for row in range(3):
        torch.testing.assert_close(encoder(images((row,))).cls_RD[0], whole.cls_RD[row], rtol=0, atol=1e-13)
    kept = noise_of_images(images().pixels_RCHW, 16).argsort(dim=1)[:, :4].sort(dim=1).values.tolist()
    assert kept[0] != kept[1] != kept[2]


def test_numbers_of_an_image_are_even(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (500, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    noise_RP = noise_of_images(pixels, 40)
    assert noise_RP.min() >= 0
    assert noise_RP.max() < 1
    share = torch.histc(noise_RP, 10, 0, 1) / noise_RP.numel()
    assert (share - 0.1).abs().max() < 0.01  # 4.7 standard errors of 20,000 numbers
    first = noise_RP.argsort(dim=1)[:, :10]  # each patch is kept in a quarter of the images
    assert (torch.bincount(first.flatten(), minlength=40) / 500 - 0.25).abs().max() < 0.08  # 4 standard errors


def test_training_draws_patches_anew_and_keeps_no_states(tmp_path: Path) -> None:
    encoder, inputs = encoder_of(tmp_path, mask_ratio=0.5), images()
    torch.manual_seed(0)
    encoder.train()
    assert not torch.equal(encoder(inputs).cls_RD, encoder(inputs).cls_RD)
    with pytest.raises(RecipeError, match="training sees other patches at each step"):
        encoder.prefix  # noqa: B018
    assert encoder.eval().prefix is not None
    plain = encoder_of(tmp_path / "plain").train()
    assert plain.prefix is not None


def test_waves_of_positions_never_train(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, trainable_blocks="all")
    frozen = [name for name, one in encoder.named_parameters() if not one.requires_grad]
    assert frozen == ["backbone.embeddings.position_embeddings"]


def test_a_mask_without_effect_is_refused(tmp_path: Path) -> None:
    vit = {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZES}
    with pytest.raises(RecipeError, match="mask_ratio: has no effect"):
        encoder_of(tmp_path / "vit", architecture=vit, mask_ratio=0.5)
    with pytest.raises(RecipeError, match=r"mask_ratio: 0\.99 leaves none of the .* patches of an image"):
        encoder_of(tmp_path / "none", mask_ratio=0.99)
    inside = {**MAE["architecture"], "mask_ratio": 0.5}
    with pytest.raises(RecipeError, match="is set by `mask_ratio` beside"):
        encoder_of(tmp_path / "inside", architecture=inside)
