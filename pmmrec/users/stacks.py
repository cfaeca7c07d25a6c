"""Transformer blocks of user encoders, and their settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from pmmrec.blocks import Activation, TransformerBlock
from pmmrec.errors import RecipeError
from pmmrec.settings import PartConfig
from pmmrec.users.packed import PackedHistory

Start = Literal["torch", "xavier", "normal"]
STD = 0.02  # of what starts as normal numbers


class BlocksConfig(PartConfig):
    """Settings of the Transformer blocks of a user encoder; the defaults are those of PMMRec's released code."""

    num_layers: int = Field(default=2, ge=1, le=1000)
    num_heads: int = Field(default=2, ge=1, description="Must divide the width.")
    feed_forward_factor: int = Field(default=4, ge=1, description="Width of the feed-forward over that of the model.")
    feed_forward: int | None = Field(
        default=None, ge=1, description="Width of the feed-forward, in place of the factor (UniSRec: 256 at width 300)."
    )
    dropout: float = Field(default=0.1, ge=0, lt=1)
    activation: Activation = "relu"
    qkv_bias: bool = False
    out_bias: bool = Field(default=True, description="Of the map behind attention; false in the code of MoRec.")
    norm_eps: float = Field(default=1e-6, gt=0)
    init: Start = Field(
        default="torch",
        description="How linear layers and positions start. torch: as torch's layers, positions as normal(0.02). "
        "xavier: xavier_normal, biases 0 (MoRec, MMSR, NineRec). normal: normal(0.02), biases 0 (BERT4Rec, RecBole).",
    )

    @model_validator(mode="after")
    def _has_one_width(self) -> Self:
        if self.feed_forward is not None and self.feed_forward_factor != 4:
            raise ValueError("feed_forward: is a width in place of feed_forward_factor; leave one of them out")
        return self


def refuse_heads(num_heads: int, width: int) -> None:
    """RecipeError where the heads do not divide the width."""
    if width % num_heads:
        raise RecipeError(f"user_encoder.num_heads: {num_heads} do not divide the width {width}; choose a divisor")


def blocks_of(config: BlocksConfig, width: int, *, norm_first: bool = False) -> nn.ModuleList:
    """Transformer blocks one above another. RecipeError where the heads do not divide the width."""
    refuse_heads(config.num_heads, width)
    return nn.ModuleList(
        TransformerBlock(
            width,
            config.num_heads,
            feed_forward=config.feed_forward or config.feed_forward_factor * width,
            dropout=config.dropout,
            activation=config.activation,
            norm_eps=config.norm_eps,
            qkv_bias=config.qkv_bias,
            out_bias=config.out_bias,
            norm_first=norm_first,
        )
        for _ in range(config.num_layers)
    )


def through(blocks: nn.ModuleList, hidden_KD: Tensor, packed: PackedHistory, *, is_causal: bool) -> Tensor:
    """`(K, D)` of packed histories -> `(K, D)`; the last places `(R, D)` where their states alone are read."""
    *lower, top = blocks
    for block in lower:
        hidden_KD = block(hidden_KD, packed.packing, is_causal=is_causal)
    hidden: Tensor = top(hidden_KD, packed.packing, is_causal=is_causal, last_alone=packed.history.last_alone)
    return hidden


def start(encoder: nn.Module, init: Start) -> None:
    """Draw the weights of linear layers and tables of a user encoder again, unless they start as torch's."""
    if init == "torch":
        return
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            if init == "xavier":
                nn.init.xavier_normal_(module.weight)
            else:
                nn.init.normal_(module.weight, std=STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
