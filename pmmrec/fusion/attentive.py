"""Fuse the tokens of an item by attention (PMMRec, eq. 3)."""
# Shapes: U distinct items, T text tokens, P image tokens, J = 1 + T + P, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.blocks import TransformerBlock, attention_allowed
from pmmrec.context import BuildContext
from pmmrec.contracts import Modality, TokenStates
from pmmrec.errors import RecipeError
from pmmrec.fusion import Fusion, fusions
from pmmrec.settings import PartConfig


class MergeAttentionConfig(PartConfig):
    """Settings of merge-attention."""

    type: Literal["merge_attention"] = "merge_attention"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"num_heads": 2}, {"num_heads": 2, "pool": "mean"})
    num_layers: int = Field(default=1, ge=1, le=1000)
    num_heads: int = Field(default=12, ge=1, description="Must divide the width.")
    feed_forward_factor: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    pool: Literal["cls", "mean"] = Field(
        default="cls", description="The item: the output at mm_cls, or the mean of all outputs (the released code)."
    )
    modality_dropout: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Chance, in training, that an item with texts and an image shows only one of the two.",
    )


@fusions.register("merge_attention", MergeAttentionConfig)
class MergeAttention(Fusion):
    """Attend from a learned vector mm_cls to the text tokens `(U, T, D)` and image tokens `(U, P, D)` of an item.

    Eq. 3 of https://arxiv.org/abs/2312.09602; the item is the output at mm_cls, or with `pool: mean`, as in the
    released code, the mean of all outputs. Differs from the paper: a modality that an item lacks is masked, so its
    vector stays in the same space. Weights start as torch's (uniform, 0.02 wide at width 768), mm_cls as normal(0.02).

    Example:
        model:
          item_encoder:
            fusion: {type: merge_attention, num_layers: 1, num_heads: 12, pool: cls}
    """

    def __init__(self, config: MergeAttentionConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        if width % config.num_heads:
            raise RecipeError(f"fusion.num_heads: {config.num_heads} do not divide the width {width}; choose a divisor")
        self.pool, self.modality_dropout = config.pool, config.modality_dropout
        self.mm_cls = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.mm_cls, std=0.02)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                config.num_heads,
                feed_forward_factor=config.feed_forward_factor,
                dropout=config.dropout,
                activation="gelu",
            )
            for _ in range(config.num_layers)
        )

    def forward(self, states: Mapping[str, TokenStates]) -> Tensor:
        """States of the same U items by field -> `(U, D)`."""
        masks = {field: states[field].is_valid_RT for field in sorted(states, key=_order)}
        present = [states[field] for field in masks]
        first = present[0].tokens_RTD
        num_items = first.shape[0]
        mm_cls_U1D = self.mm_cls.to(first.dtype).expand(num_items, 1, -1)
        x_UJD = torch.cat([mm_cls_U1D, *(state.tokens_RTD for state in present)], dim=1)
        always_U1 = first.new_ones(num_items, 1, dtype=torch.bool)
        is_valid_UJ = torch.cat([always_U1, *self._shown(masks)], dim=1)
        is_allowed_UJJ = attention_allowed(is_valid_UJ, is_causal=False)
        for block in self.blocks:
            x_UJD = block(x_UJD, is_allowed_UJJ)
        if self.pool == "cls":
            return x_UJD[:, 0]
        return torch.where(is_valid_UJ[:, :, None], x_UJD, 0.0).sum(1) / is_valid_UJ.sum(1, keepdim=True)

    def _shown(self, masks: Mapping[str, Tensor]) -> list[Tensor]:
        """Which tokens are seen: all, or in training those of one modality for a random share of the full items."""
        texts = [mask_UT for field, mask_UT in masks.items() if field != Modality.IMAGE]
        if not (self.training and self.modality_dropout) or not texts or len(texts) == len(masks):
            return list(masks.values())
        has_both_U = torch.cat(texts, dim=1).any(1) & masks[Modality.IMAGE].any(1)
        is_dropped_U = has_both_U & (torch.rand(has_both_U.shape, device=has_both_U.device) < self.modality_dropout)
        is_text_U = torch.rand(has_both_U.shape, device=has_both_U.device) < 0.5
        hides = {True: ~(is_dropped_U & ~is_text_U)[:, None], False: ~(is_dropped_U & is_text_U)[:, None]}
        return [mask & hides[field == Modality.IMAGE] for field, mask in masks.items()]


def _order(field: str) -> tuple[bool, str]:
    """Texts by name, then the image."""
    return (field == Modality.IMAGE, field)
