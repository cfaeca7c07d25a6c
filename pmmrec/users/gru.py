"""Recurrent states over the items that a user touched (GRU4Rec)."""
# Shapes: B users, L positions, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from pmmrec.context import BuildContext
from pmmrec.contracts import History, UserStates
from pmmrec.dropout import Dropout
from pmmrec.settings import PartConfig
from pmmrec.users import UserEncoder, user_encoders
from pmmrec.users.packed import refuse_longer


class GRUConfig(PartConfig):
    """Settings of the GRU user encoder; the defaults are those of the MoRec and NineRec papers."""

    type: Literal["gru"] = "gru"
    num_layers: int = Field(default=2, ge=1, le=1000)
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"num_layers": 1, "output_layer": True})
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Of the inputs.")
    output_layer: bool = Field(
        default=False, description="Whether a linear layer follows the units (NineRec with texts, RecBole)."
    )
    max_inputs: int = Field(default=20, ge=1, description="The longest history it can read.")


@user_encoders.register("gru", GRUConfig)
class GRUUserEncoder(UserEncoder):
    """Gated recurrent units over item vectors `(B, L, D)`; the state at a position is the output of the last layer.

    GRU4Rec (arXiv 1511.06939) as MoRec, MMSR and NineRec use it. The units have no bias, so that zeros on the left keep
    the state at exactly zero: padding changes nothing. The weights of the first layer start as xavier_uniform, as
    released, the others as torch's.

    Example:
        model: {user_encoder: {type: gru, num_layers: 2}}
    """

    def __init__(self, config: GRUConfig, context: BuildContext) -> None:
        super().__init__()
        self.max_inputs = config.max_inputs
        self.dropout = Dropout(config.dropout)
        self.gru = nn.GRU(context.width, context.width, config.num_layers, bias=False, batch_first=True)
        for weight in (self.gru.weight_ih_l0, self.gru.weight_hh_l0):
            nn.init.xavier_uniform_(torch.as_tensor(weight))
        self.output = nn.Linear(context.width, context.width) if config.output_layer else nn.Identity()

    def forward(self, history: History) -> UserStates:
        """States `(B, L, D)`. RecipeError where L is above `max_inputs`."""
        refuse_longer(history, self.max_inputs)
        hidden_BLD, _ = self.gru(self.dropout(history.item_BLD))
        read = slice(-1, None) if history.last_alone else slice(None)
        return UserStates(self.output(hidden_BLD[:, read]), history.is_valid_BL[:, read])
