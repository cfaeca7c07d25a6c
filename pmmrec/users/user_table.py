"""Users by who they are: one learned vector for each user (DSSM, matrix factorisation)."""
# Shapes: B users, L positions, D width.

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import History, UserStates
from pmmrec.errors import RecipeError
from pmmrec.row_table import RowTable
from pmmrec.settings import PartConfig
from pmmrec.users import UserEncoder, user_encoders


class UserTableConfig(PartConfig):
    """Settings of the user table; there are none."""

    type: Literal["user_table"] = "user_table"


@user_encoders.register("user_table", UserTableConfig)
class UserTable(UserEncoder):
    """One learned vector for each user, whatever the user did: its state `(D,)` is the same at every position.

    The user tower of DSSM (MoRec, NineRec) without layers above its table, which those papers found best. It serves
    the users that it was trained on, and no others: a user without a row cannot be scored.

    Example:
        model: {item_encoder: {type: ids}, user_encoder: {type: user_table}}
        data: {examples: interactions}
    """

    max_inputs = 1  # histories are cut to it, and not read
    reads_users = True
    reads_history = False

    def __init__(self, config: UserTableConfig, context: BuildContext) -> None:  # noqa: ARG002  # every part is built so
        super().__init__()
        self.table = RowTable(context.catalogues, context.width, "users")

    @property
    def vector(self) -> nn.Embedding:
        """The vectors of all users."""
        return self.table.vector

    def vectors(self) -> Tensor:
        """All rows, through the table's own forward, so that wrappers which keep weights in shares gather them."""
        every: Tensor = self.vector(torch.arange(self.vector.num_embeddings, device=self.vector.weight.device))
        return every

    def forward(self, history: History) -> UserStates:
        """States `(B, L, D)`. RecipeError where it is not said who the users are."""
        if history.user_BD is None and history.user_index_B is None:
            raise RecipeError(
                "user_encoder: user_table knows users by id, and serves the users of its domain alone; rank these, or "
                "choose an encoder that reads histories"
            )
        vectors_BD = self.vector(history.user_index_B) if history.user_BD is None else history.user_BD
        return UserStates(vectors_BD[:, None].expand(-1, history.is_valid_BL.shape[1], -1), history.is_valid_BL)
