"""What a user wants next, by self-attention over the items before (PMMRec, eq. 4)."""
# Shapes: B users, L inputs, D width.

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.adapters import Host, Sites
from pmmrec.blocks import Activation, TransformerBlock, attention_allowed
from pmmrec.context import BuildContext
from pmmrec.errors import RecipeError
from pmmrec.settings import PartConfig
from pmmrec.users import UserEncoder, user_encoders

# Queries, keys and values are made by one linear map.
SITES = Sites(
    query_value=r"attention\.qkv",
    key_value=r"attention\.qkv",
    attention=(r"attention\.qkv", r"attention\.out"),
    feed_forward=(r"expand", r"contract"),
)


class TransformerConfig(PartConfig):
    """Settings of the Transformer user encoder; the defaults are those of the released code."""

    type: Literal["transformer"] = "transformer"
    num_layers: int = Field(default=2, ge=1, le=1000)
    num_heads: int = Field(default=2, ge=1, description="Must divide the width.")
    feed_forward_factor: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    activation: Activation = "relu"
    qkv_bias: bool = False
    norm_eps: float = Field(default=1e-6, gt=0)
    is_causal: bool = Field(default=True, description="False: every input sees every other (BERT4Rec).")
    max_inputs: int = Field(default=20, ge=1, description="The longest history it can read.")


@user_encoders.register("transformer", TransformerConfig)
class TransformerUserEncoder(UserEncoder):
    """Transformer blocks over item vectors with learned positions, counted from the most recent input.

    Eq. 4 of https://arxiv.org/abs/2312.09602. Position 0 is the last place, so more padding on the left changes
    nothing. Weights start as torch's (uniform, 0.02 wide at width 768), positions as normal(0.02).
    """

    def __init__(self, config: TransformerConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        if width % config.num_heads:
            raise RecipeError(
                f"user_encoder.num_heads: {config.num_heads} do not divide the width {width}; choose a divisor"
            )
        self.max_inputs, self.is_causal = config.max_inputs, config.is_causal
        self.position = nn.Embedding(config.max_inputs, width)
        nn.init.normal_(self.position.weight, std=0.02)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                config.num_heads,
                feed_forward_factor=config.feed_forward_factor,
                dropout=config.dropout,
                activation=config.activation,
                norm_eps=config.norm_eps,
                qkv_bias=config.qkv_bias,
            )
            for _ in range(config.num_layers)
        )

    @property
    def host(self) -> Host:
        """Its blocks, which may carry adapters."""
        blocks = tuple(f"blocks.{place}" for place in range(len(self.blocks)))
        return Host(self, "", type(self).__name__, blocks, SITES, ("transformer",))

    def forward(self, inputs_BLD: Tensor, is_valid_BL: Tensor) -> Tensor:
        """Left-padded item vectors -> hidden states `(B, L, D)`. RecipeError when L is above `max_inputs`."""
        length = inputs_BLD.shape[1]
        if length > self.max_inputs:
            raise RecipeError(
                f"user_encoder.max_inputs: {self.max_inputs}, but histories of {length} inputs came; "
                "shorten the windows or raise max_inputs"
            )
        place_L = torch.arange(length - 1, -1, -1, device=inputs_BLD.device)
        hidden_BLD: Tensor = self.dropout(self.norm(inputs_BLD + self.position(place_L)))
        is_allowed_BLL = attention_allowed(is_valid_BL, is_causal=self.is_causal)
        for block in self.blocks:
            hidden_BLD = block(hidden_BLD, is_allowed_BLL)
        return hidden_BLD
