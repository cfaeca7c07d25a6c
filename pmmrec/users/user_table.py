"""Users by who they are: one learned vector for each user (DSSM, matrix factorisation)."""
# Shapes: B users, L positions, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import History, UserStates
from pmmrec.errors import RecipeError
from pmmrec.head import blocks_of
from pmmrec.row_table import RowTable
from pmmrec.settings import PartConfig
from pmmrec.users import UserEncoder, user_encoders


class UserTableConfig(PartConfig):
    """Settings of the user table."""

    type: Literal["user_table"] = "user_table"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"layers": 2})
    layers: int = Field(0, ge=0, description="Blocks of dropout, linear layer and GELU above the table (DSSM: 0 to 5).")
    dropout: float = Field(0.1, ge=0, lt=1, description="Of the blocks; without effect where there is none.")


@user_encoders.register("user_table", UserTableConfig)
class UserTable(UserEncoder):
    """One learned vector for each user, whatever the user did: its state `(D,)` is the same at every position.

    The user tower of DSSM in MoRec (https://arxiv.org/abs/2303.13835) and NineRec, with `layers` above the table: 0, 1,
    3 or 5, of which 0 was best. It serves the users that it was trained on, and no others: a user without a row cannot
    be scored.

    Example:
        model: {item_encoder: {type: ids}, user_encoder: {type: user_table}}
        data: {examples: interactions}
    """

    max_inputs = 1  # histories are cut to it, and not read
    reads_users = True
    reads_history = False

    def __init__(self, config: UserTableConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        self.table = RowTable(context.catalogues, width, "users")
        self.layers = nn.Sequential(*blocks_of(config.layers, width, width, "gelu", config.dropout))

    @property
    def vector(self) -> nn.Embedding:
        """The table: a row for each user."""
        return self.table.vector

    def vectors(self) -> Tensor:
        """All vectors, through the table's own forward, so that wrappers which keep weights in shares gather them."""
        return self._of(torch.arange(self.vector.num_embeddings, device=self.vector.weight.device))

    def forward(self, history: History) -> UserStates:
        """States `(B, L, D)`. RecipeError where it is not said who the users are."""
        if history.user_BD is None and history.user_index_B is None:
            raise RecipeError(
                "user_encoder: user_table knows users by id, and serves the users of its domain alone; rank these, or "
                "choose an encoder that reads histories"
            )
        vectors_BD = history.user_BD
        if vectors_BD is None:
            vectors_BD = self._of(history.user_index_B)
        return UserStates(vectors_BD[:, None].expand(-1, history.is_valid_BL.shape[1], -1), history.is_valid_BL)

    def _of(self, user_index_B: Tensor | None) -> Tensor:
        """`(B, D)`, of users by their place in the table."""
        vectors_BD: Tensor = self.layers(self.vector(user_index_B))
        return vectors_BD
