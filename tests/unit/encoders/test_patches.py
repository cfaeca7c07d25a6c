"""Patches of images are hidden from a masked autoencoder, and painted by the folder's own decoder or a fresh one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs
from pmmrec.encoders.patches import as_patches, patch_losses
from pmmrec.encoders.vision_hf import HFVision, HFVisionConfig
from pmmrec.errors import RecipeError
from pmmrec.hashed import uniform
from pmmrec.packing import HostArray

ATOL = 1e-12  # float64; measured 4e-15
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
DECODER = {f"decoder_{key}": value for key, value in SIZES.items()}
MAE = {"model_type": "vit_mae", "image_size": 32, "patch_size": 8, **SIZES, **DECODER}


def losses_by_loops(painted: Tensor, wanted: Tensor, is_hidden: Tensor, *, normalize: bool) -> list[Tensor]:
    losses = []
    for r in range(len(wanted)):
        errors = []
        for p in range(wanted.shape[1]):
            if not is_hidden[r, p]:
                continue
            patch = list(wanted[r, p])
            if normalize:
                mean = sum(patch) / len(patch)
                variance = sum((x - mean) ** 2 for x in patch) / (len(patch) - 1)
                patch = [(x - mean) / torch.sqrt(variance + 1e-6) for x in patch]
            errors.append(sum((x - y) ** 2 for x, y in zip(painted[r, p], patch, strict=True)) / len(patch))
        losses.append(sum(errors) / len(errors))
    return losses


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_equals_its_loops_in_value_and_gradient(normalize: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    painted, wanted = torch.randn(2, 3, 4, 6, generator=draw, dtype=torch.float64)
    painted.requires_grad_()
    is_hidden = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
    found = patch_losses(painted, wanted, is_hidden, normalize=normalize)
    expected = torch.stack(losses_by_loops(painted, wanted, is_hidden, normalize=normalize))
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)
    gradients = [torch.autograd.grad(one.sum(), painted)[0] for one in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=ATOL)


def test_patches_are_rows_of_pixels_with_their_channels_side_by_side(pixels: Tensor) -> None:
    patches = as_patches(pixels, 8)
    assert patches.shape == (3, 16, 192)
    for p, (top, left) in ((0, (0, 0)), (1, (0, 8)), (4, (8, 0))):
        block = pixels[1, :, top : top + 8, left : left + 8]
        assert torch.equal(patches[1, p], block.permute(1, 2, 0).flatten())


@pytest.mark.parametrize("is_whole", [True, False])
def test_the_own_decoder_of_a_folder_gives_the_loss_of_transformers(
    tmp_path: Path, pixels: Tensor, is_whole: bool
) -> None:
    settings = {key: value for key, value in MAE.items() if key != "model_type"}
    torch.manual_seed(1)
    whole = ViTMAEForPreTraining(ViTMAEConfig(**settings, norm_pix_loss=True, mask_ratio=0.5)).eval()
    (whole if is_whole else whole.vit).save_pretrained(tmp_path)
    config = HFVisionConfig(weights=str(tmp_path), trainable_blocks="all", mean=(0.5,) * 3, std=(0.5,) * 3)
    encoder = HFVision(config, BuildContext(6, {"": Backbone(tmp_path, is_pretrained=True)})).double().eval()
    decoder = encoder.patch_head(0.5).double()
    told = [one for one in encoder.warnings if "has no decoder for hidden patches; a fresh one learns" in one]
    assert bool(told) != is_whole
    inputs, seed_R = PixelInputs(pixels, HostArray(range(3))), torch.tensor([3, 4, 5])
    ours = encoder.patch_loss(inputs, seed_R, decoder, 0.5, normalize=True)
    assert ours.shape == (3,)
    if not is_whole:
        return
    normal = encoder.normalise(pixels, torch.float64)
    theirs = whole.double()(pixel_values=normal, noise=uniform(seed_R, 16)).loss
    torch.testing.assert_close(ours.mean(), theirs, rtol=0, atol=1e-12)
    name = "layers.0.mlp.fc1.weight" if hasattr(encoder.backbone, "layers") else None
    parameters = [p for n, p in encoder.backbone.named_parameters() if p.requires_grad and (name is None or n == name)]
    wanted = dict(whole.vit.named_parameters())
    gradients = torch.autograd.grad(ours.mean(), parameters)
    names = [n for n, p in encoder.backbone.named_parameters() if any(p is one for one in parameters)]
    others = torch.autograd.grad(theirs, [wanted[n] for n in names])
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)


def test_the_share_of_the_objective_is_not_that_of_the_encoder(
    fresh_vision: Callable[..., HFVision], pixels: Tensor
) -> None:
    encoder = fresh_vision(MAE, mask_ratio=None).eval()
    decoder, inputs = encoder.patch_head(0.75), PixelInputs(pixels, HostArray(range(3)))
    encoder.patch_loss(inputs, torch.arange(3), decoder, 0.75, normalize=True)
    assert encoder(inputs).of_item(0).shape == (16, 6)


@pytest.mark.parametrize(
    ("architecture", "share", "message"),
    [
        ({**MAE, "model_type": "vit"}, 0.75, "vit is no masked autoencoder, so no patch can be hidden; choose vit_mae"),
        (MAE, 0.99, r"share: 0\.99 leaves none of the 16 patches"),
    ],
)
def test_what_cannot_hide_patches_is_refused(
    fresh_vision: Callable[..., HFVision], architecture: dict[str, Any], share: float, message: str
) -> None:
    known = {key: value for key, value in architecture.items() if architecture is MAE or "decoder" not in key}
    known["model_type"] = architecture["model_type"]
    with pytest.raises(RecipeError, match=message):
        fresh_vision(known).patch_head(share)
