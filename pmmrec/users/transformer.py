"""Self-attention over the items that a user touched (PMMRec eq. 4, SASRec, BERT4Rec)."""
# Shapes: B users, L inputs, K inputs of all users, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pmmrec.adapters import Host, Sites
from pmmrec.blocks import Activation, TransformerBlock
from pmmrec.context import BuildContext
from pmmrec.contracts import History, UserStates
from pmmrec.dropout import Dropout
from pmmrec.errors import RecipeError
from pmmrec.renamed import renamed_attention
from pmmrec.settings import PartConfig
from pmmrec.users import UserEncoder, user_encoders
from pmmrec.users.packed import PackedHistory, masked, refuse_longer

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
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"attends": "all"})
    num_layers: int = Field(default=2, ge=1, le=1000)
    num_heads: int = Field(default=2, ge=1, description="Must divide the width.")
    feed_forward_factor: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    activation: Activation = "relu"
    qkv_bias: bool = False
    norm_eps: float = Field(default=1e-6, gt=0)
    attends: Literal["past", "all"] = Field(
        default="past",
        description="past: an input sees those before it. all: those behind it too; training masks items (BERT4Rec).",
    )
    max_inputs: int = Field(default=20, ge=1, description="The longest history it can read.")

    @model_validator(mode="before")
    @classmethod
    def _reads_earlier_names(cls, settings: Any) -> Any:
        return renamed_attention(settings)


@user_encoders.register("transformer", TransformerConfig)
class TransformerUserEncoder(UserEncoder):
    """Transformer blocks over item vectors `(B, L, D)` with learned positions, counted from the most recent input.

    Eq. 4 of https://arxiv.org/abs/2312.09602, and SASRec (arXiv 1808.09781) under `attends: past`; BERT4Rec (arXiv
    1904.06690) under `attends: all`. Differs from the papers: position 0 is the last place, so more padding on the left
    changes nothing. Weights start as torch's (uniform, 0.02 wide at width 768), positions as normal(0.02).

    Example:
        model:
          user_encoder: {type: transformer, num_layers: 2, num_heads: 2, attends: past, dropout: 0.1}
    """

    def __init__(self, config: TransformerConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        if width % config.num_heads:
            raise RecipeError(
                f"user_encoder.num_heads: {config.num_heads} do not divide the width {width}; choose a divisor"
            )
        self.max_inputs, self.attends = config.max_inputs, config.attends
        self._max_positions = config.max_inputs + (config.attends == "all")
        self.position = nn.Embedding(self._max_positions, width)
        nn.init.normal_(self.position.weight, std=0.02)
        if config.attends == "all":
            self.mask = nn.Parameter(torch.empty(width))
            nn.init.normal_(self.mask, std=0.02)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
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

    def forward(self, history: History) -> UserStates:
        """States `(B, L, D)`. RecipeError where L is above `max_inputs`; with `attends: all`, above one more."""
        refuse_longer(history, self.max_inputs, self._max_positions)
        packed = PackedHistory.of(history)
        input_KD = packed.packed(history.item_BLD)
        if self.attends == "all":
            input_KD = masked(input_KD, packed, self.mask)
        hidden_KD: Tensor = self.dropout(self.norm(input_KD + self.position(packed.from_end_K)))
        for block in self.blocks:
            hidden_KD = block(hidden_KD, packed.packing, is_causal=self.attends == "past")
        return packed.states(hidden_KD)
