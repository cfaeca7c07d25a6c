"""Fuse the tokens of two fields of an item, each of which attends to the other (MMSR, section 3.3)."""
# Shapes: U distinct items, R rows of a packing, one of each item, T tokens of the longest, K tokens of all, H heads,
# E width of a head, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.blocks import TransformerBlock
from pmmrec.context import BuildContext
from pmmrec.contracts import TokenStates
from pmmrec.dropout import Dropout
from pmmrec.errors import RecipeError
from pmmrec.fusion import Fusion, fusions, in_order
from pmmrec.packing import HostArray
from pmmrec.rows import Joined, all_tokens, joined
from pmmrec.settings import PartConfig


class CoAttentionConfig(PartConfig):
    """Settings of co-attention."""

    type: Literal["co_attention"] = "co_attention"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"num_heads": 2}, {"num_heads": 2, "num_layers": 2})
    num_layers: int = Field(default=1, ge=1, le=1000)
    num_heads: int = Field(default=12, ge=1, description="Must divide the width.")
    feed_forward_factor: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    with_cls: bool = Field(
        default=True, description="Whether the cls token of each field attends with its other tokens (MMSR: yes)."
    )


class CrossAttention(nn.Module):
    """Attention from the tokens of one field to those of the other, the residual sum and LayerNorm."""

    def __init__(self, width: int, num_heads: int, dropout: float, norm_eps: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, Dropout(dropout)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, asking: Joined, asked: Joined, is_there_U: HostArray) -> Tensor:
        """New tokens `(K, D)` of `asking`; of an item that lacks the other field, attention finds zeros."""
        row_U, order_R = asked.row_U, np.argsort(asking.row_U)
        beside_R = HostArray(row_U[order_R])  # the row of the same item in the other packing
        key_RHTE, value_RHTE = (
            self._heads(asked, layer(asked.token_KD)).index_select(0, beside_R.on(asked.token_KD.device))
            for layer in (self.key, self.value)
        )
        device = asking.token_KD.device
        is_valid_RT = np.arange(asked.packing.longest) < asked.packing.length_R[beside_R.values][:, None]
        mixed_RHTE = F.scaled_dot_product_attention(
            self._heads(asking, self.query(asking.token_KD)),
            key_RHTE,
            value_RHTE,
            attn_mask=HostArray(is_valid_RT).on(device)[:, None, None, :],
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        finds_R = HostArray(is_there_U.values[order_R]).on(device)
        mixed_RHTE = torch.where(finds_R[:, None, None, None], mixed_RHTE, 0.0)
        found_KD = self.out(asking.packing.packed(mixed_RHTE.transpose(1, 2).flatten(2)))
        new_KD: Tensor = self.norm(self.dropout.add(asking.token_KD, found_KD))
        return new_KD

    def _heads(self, items: Joined, x_KD: Tensor) -> Tensor:
        """`(K, D)` -> `(R, H, T, E)`."""
        return items.packing.padded(x_KD.view(len(x_KD), self.num_heads, -1)).transpose(1, 2)


class CoAttentionBlock(nn.Module):
    """Cross-attention by one module in both directions, then self-attention and feed-forward of each field's own."""

    def __init__(self, width: int, config: CoAttentionConfig) -> None:
        super().__init__()
        self.cross = CrossAttention(width, config.num_heads, config.dropout, norm_eps=1e-12)
        self.own = nn.ModuleList(
            TransformerBlock(
                width,
                config.num_heads,
                feed_forward=config.feed_forward_factor * width,
                dropout=config.dropout,
                activation="gelu",
                norm_eps=1e-12,
            )
            for _ in range(2)
        )

    def forward(self, x: Joined, y: Joined, has_x_U: HostArray, has_y_U: HostArray) -> tuple[Joined, Joined]:
        """Both fields, of which each item may lack either."""
        crossed = self.cross(x, y, has_y_U), self.cross(y, x, has_x_U)
        new = [block(one_KD, items.packing) for block, one_KD, items in zip(self.own, crossed, (x, y), strict=True)]
        return dataclasses.replace(x, token_KD=new[0]), dataclasses.replace(y, token_KD=new[1])


@fusions.register("co_attention", CoAttentionConfig)
class CoAttention(Fusion):
    """Let the text tokens `(U, T, D)` and the image tokens `(U, P, D)` of an item attend to each other, and pool both.

    Of MMSR (https://arxiv.org/abs/2403.17372). Each block has one cross-attention for both directions, then a block of
    BERT for each field; a learned type vector is added to the tokens first. The item is W [mean of the text; mean of
    the image]. Weights start as normal(0.02), as the released code's do. Differs from the paper: an item may lack a
    modality; attention then finds zeros there, and its mean is 0.

    Example:
        model: {item_encoder: {fusion: {type: co_attention, num_layers: 2, num_heads: 12}}}
    """

    num_fields = 2

    def __init__(self, config: CoAttentionConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        if width % config.num_heads:
            raise RecipeError(f"fusion.num_heads: {config.num_heads} do not divide the width {width}; choose a divisor")
        self.with_cls = config.with_cls
        self.type_vector = nn.Parameter(torch.empty(2, width))
        self.blocks = nn.ModuleList(CoAttentionBlock(width, config) for _ in range(config.num_layers))
        self.out = nn.Linear(2 * width, width)
        nn.init.normal_(self.type_vector, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, states: Mapping[str, TokenStates]) -> Tensor:
        """States of the same U items by field -> `(U, D)`. ValueError unless there are two fields."""
        first, second = (states[field] for field in in_order(states))
        has = [HostArray(one.is_there_R) for one in (first, second)]
        x, y = (self._typed(one, place) for place, one in enumerate((first, second)))
        for block in self.blocks:
            x, y = block(x, y, *has)
        means = [
            torch.where(has_U.on(items.token_KD.device)[:, None], items.mean(items.token_KD), 0.0)
            for items, has_U in zip((x, y), has, strict=True)
        ]
        fused_UD: Tensor = self.out(torch.cat(means, dim=1))
        return fused_UD

    def _typed(self, states: TokenStates, place: int) -> Joined:
        items = joined(None, all_tokens(states) if self.with_cls else [states])
        return dataclasses.replace(items, token_KD=items.token_KD + self.type_vector[place])
