"""The windows of a batch: which items users touched, and what is to be predicted of them."""
# B users, S window positions, L = S - 1 inputs, U distinct items of a batch, C candidates.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.requests import DrawnNegatives, WindowRequest


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
    noise_BL: Tensor | None = None  # int64, values of Noise; padding is UNCHANGED. None: no noise was added
    negative_index_BLC: Mapping[DrawnNegatives, Tensor] = field(default_factory=dict)  # int64, places in U
    candidates: Candidates | None = None  # what the state that ranks is to rank; None: nobody asked

    @property
    def is_last_target_BL(self) -> Tensor:
        """Which positions have a target and are the most recent of their window."""
        is_last_L = torch.arange(self.is_target_BL.shape[1], device=self.is_target_BL.device)
        return self.is_target_BL & (is_last_L == self.is_target_BL.shape[1] - 1)


@dataclass(frozen=True)
class Windows:
    """Left-padded windows of users over the items of the batch; the most recent item stands last."""

    item_index_BS: Tensor  # int64, places in U; 0 where padding
    is_valid_BS: Tensor  # bool
    passes: Mapping[WindowRequest, WindowPass] = field(default_factory=dict)  # what objectives asked for
    user_index_B: Tensor | None = None  # int64, among the users of all domains of the run; None: nobody asked
    last_alone_counts: bool = False  # only the last item of a window counts as a target, as in validation

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
    def candidates(self) -> Candidates | None:
        return next((one.candidates for one in self.passes.values() if one.candidates is not None), None)

    @property
    def next_items(self) -> WindowPass:
        """The pass over the windows as they are: every item but the last, each followed by its target."""
        index_BS = self.item_index_BS
        return WindowPass(index_BS[:, :-1], self.is_valid_BS[:, :-1], index_BS[:, 1:], self.has_next_BL)
