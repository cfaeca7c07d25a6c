"""Hide patches of images, and paint them again (masked autoencoder, MAE)."""
# Shapes: R images, C channels, H height, W breadth, P patches, G patches of a side, Q numbers of a patch.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pmmrec.context import Backbone
from pmmrec.encoders.backbone import is_dry_run
from pmmrec.encoders.huggingface import in_one_line, quietly
from pmmrec.encoders.weights import refuse_broken_numbers
from pmmrec.errors import CheckpointError
from pmmrec.precision import widened

EPS = 1e-6  # added to the variance of a patch, as in the released code


def as_patches(pixels_RCHW: Tensor, patch: int) -> Tensor:
    """`(R, P, Q)`: the pixels of each patch, row by row, the channels of a pixel side by side."""
    num_rows, channels, height, width = pixels_RCHW.shape
    cut = pixels_RCHW.view(num_rows, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(num_rows, -1, patch * patch * channels)


def patch_losses(painted_RPQ: Tensor, wanted_RPQ: Tensor, is_hidden_RP: Tensor, *, normalize: bool) -> Tensor:
    """The mean squared error of the hidden patches of each image, `(R,)`.

    With `normalize` each patch is to have its own mean 0 and variance 1 (norm_pix_loss); the variance is that of a
    sample.
    """
    wanted_RPQ, painted_RPQ = widened(wanted_RPQ), widened(painted_RPQ)
    if normalize:
        mean_RP1 = wanted_RPQ.mean(dim=2, keepdim=True)
        wanted_RPQ = (wanted_RPQ - mean_RP1) / (wanted_RPQ.var(dim=2, keepdim=True) + EPS).sqrt()
    error_RP = (painted_RPQ - wanted_RPQ).square().mean(dim=2)
    return (error_RP * is_hidden_RP).sum(dim=1) / is_hidden_RP.sum(dim=1)


@contextmanager
def hiding(backbone: Any, share: float) -> Iterator[None]:
    """Let a masked autoencoder of transformers leave out this share of the patches, whatever its configuration says."""
    settings = backbone.embeddings.config
    before, settings.mask_ratio = settings.mask_ratio, share
    try:
        yield
    finally:
        settings.mask_ratio = before


def decoder_of(settings: Any, backbone: Backbone) -> tuple[nn.Module, bool]:
    """The decoder of a masked autoencoder, and whether it came out of the folder; else its weights are fresh.

    CheckpointError for a decoder in the folder that is incomplete or broken.
    """
    from transformers import ViTMAEForPreTraining

    folder = backbone.folder
    if not backbone.is_pretrained or is_dry_run():
        decoder: nn.Module = ViTMAEForPreTraining._from_config(settings, dtype=torch.float32).decoder
        return decoder, False
    try:
        with quietly():
            model, info = ViTMAEForPreTraining.from_pretrained(
                folder,
                config=settings,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: its decoder cannot be opened: {in_one_line(error)}") from error
    names = {f"decoder.{name}" for name in model.decoder.state_dict()}
    missing = sorted(names & set(info["missing_keys"]))
    if missing and len(missing) < len(names):
        raise CheckpointError(f"{folder}: {len(missing)} tensors of its decoder are missing, such as {missing[0]}")
    refuse_broken_numbers(model.decoder, folder)
    return model.decoder, not missing
