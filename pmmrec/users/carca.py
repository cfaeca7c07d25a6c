"""Self-attention whose result multiplies its queries (the profile blocks of CARCA)."""
# Shapes: B users, L positions, K valid positions of all users, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.blocks import CARCA_SLOPE
from pmmrec.context import BuildContext
from pmmrec.contracts import History, UserStates
from pmmrec.dropout import Dropout
from pmmrec.packing import Packing, attend, attend_last
from pmmrec.settings import PartConfig
from pmmrec.users import UserEncoder, user_encoders
from pmmrec.users.packed import PackedHistory, refuse_longer
from pmmrec.users.stacks import refuse_heads


class CarcaConfig(PartConfig):
    """Settings of CARCA's blocks over the history; the defaults are those of the released code on Beauty."""

    type: Literal["carca"] = "carca"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"num_layers": 1, "num_heads": 2})
    num_layers: int = Field(default=3, ge=1, le=1000)
    num_heads: int = Field(default=1, ge=1, description="Must divide the width.")
    dropout: float = Field(default=0.5, ge=0, lt=1)
    norm_eps: float = Field(default=1e-8, gt=0)
    max_inputs: int = Field(default=20, ge=1, description="The longest history it can read.")


class CarcaBlock(nn.Module):
    """`y = q * attention(q, x, x)` with `q = LN(x)`, then `LN(y) + FFN(LN(y))`; leaky ReLU on each projection."""

    def __init__(self, width: int, config: CarcaConfig) -> None:
        super().__init__()
        self.num_heads, self.weight_dropout = config.num_heads, config.dropout
        self.query_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.feed_forward_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.expand, self.contract = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_KD: Tensor, packing: Packing, *, last_alone: bool = False) -> Tensor:
        """`(K, D)`, the places of packed rows -> `(K, D)`; with `last_alone` the last place of each row, `(R, D)`."""
        asking = self.query_norm(packing.last(x_KD) if last_alone else x_KD)
        pairs = ((self.query, asking), (self.key, x_KD), (self.value, x_KD))
        heads = [F.leaky_relu(linear(one), CARCA_SLOPE).view(len(one), self.num_heads, -1) for linear, one in pairs]
        dropout = self.weight_dropout if self.training else 0.0
        if last_alone:
            found = attend_last(heads[0], heads[1], heads[2], packing, dropout=dropout)
        else:
            found = attend(heads[0], heads[1], heads[2], packing, is_causal=True, dropout=dropout)
        row = self.feed_forward_norm(asking * found.flatten(1))
        inner = self.dropout(F.leaky_relu(self.expand(row), CARCA_SLOPE))
        return self.dropout.add(row, self.contract(inner))


@user_encoders.register("carca", CarcaConfig)
class Carca(UserEncoder):
    """Blocks of attention over item vectors `(B, L, D)` whose residual multiplies; no positions; a last LayerNorm.

    The profile of CARCA (arXiv 2204.06519), under the scorer `attention`, which attends from candidates to its states.
    Queries alone are normalised; queries, keys, values and the feed-forward, which is as wide as the model, pass a
    leaky ReLU (slope 0.2). Differs from the released code: a state sees the items up to its own. There it sees the
    whole history, in which the targets of training stand. The context of an interaction, such as its time, which CARCA
    joins to the item, is left out: a candidate would need that of the target. Columns of the items are read, as
    `attributes` of `features`.

    Example:
        model:
          user_encoder: {type: carca, num_layers: 3, num_heads: 1}
          scorer: {type: attention, activation: leaky_relu, multiplies: candidate}
    """

    def __init__(self, config: CarcaConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        refuse_heads(config.num_heads, width)
        self.max_inputs = config.max_inputs
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(CarcaBlock(width, config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, history: History) -> UserStates:
        """States `(B, L, D)`. RecipeError where L is above `max_inputs`."""
        refuse_longer(history, self.max_inputs)
        packed = PackedHistory.of(history)
        hidden_KD: Tensor = self.dropout(packed.packed(history.item_BLD))
        *lower, top = self.blocks
        for block in lower:
            hidden_KD = block(hidden_KD, packed.packing)
        return packed.states(self.norm(top(hidden_KD, packed.packing, last_alone=history.last_alone)))
