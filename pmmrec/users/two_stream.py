"""Self-attention over what items are and over what they hold, each on its own (FDSA)."""
# Shapes: B users, L positions, K valid positions of all users, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from pmmrec.blocks import Activation
from pmmrec.context import BuildContext
from pmmrec.contracts import History, UserStates
from pmmrec.dropout import Dropout
from pmmrec.users import UserEncoder, user_encoders
from pmmrec.users.packed import PackedHistory, refuse_longer
from pmmrec.users.stacks import STD, BlocksConfig, Start, blocks_of, start, through

CONTENT = "content"


class TwoStreamConfig(BlocksConfig):
    """Settings of the two streams; the defaults are those of FDSA in RecBole."""

    type: Literal["two_stream"] = "two_stream"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"num_layers": 1, "feed_forward": 12, "qkv_bias": False})
    dropout: float = Field(default=0.5, ge=0, lt=1)
    activation: Activation = "gelu"
    qkv_bias: bool = True
    norm_eps: float = Field(default=1e-12, gt=0)
    init: Start = "normal"
    max_inputs: int = Field(default=20, ge=1, description="The longest history it can read.")


@user_encoders.register("two_stream", TwoStreamConfig)
class TwoStream(UserEncoder):
    """A Transformer over item vectors `(B, L, D)`, one over the stream `content` `(B, L, D)`, and a map of both states.

    FDSA (https://www.ijcai.org/proceedings/2019/600) as RecBole builds it and PMMRec compares with it. Both streams add
    the same positions and pass the same LayerNorm; the states of both are concatenated, mapped by a linear layer,
    normalised by that LayerNorm once more, and dropped out. A state sees the items up to its own. The item vectors are
    those of ids under `with_ids` with `join: stream`: they alone are what states are compared with. Differs from
    RecBole: positions are counted from the most recent item, and every position of a history can be trained.

    Example:
        model:
          item_encoder: {type: with_ids, content: {type: features, features: {clip: 512}}, join: stream}
          user_encoder: {type: two_stream, num_layers: 2, num_heads: 2, feed_forward: 256}
    """

    streams = frozenset({CONTENT})

    def __init__(self, config: TwoStreamConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        self.max_inputs = config.max_inputs
        self.position = nn.Embedding(config.max_inputs, width)
        nn.init.normal_(self.position.weight, std=STD)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.item_blocks, self.content_blocks = (blocks_of(config, width) for _ in range(2))
        self.join = nn.Linear(2 * width, width)
        start(self, config.init)

    def forward(self, history: History) -> UserStates:
        """States `(B, L, D)`. RecipeError where L is above `max_inputs`."""
        refuse_longer(history, self.max_inputs)
        packed = PackedHistory.of(history)
        position_KD = self.position(packed.from_end_K)
        both = ((history.item_BLD, self.item_blocks), (history.streams_BLD[CONTENT], self.content_blocks))
        states = [
            through(blocks, self.dropout(self.norm(packed.packed(x_BLD) + position_KD)), packed, is_causal=True)
            for x_BLD, blocks in both
        ]
        return packed.states(self.dropout(self.norm(self.join(torch.cat(states, dim=1)))))
