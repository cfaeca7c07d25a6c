"""Users as the mean of their items, under an MLP (the DSSM variant of NineRec)."""
# Shapes: B users, L positions, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import History, UserStates
from pmmrec.dropout import Dropout
from pmmrec.settings import PartConfig
from pmmrec.users import UserEncoder, user_encoders


class MeanMLPConfig(PartConfig):
    """Settings of the mean of items under an MLP; the defaults are those of the NineRec paper."""

    type: Literal["mean_mlp"] = "mean_mlp"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"attends": "others", "num_layers": 1})
    num_layers: int = Field(default=2, ge=1, le=1000, description="Layers above the mean.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Before each linear layer.")
    attends: Literal["past", "others"] = Field(
        default="past",
        description="What a state is the mean of. past: the items up to its position (targets: next or last). others: "
        "the items at all other positions (targets: each).",
    )
    max_inputs: int = Field(default=20, ge=1, description="The longest history it can read.")


@user_encoders.register("mean_mlp", MeanMLPConfig)
class MeanMLP(UserEncoder):
    """The mean of item vectors `(B, L, D)`, then layers of dropout, linear map and ReLU, the last ReLU included.

    The DSSM variant of NineRec (https://arxiv.org/abs/2309.07705): a user is what the items have in common, without
    their order. The paper trains the last item of a window (`attends: past`, `targets: last`); the released code each
    item by all others, later ones too (`attends: others`, `targets: each`). Differs from the code: the others are those
    of the window, not of the whole history. The mean of no item is zero.

    Example:
        model: {user_encoder: {type: mean_mlp, num_layers: 2, attends: others}}
        objectives: {bce: {type: bce, targets: each}}
    """

    def __init__(self, config: MeanMLPConfig, context: BuildContext) -> None:
        super().__init__()
        self.max_inputs, self.attends = config.max_inputs, config.attends
        width = context.width
        layers = [(Dropout(config.dropout), nn.Linear(width, width), nn.ReLU()) for _ in range(config.num_layers)]
        self.layers = nn.Sequential(*(module for layer in layers for module in layer))

    def forward(self, history: History) -> UserStates:
        """States `(B, L, D)`."""
        is_read_BL = history.is_valid_BL
        if history.is_masked_BL is not None:
            is_read_BL = is_read_BL & ~history.is_masked_BL
        read = slice(-1, None) if history.last_alone else slice(None)
        is_read_BLL = is_read_BL[:, None] & self._is_within(is_read_BL)[read]
        weight_BLL = is_read_BLL.to(history.item_BLD.dtype)
        mean_BLD = weight_BLL @ history.item_BLD / weight_BLL.sum(dim=2, keepdim=True).clamp(min=1)
        return UserStates(self.layers(mean_BLD), history.is_valid_BL[:, read])

    def _is_within(self, is_read_BL: Tensor) -> Tensor:
        """`(L, L)`: whether the state at a position (row) may read the item at another (column)."""
        place_L = torch.arange(is_read_BL.shape[1], device=is_read_BL.device)
        return place_L[:, None] >= place_L if self.attends == "past" else place_L[:, None] != place_L
