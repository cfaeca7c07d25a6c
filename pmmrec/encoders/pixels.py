"""Pixels on their way into a vision encoder, and tokens on their way out."""
# Shapes: R rows, C channels, H height, W breadth, P image tokens, D width.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.contracts import TokenStates
from pmmrec.encoders.backbone import BackboneConfig
from pmmrec.errors import CheckpointError

Channels = tuple[float, float, float]
NEUTRAL: Channels = (0.5, 0.5, 0.5)


class VisionConfig(BackboneConfig):
    """Settings that every vision encoder has."""

    image_size: int | None = Field(default=None, gt=0, description="Pixels a side; None: the backbone's own.")
    mean: Channels | None = Field(default=None, description="Of each channel in 0..1; None: the backbone's, else 0.5.")
    std: Channels | None = Field(default=None, description="Of each channel in 0..1; None: the backbone's, else 0.5.")
    pool: Literal["cls", "mean"] = Field(
        default="cls", description="The whole image: the cls token, or the mean of all patches."
    )


def square_side(size: Any, where: str) -> int:
    """The side of a square that is given as a number or as height and width; CheckpointError for other shapes."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise CheckpointError(f"{where}: images of {size} are not square; choose a backbone that reads squares")
    return int(sides.pop())


class Normalise(nn.Module):
    """Bring uint8 pixels to the scale that a backbone was trained on, on the device where they are."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels_RCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """0..255 -> (x / 255 - mean) / std, reckoned in float32 and handed on as `dtype`."""
        mean_C11, std_C11 = self.get_buffer("mean_C11"), self.get_buffer("std_C11")
        normal: Tensor = pixels_RCHW.to(torch.float32, copy=True)
        normal = normal.div_(255).sub_(mean_C11).div_(std_C11)  # in place: a copy each would cost as much as a block
        return normal.to(dtype)


def pooled_states(states_RPD: Tensor, num_prefix_tokens: int, pool: Literal["cls", "mean"]) -> TokenStates:
    """States of a backbone's tokens, the prefix (cls, registers) first, as patches and one vector for the whole."""
    patches_RPD = states_RPD[:, num_prefix_tokens:]
    is_valid_RP = torch.ones(patches_RPD.shape[:2], dtype=torch.bool, device=states_RPD.device)
    cls_RD = states_RPD[:, 0] if pool == "cls" else patches_RPD.mean(1)
    return TokenStates(patches_RPD, is_valid_RP, cls_RD)
