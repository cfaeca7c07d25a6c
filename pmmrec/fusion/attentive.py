"""Fuse the tokens of an item by attention (PMMRec, eq. 3)."""
# Shapes: U distinct items, T text tokens and P image tokens of one, K tokens of all with mm_cls, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from pmmrec.blocks import TransformerBlock
from pmmrec.context import BuildContext
from pmmrec.contracts import Modality, TokenStates
from pmmrec.errors import RecipeError
from pmmrec.fusion import Fusion, fusions, in_order
from pmmrec.packing import HostArray
from pmmrec.rows import Joined, all_tokens, joined
from pmmrec.settings import PartConfig

Bools = NDArray[np.bool_]


class MergeAttentionConfig(PartConfig):
    """Settings of merge-attention."""

    type: Literal["merge_attention"] = "merge_attention"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"num_heads": 2},
        {"num_heads": 2, "pool": "mean"},
        {"num_heads": 2, "pool": "mean_of_fields"},
        {"num_heads": 2, "pool": "mean", "mm_cls": False, "with_cls": True},
    )
    num_layers: int = Field(default=1, ge=1, le=1000)
    num_heads: int = Field(default=12, ge=1, description="Must divide the width.")
    feed_forward_factor: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    pool: Literal["cls", "mean", "mean_of_fields"] = Field(
        default="cls",
        description="The item: the output at mm_cls, the mean of all outputs (the released code), or the mean of the "
        "means of each field: then a text of 20 tokens and an image of 4 count alike.",
    )
    mm_cls: bool = Field(default=True, description="Whether a learned vector attends with the tokens (MMSR: no).")
    with_cls: bool = Field(
        default=False, description="Whether the cls token of each field attends with its other tokens (MMSR: yes)."
    )
    norm_eps: float = Field(default=1e-6, gt=0, description="Of LayerNorm (BERT: 1e-12).")
    modality_dropout: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Chance, in training, that an item with texts and an image shows only one of the two.",
    )

    @model_validator(mode="after")
    def _pools_what_is_there(self) -> Self:
        if self.pool == "cls" and not self.mm_cls:
            raise ValueError("pool: cls is the output at mm_cls, which mm_cls: false leaves out; use mean")
        return self


@fusions.register("merge_attention", MergeAttentionConfig)
class MergeAttention(Fusion):
    """Attend from a learned vector mm_cls to the text tokens `(U, T, D)` and image tokens `(U, P, D)` of an item.

    Eq. 3 of https://arxiv.org/abs/2312.09602; the item is the output at mm_cls, or with `pool: mean`, as in the
    released code, the mean of all outputs, in which a modality weighs as much as it has tokens. With `pool:
    mean_of_fields`, which is ours, each field that the item has weighs the same, and mm_cls nothing. Differs from the
    paper: an item may lack a modality; its vector stays in the same space. Weights start as torch's (uniform, 0.02 wide
    at width 768), mm_cls as normal(0.02).

    The merge-attention of MMSR (https://arxiv.org/abs/2403.17372) is `mm_cls: false, with_cls: true, pool: mean,
    norm_eps: 1e-12`: all tokens attend, the cls tokens of encoders that have one included, and nothing else.

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
        self.with_cls = config.with_cls
        self.mm_cls: nn.Parameter | None = None
        if config.mm_cls:
            self.mm_cls = nn.Parameter(torch.empty(width))
            nn.init.normal_(self.mm_cls, std=0.02)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                config.num_heads,
                feed_forward=config.feed_forward_factor * width,
                dropout=config.dropout,
                activation="gelu",
                norm_eps=config.norm_eps,
            )
            for _ in range(config.num_layers)
        )

    def forward(self, states: Mapping[str, TokenStates]) -> Tensor:
        """States of the same U items by field -> `(U, D)`."""
        fields = in_order(states)
        has = {field: one.is_there_R if self.with_cls else one.length_R > 0 for field, one in states.items()}
        shown = self._shown(has)
        seen: list[TokenStates] = []
        field_of_state = [0]
        for number, field in enumerate(fields, start=1):
            length_R = np.where(shown[field], states[field].length_R, 0)
            one = dataclasses.replace(states[field], length_R=length_R, has_R=shown[field])
            of_field = all_tokens(one) if self.with_cls else [one]
            seen += of_field
            field_of_state += [number] * len(of_field)
        items = joined(self.mm_cls, seen)
        x_KD = items.token_KD
        for block in self.blocks:
            x_KD = block(x_KD, items.packing)
        if self.pool == "cls":
            return items.first(x_KD)
        if self.pool == "mean_of_fields":
            weight_K = HostArray(_weights_of_fields(items, np.array(field_of_state)))
            x_KD = x_KD * weight_K.on(x_KD.device).to(x_KD.dtype)[:, None]
        return items.mean(x_KD)

    def _shown(self, has: Mapping[str, Bools]) -> Mapping[str, Bools]:
        """Which items `(U,)` show each field: those that have it, but in training a share of the full ones one kind."""
        texts = [has_U for field, has_U in has.items() if field != Modality.IMAGE]
        if not (self.training and self.modality_dropout) or not texts or len(texts) == len(has):
            return has
        has_both_U = np.any(texts, axis=0) & has[Modality.IMAGE]
        draw_2U = torch.rand(2, len(has_both_U), device="cpu").numpy()  # the host decides, on a meta device too
        is_dropped_U, is_text_U = has_both_U & (draw_2U[0] < self.modality_dropout), draw_2U[1] < 0.5
        hidden = {True: is_dropped_U & is_text_U, False: is_dropped_U & ~is_text_U}  # of the image, of texts
        return {field: has_U & ~hidden[field == Modality.IMAGE] for field, has_U in has.items()}


def _weights_of_fields(items: Joined, field_of_state: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each token weighs in a mean of its item's tokens that shall be the mean of the means of its fields.

    Field 0 is mm_cls, or the zeros of an item without tokens: it counts where there is no other.
    """
    row_K, field_K = items.packing.row_K, field_of_state[items.state_K]
    num_tokens_RF = np.zeros((items.packing.num_rows, field_of_state.max() + 1))
    np.add.at(num_tokens_RF, (row_K, field_K), 1)
    has_tokens_R = (num_tokens_RF[:, 1:] > 0).any(axis=1)
    num_tokens_RF[has_tokens_R, 0] = 0
    share_RF = np.divide(1.0, num_tokens_RF, out=np.zeros_like(num_tokens_RF), where=num_tokens_RF > 0)
    share_RF *= (items.packing.length_R / (num_tokens_RF > 0).sum(axis=1))[:, None]
    weight_K: NDArray[np.float64] = share_RF[row_K, field_K]
    return weight_K
