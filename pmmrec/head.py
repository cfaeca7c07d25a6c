"""Layers above the vectors of an encoder: an activation, then blocks of dropout, linear layer and activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import nn

from pmmrec.dropout import Dropout
from pmmrec.settings import Config

HeadActivation = Literal["gelu", "relu", "none"]
_ACTIVATIONS: Mapping[HeadActivation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "none": nn.Identity}


class HeadConfig(Config):
    """Settings of the layers above a projection."""

    layers: int = Field(0, ge=0, description="Blocks of dropout, linear layer and activation (MoRec TS-DNN: 2 to 12).")
    activation: HeadActivation = Field("gelu", description="After the projection and in every block; none: linear.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Of the blocks; without effect where there is none.")


def head_of(config: HeadConfig, width: int) -> nn.Sequential:
    """What stands above a projection to `width`: the activation, then the blocks."""
    return nn.Sequential(
        _ACTIVATIONS[config.activation](), *blocks_of(config.layers, width, width, config.activation, config.dropout)
    )


def blocks_of(
    num_blocks: int, width_in: int, width: int, activation: HeadActivation, dropout: float
) -> list[nn.Module]:
    """The layers of so many blocks from `width_in` to `width`, in their order."""
    layers: list[nn.Module] = []
    for block in range(num_blocks):
        linear = nn.Linear(width_in if block == 0 else width, width)
        layers += [Dropout(dropout), linear, _ACTIVATIONS[activation]()]
    return layers
