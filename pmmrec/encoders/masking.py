"""Which patches of an image a masked autoencoder sees: drawn anew in training, fixed for each image otherwise."""
# Shapes: R rows, C channels, H height, W breadth, P patches.

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.hashed import mixed, uniform

PIXELS_HASHED = 4096  # of an image, at most


def in_order(num_rows: int, num_patches: int, device: torch.device) -> Tensor:
    """Numbers `(R, P)` by whose order no patch changes its place."""
    return torch.arange(num_patches, device=device, dtype=torch.float64).expand(num_rows, num_patches)


def noise_of_images(pixels_RCHW: Tensor, num_patches: int) -> Tensor:
    """Numbers `(R, P)` in 0..1 that depend on the uint8 pixels of the row alone: the same image, the same numbers.

    They are computed where the pixels are, and the host waits for nothing. A sample of the pixels is read.
    """
    flat_RN = pixels_RCHW.flatten(1)
    sample_RN = flat_RN[:, :: max(1, flat_RN.shape[1] // PIXELS_HASHED)].long()
    place_N = torch.arange(sample_RN.shape[1], device=sample_RN.device)
    seed_R = (sample_RN * mixed(place_N + 1)).sum(dim=1)
    return uniform(seed_R, num_patches)
