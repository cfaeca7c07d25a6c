"""The windows of a batch: which items users touched, and what is to be predicted of them."""
# B users, S window positions, L = S - 1 inputs, U distinct items of a batch, C candidates.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.packing import HostArray
from pmmrec.requests import DrawnNegatives, WindowRequest


@dataclass(frozen=True)
class Places:
    """K positions of windows, user by user."""

    user_K: Tensor  # int64
    position_K: Tensor  # int64

    @classmethod
    def where(cls, is_chosen_BL: Tensor) -> Places:
        """The positions at which a mask is true. The host waits for a mask that is on a GPU."""
        return cls(*is_chosen_BL.nonzero(as_tuple=True))

    @classmethod
    def last(cls, x_BL: Tensor) -> Places:
        """The last position of every user, on the device of a tensor of their windows."""
        num_users, length = x_BL.shape[:2]
        user_K = torch.arange(num_users, device=x_BL.device)
        return cls(user_K, torch.full_like(user_K, length - 1))

    def of(self, x_BL: Tensor) -> Tensor:
        """`(B, L, ...)` -> `(K, ...)`: what stands at these positions."""
        return x_BL[self.user_K, self.position_K]


@dataclass(frozen=True)
class ItemPlaces(Places):
    """Positions of windows that hold an item, and the items there, each once."""

    item_A: Tensor  # int64, places in U, rising
    which_K: Tensor  # int64, where `item_A` holds the item of each position

    @classmethod
    def holding(cls, item_index_BL: Tensor, is_chosen_BL: Tensor) -> ItemPlaces:
        """The positions at which a mask is true. The host waits for tensors that are on a GPU."""
        places = Places.where(is_chosen_BL)
        return cls(places.user_K, places.position_K, *torch.unique(places.of(item_index_BL), return_inverse=True))


@dataclass(frozen=True)
class Candidates:
    """The items that each user of a batch was shown, C at most."""

    item_index_BC: Tensor  # int64, places in U; 0 where there is none
    is_shown_BC: Tensor  # bool
    is_clicked_BC: Tensor  # bool, only where shown


@dataclass(frozen=True)
class WindowPass:
    """One pass of the user encoder over the windows of a batch: its inputs, and the items that it is to predict."""

    item_index_BL: Tensor  # int64, places in U of the inputs; 0 where padding
    is_valid_BL: Tensor  # bool, which inputs hold an item
    target_index_BL: Tensor  # int64, places in U; 0 where there is no target
    is_target_BL: Tensor  # bool, which positions have a target
    is_masked_BL: Tensor | None = None  # bool, inputs whose item is hidden from the user encoder; None: no input
    length_B: HostArray | None = None  # inputs of each user; None: as the mask says, which the host must read
    is_reworded_BL: Tensor | None = None  # bool, inputs that are read by a second text; None: no input
    noise_BL: Tensor | None = None  # int64, values of Noise; padding is UNCHANGED. None: no noise was added
    negative_index_BLC: Mapping[DrawnNegatives, Tensor] = field(default_factory=dict)  # int64, places in U
    candidates: Candidates | None = None  # what the state that ranks is to rank; None: nobody asked
    at_targets: Places | None = None  # positions with a target; None: not known beside the mask
    at_inputs: Places | None = None  # positions with an input; None: not known beside the mask

    @property
    def target_places(self) -> Places:
        """The positions with a target."""
        return Places.where(self.is_target_BL) if self.at_targets is None else self.at_targets

    @property
    def input_places(self) -> Places:
        """The positions with an input."""
        return Places.where(self.is_valid_BL) if self.at_inputs is None else self.at_inputs

    def placed(self) -> Self:
        """The same pass with its places, so that nobody has to read masks on a GPU."""
        return dataclasses.replace(self, at_targets=self.target_places, at_inputs=self.input_places)


@dataclass(frozen=True)
class Windows:
    """Left-padded windows of users over the items of the batch; the most recent item stands last."""

    item_index_BS: Tensor  # int64, places in U; 0 where padding
    is_valid_BS: Tensor  # bool
    passes: Mapping[WindowRequest, WindowPass] = field(default_factory=dict)  # what objectives asked for
    user_index_B: Tensor | None = None  # int64, among the users of all domains of the run; None: nobody asked
    length_B: HostArray | None = None  # items of each window; None: as the mask says, which the host must read
    last_alone_counts: bool = False  # only the last item of a window counts as a target, as in validation
    at_next: ItemPlaces | None = None  # inputs whose next item counts; None: not known beside the masks
    at_counted: ItemPlaces | None = None  # places whose item counts; None: not known beside the masks

    @property
    def is_counted_BS(self) -> Tensor:
        """Which places hold an item that counts as a target."""
        num_others = self.is_valid_BS.shape[1] - 1
        return F.pad(self.is_valid_BS[:, -1:], (num_others, 0)) if self.last_alone_counts else self.is_valid_BS

    @property
    def has_next_BL(self) -> Tensor:
        """Which inputs hold an item whose next item counts as a target: the positions of DAP and NICL."""
        return self.is_valid_BS[:, :-1] & self.is_counted_BS[:, 1:]

    @property
    def next_places(self) -> ItemPlaces:
        """The inputs whose next item counts as a target."""
        if self.at_next is not None:
            return self.at_next
        return ItemPlaces.holding(self.item_index_BS[:, :-1], self.has_next_BL)

    @property
    def counted_places(self) -> ItemPlaces:
        """The places whose item counts as a target."""
        return self.at_counted or ItemPlaces.holding(self.item_index_BS, self.is_counted_BS)

    def placed(self) -> Self:
        """The same windows with their places, so that nobody has to read masks on a GPU."""
        return dataclasses.replace(self, at_next=self.next_places, at_counted=self.counted_places)

    @property
    def candidates(self) -> Candidates | None:
        return next((one.candidates for one in self.passes.values() if one.candidates is not None), None)

    @property
    def next_items(self) -> WindowPass:
        """The pass over the windows as they are: every item but the last, each followed by its target."""
        index_BS = self.item_index_BS
        length_B = None if self.length_B is None else HostArray(np.maximum(self.length_B.values - 1, 0))
        inputs, targets = (index_BS[:, :-1], self.is_valid_BS[:, :-1]), (index_BS[:, 1:], self.has_next_BL)
        return WindowPass(*inputs, *targets, length_B=length_B)
