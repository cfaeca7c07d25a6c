"""The interactions that a validation loss is computed on."""
# B users of one stretch, H items of their sequences.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import Split, SplitPart


class ValidationWindows(Split):
    """Training and validation items of the users with validation targets, as the items that windows are cut from.

    Windows that end with the latest item (`data.window.policy: latest`) hold the validation items of leave-one-out and
    of splits by time at their end.
    """

    def __init__(self, split: Split, num_users: int | None = None) -> None:
        """`num_users`: so many users, always the same ones; None: all."""
        self.reads_times = split.reads_times
        super().__init__(split.config, split.domain)
        self._split, self._users = split, split.holdout("validation", num_users).user_index

    def parts(self, stretch: Stretch) -> NDArray[np.uint8]:
        lengths_B = np.diff(stretch.offset_B)
        is_asked_B = np.isin(stretch.first + np.arange(len(lengths_B)), self._users)
        is_read_H = np.repeat(is_asked_B, lengths_B) & (self._split.parts(stretch) < SplitPart.TEST)
        return np.where(is_read_H, SplitPart.TRAIN, SplitPart.TEST).astype(np.uint8)
