"""Fuse the tokens of an item by attention (PMMRec, eq. 3)."""
# Shapes: U distinct items, T text tokens and P image tokens of one, K tokens of all with mm_cls, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.blocks import TransformerBlock
from pmmrec.context import BuildContext
from pmmrec.contracts import Modality, TokenStates
from pmmrec.errors import RecipeError
from pmmrec.fusion import Fusion, fusions
from pmmrec.packing import HostArray, Ints
from pmmrec.rows import joined
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
    released code, the mean of all outputs. Differs from the paper: an item may lack a modality; its
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
                feed_forward=config.feed_forward_factor * width,
                dropout=config.dropout,
                activation="gelu",
            )
            for _ in range(config.num_layers)
        )

    def forward(self, states: Mapping[str, TokenStates]) -> Tensor:
        """States of the same U items by field -> `(U, D)`."""
        fields = sorted(states, key=_order)
        shown = self._shown({field: states[field].length_R for field in fields})
        seen = [dataclasses.replace(states[field], length_R=shown[field]) for field in fields]
        x_KD, packing, order_U = joined(self.mm_cls, seen)
        for block in self.blocks:
            x_KD = block(x_KD, packing)
        pooled_UD = packing.first(x_KD) if self.pool == "cls" else packing.mean(x_KD)
        return pooled_UD.index_select(0, HostArray(np.argsort(order_U)).on(x_KD.device))

    def _shown(self, lengths: Mapping[str, Ints]) -> Mapping[str, Ints]:
        """How many tokens of each field `(U,)` are seen: all, or in training for a share of the full items one kind."""
        texts = [length_U for field, length_U in lengths.items() if field != Modality.IMAGE]
        if not (self.training and self.modality_dropout) or not texts or len(texts) == len(lengths):
            return lengths
        has_both_U = (np.sum(texts, axis=0) > 0) & (lengths[Modality.IMAGE] > 0)
        draw_2U = torch.rand(2, len(has_both_U)).numpy()
        is_dropped_U, is_text_U = has_both_U & (draw_2U[0] < self.modality_dropout), draw_2U[1] < 0.5
        hidden = {True: is_dropped_U & is_text_U, False: is_dropped_U & ~is_text_U}  # of the image, of texts
        return {field: np.where(hidden[field == Modality.IMAGE], 0, length_U) for field, length_U in lengths.items()}


def _order(field: str) -> tuple[bool, str]:
    """Texts by name, then the image."""
    return (field == Modality.IMAGE, field)
