"""Which patches of an image a masked autoencoder sees: drawn anew in training, fixed for each image otherwise."""
# Shapes: R rows, C channels, H height, W breadth, P patches.

from __future__ import annotations

import torch
from torch import Tensor

PIXELS_HASHED = 4096  # of an image, at most
# Multipliers of splitmix64, as signed numbers of 64 bits; products wrap around.
_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
_BITS = 53  # that a float64 holds exactly


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
    seed_R = (sample_RN * _mixed(place_N + 1)).sum(dim=1)
    patch_P = torch.arange(num_patches, device=sample_RN.device)
    bits_RP = _mixed(seed_R[:, None] + patch_P * _STEP)
    return (bits_RP & ((1 << _BITS) - 1)).double() / (1 << _BITS)


def _mixed(x: Tensor) -> Tensor:
    """A hash of each number (splitmix64)."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """Shifted to the right, filled with zeros."""
    return (x >> places) & ((1 << (64 - places)) - 1)
