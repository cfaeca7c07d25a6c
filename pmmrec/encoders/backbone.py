"""What encoders around a backbone have in common: where it comes from, and the way to the common width."""
# Shapes: R rows, K tokens of all rows, D width.

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from pmmrec.contracts import TokenStates
from pmmrec.encoders import EncoderConfig
from pmmrec.encoders.trainable import Depth
from pmmrec.errors import RecipeError
from pmmrec.head import HeadConfig, head_of


class BackboneConfig(EncoderConfig):
    """Settings of an encoder whose backbone is pretrained (`weights`) or drawn fresh (`architecture`)."""

    architecture: dict[str, Any] | None = Field(
        default=None, description="Configuration of a fresh backbone, in the words of its library."
    )
    trainable_blocks: Depth = Field(
        default=2, description="How many of the top blocks train; 0: the backbone is frozen; all: all of it trains."
    )

    head: HeadConfig | None = Field(
        default=None,
        description="Layers above the projection; null: none. `head: {}` is GELU alone: the DT-layer of MoRec.",
    )

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        if (self.weights is None) == (self.architecture is None):
            raise ValueError("give one of `weights` (a pretrained backbone) and `architecture` (a fresh one)")
        if self.trainable_blocks != "all" and self.trainable_blocks < 0:
            raise ValueError(f"trainable_blocks: {self.trainable_blocks} is below 0; count from the top, or say all")
        return self


def make_projection(backbone_width: int, width: int) -> nn.Linear:
    """The way from a backbone's width to the common one, for every token (xavier_normal, as released)."""
    projection = nn.Linear(backbone_width, width)
    nn.init.xavier_normal_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


def make_map(num_channels: int, width: int) -> nn.Conv2d:
    """The way from the channels of a feature map to the common width, by 3 x 3 places and without bias (MMSR)."""
    convolution = nn.Conv2d(num_channels, width, kernel_size=3, padding=1, bias=False)
    nn.init.xavier_normal_(convolution.weight)
    return convolution


def make_way(kind: str, num_numbers: int, width: int, name: str) -> nn.Module:
    """The way from the states of a backbone to the common width; RecipeError where `none` does not lead there."""
    if kind != "none":
        return make_map(num_numbers, width) if kind == "conv3x3" else make_projection(num_numbers, width)
    if num_numbers != width:
        raise RecipeError(f"projection: none: {name} gives {num_numbers} numbers, but {width} are read; use linear")
    return nn.Identity()


def dtype_of(backbone: nn.Module) -> torch.dtype:
    """Of the weights of a backbone."""
    return next(backbone.parameters()).dtype


def make_head(config: HeadConfig | None, width: int) -> nn.Sequential | None:
    """The layers above a projection; None where the settings ask for none."""
    return None if config is None else head_of(config, width)


def through_head(states: TokenStates, head: nn.Sequential | None) -> TokenStates:
    """What a head makes of projected states: of every token, and of the whole, which was pooled before it."""
    if head is None:
        return states
    cls_RD, first_RD = head(states.cls_RD), states.first_RD
    if first_RD is not None:
        first_RD = cls_RD if first_RD is states.cls_RD else head(first_RD)
    return dataclasses.replace(states, token_KD=head(states.token_KD), cls_RD=cls_RD, first_RD=first_RD)


def is_dry_run() -> bool:
    """Whether modules are being built under `torch.device("meta")`: shapes only, no weights are read."""
    return torch.get_default_device().type == "meta"
