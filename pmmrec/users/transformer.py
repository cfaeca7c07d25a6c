"""Self-attention over the items that a user touched (PMMRec eq. 4, SASRec, BERT4Rec)."""
# Shapes: B users, L inputs, K inputs of all users, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from pmmrec.adapters import Host, Sites
from pmmrec.context import BuildContext
from pmmrec.contracts import History, UserStates
from pmmrec.dropout import Dropout
from pmmrec.renamed import renamed_attention
from pmmrec.users import UserEncoder, user_encoders
from pmmrec.users.packed import PackedHistory, masked, refuse_longer
from pmmrec.users.stacks import STD, BlocksConfig, blocks_of, start, through

# Queries, keys and values are made by one linear map.
SITES = Sites(
    query_value=r"attention\.qkv",
    key_value=r"attention\.qkv",
    attention=(r"attention\.qkv", r"attention\.out"),
    feed_forward=(r"expand", r"contract"),
)


class TransformerConfig(BlocksConfig):
    """Settings of the Transformer user encoder; the defaults are those of the released code."""

    type: Literal["transformer"] = "transformer"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"attends": "all"},
        {"attends": "all", "mask_text": "hidden"},
        {"norm_first": True, "feed_forward": 12},
        {"attends": "all", "output_head": True, "init": "normal"},
        {"out_bias": False, "init": "xavier"},
    )
    attends: Literal["past", "all"] = Field(
        default="past",
        description="past: an input sees those before it. all: those behind it too; training masks items (BERT4Rec).",
    )
    mask_text: str | None = Field(
        default=None,
        pattern=r"\S",
        description="attends: all: a hidden item is read as the item encoder encodes this text (NineRec over texts); "
        "null: as a learned vector.",
    )
    norm_first: bool = Field(
        default=False,
        description="Whether LayerNorm stands before attention and feed-forward, as in SASRec, instead of behind them.",
    )
    output_head: bool = Field(
        default=False, description="Whether a linear layer, GELU and LayerNorm follow the last block (BERT4Rec)."
    )
    max_inputs: int = Field(default=20, ge=1, description="The longest history it can read.")

    @model_validator(mode="after")
    def _mask_text_is_read(self) -> Self:
        if self.mask_text is not None and self.attends != "all":
            raise ValueError("mask_text: has no effect with attends: past, which hides no item; leave it out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _reads_earlier_names(cls, settings: Any) -> Any:
        return renamed_attention(settings)


@user_encoders.register("transformer", TransformerConfig)
class TransformerUserEncoder(UserEncoder):
    """Transformer blocks over item vectors `(B, L, D)` with learned positions, counted from the most recent input.

    Eq. 4 of https://arxiv.org/abs/2312.09602. Differs from the papers: position 0 is the last place, so more padding on
    the left changes nothing. Weights start as `init` says: torch's linear layers are uniform, 0.02 wide at width 768.

    | settings | system |
    |---|---|
    | none | PMMRec |
    | `out_bias: false, init: xavier` | SASRec in MoRec, MMSR and NineRec |
    | `norm_first: true` | SASRec (arXiv 1808.09781): LayerNorm before attention, before feed-forward and at the end |
    | `attends: all, out_bias: false, init: xavier` | BERT4Rec in NineRec |
    | `attends: all, output_head: true, activation: gelu, qkv_bias: true` | BERT4Rec (arXiv 1904.06690), RecBole |

    The released code of SASRec normalises the queries of attention alone, and adds what it normalised to the result;
    here, as in the paper, queries, keys and values are normalised, and the residual is not. The mask is a learned
    vector; with `mask_text` it is the vector of a text, which is encoded with the items of each batch. Released codes
    of BERT4Rec by ids take a further row of the item table, which computes the same as a learned vector but is also an
    item that can be drawn and ranked. BERT4Rec and RecBole also learn a bias for each item, which `dot` has not.

    Example:
        model:
          user_encoder: {type: transformer, num_layers: 2, num_heads: 2, attends: past, dropout: 0.1}
    """

    mask: Tensor

    def __init__(self, config: TransformerConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        self.max_inputs, self.attends, self.norm_first = config.max_inputs, config.attends, config.norm_first
        self._max_positions = config.max_inputs + (config.attends == "all")
        self.position = nn.Embedding(self._max_positions, width)
        nn.init.normal_(self.position.weight, std=STD)
        self.mask_text = config.mask_text
        if config.attends == "all":
            mask_D = torch.empty(width).normal_(std=STD)
            if config.mask_text is None:
                self.mask = nn.Parameter(mask_D)
            else:
                self.register_buffer("mask", mask_D)  # until the text has been encoded
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)  # of the inputs; of the states with norm_first
        self.dropout = Dropout(config.dropout)
        self.blocks = blocks_of(config, width, norm_first=config.norm_first)
        self.head = _head(config, width)
        start(self, config.init)

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
        hidden_KD = input_KD + self.position(packed.from_end_K)
        hidden_KD = self.dropout(hidden_KD if self.norm_first else self.norm(hidden_KD))
        hidden = through(self.blocks, hidden_KD, packed, is_causal=self.attends == "past")
        return packed.states(self.head(self.norm(hidden) if self.norm_first else hidden))


def _head(config: TransformerConfig, width: int) -> nn.Module:
    """What BERT4Rec has above its blocks, or nothing."""
    if not config.output_head:
        return nn.Identity()
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=config.norm_eps))
