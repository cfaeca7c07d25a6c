"""User encoders: hidden states out of the order in which a user touched items."""
# Shapes: B users, L positions, D width.

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.adapters import Host
from pmmrec.contracts import History, Query, UserStates
from pmmrec.family import Family
from pmmrec.packing import HostArray

Attends = Literal["past", "all", "others"]


class UserEncoder(nn.Module, ABC):
    """Reads histories. Built as `part_class(config, context)`.

    Attributes:
        max_inputs: The longest history it can read. Unless `attends == "past"` it reads one position more, the mask
            that stands for the item to come.
        attends: past: a state depends on the items up to its position alone. all: on the whole history; such an encoder
            learns from masked items, and its input at masked positions is a vector of its own. others: on the items at
            all other positions but masked ones; such an encoder knows no order, and learns each item from the rest.
        mask_text: The text whose vector stands for a hidden item. In training it comes as `history.mask_D`; for ranking
            the encoder keeps it in a buffer `mask`. None: it has a vector of its own for hidden items, or none.
        reads_users: Whether it reads `history.user_index_B`.
        reads_history: Whether it reads what users did; else it can learn from interactions without a history.
        streams: Names of the streams of items that it reads beside their vectors, as wide as these.
    """

    max_inputs: int
    attends: Attends = "past"
    mask_text: str | None = None
    reads_users: bool = False
    reads_history: bool = True
    streams: frozenset[str] = frozenset()

    @property
    def host(self) -> Host | None:
        """The blocks that may carry adapters; None where there are none."""
        return None

    def vectors(self) -> Tensor | None:
        """Vectors of all users known by id, `(M, D)`, for a graph to propagate; None where users have no vectors."""
        return None

    @abstractmethod
    def forward(self, history: History) -> UserStates:
        """States `(B, L, D)` at every position. More padding on the left changes no state of a valid position.

        With `history.last_alone` nobody reads other states than those of the last position: an encoder that saves work
        by it gives these alone, `(B, 1, D)`, and any other may leave it unread.
        It must run on meta tensors: nothing in it may depend on the numbers in a tensor.
        """

    def query(self, history: History) -> Query:
        """The one state of each user that ranks: of the last item, or of a mask behind it unless `attends` is past.

        The states before it are there as well, unless `history.last_alone` says that nobody reads them.
        """
        if self.attends != "past":
            history = _followed_by_mask(history)
        states: UserStates = self(history)
        return Query.last(states)


def _followed_by_mask(history: History) -> History:
    """With one more position, which is valid and masked."""
    is_masked_BL = history.is_masked_BL
    if is_masked_BL is None:
        is_masked_BL = torch.zeros_like(history.is_valid_BL)
    return dataclasses.replace(
        history,
        item_BLD=F.pad(history.item_BLD, (0, 0, 0, 1)),
        is_valid_BL=F.pad(history.is_valid_BL, (0, 1), value=True),
        streams_BLD={name: F.pad(stream_BLD, (0, 0, 0, 1)) for name, stream_BLD in history.streams_BLD.items()},
        is_masked_BL=F.pad(is_masked_BL, (0, 1), value=True),
        length_B=None if history.length_B is None else HostArray(history.length_B.values + 1),
    )


user_encoders: Family[UserEncoder] = Family("user encoder", home=__name__, group="users")
