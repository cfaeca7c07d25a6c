"""Leave-one-out: the last item of each user is for the test, the one before it for validation."""
# B users of one stretch, H items of their sequences.

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.domain import Domain
from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import HoldoutName, Split, SplitPart, splits
from pmmrec.settings import PartConfig

MIN_HELD_OUT = 3  # with fewer items nothing would be left to learn from once two are held out


class LeaveOneOutConfig(PartConfig):
    """Leave-one-out has no settings."""

    type: Literal["leave_one_out"] = "leave_one_out"


@splits.register("leave_one_out", LeaveOneOutConfig)
class LeaveOneOut(Split):
    """Hold out the last item of each user for the test and the last but one for validation; train on the rest.

    The protocol of SASRec, PMMRec and most systems here. The history of a test query holds the validation item too,
    which lies before the target. Users with fewer than three items are in training whole and in no holdout.

    Example:
        data: {split: {type: leave_one_out}}
    """

    no_query = "no user has three interactions"

    def parts(self, stretch: Stretch) -> NDArray[np.uint8]:
        part_H = np.full(len(stretch.item_H), SplitPart.TRAIN, dtype=np.uint8)
        end_B = stretch.offset_B[1:][np.diff(stretch.offset_B) >= MIN_HELD_OUT]
        part_H[end_B - 2], part_H[end_B - 1] = SplitPart.VALIDATION, SplitPart.TEST
        return part_H

    def train(self, user: int) -> NDArray[np.int32]:
        """See `Split.train`; reads no more than the items of the user."""
        items = self.domain.sequence(user)
        if self.users is not None and not self.users.is_in_M[user]:
            return items[:0]
        return items if len(items) < MIN_HELD_OUT else items[:-2]

    def train_length(self, user: int) -> int:
        """See `Split.train_length`; reads no items."""
        return int(self._trained(user, self.domain.sequences.lengths(user, user + 1))[0])

    def train_lengths(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """See `Split.train_lengths`; reads no items."""
        for first, lengths in self.domain.sequences.all_lengths():
            yield first, self._trained(first, lengths)

    def query_users(self, name: HoldoutName) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `Split.query_users`; reads no items."""
        del name  # both holdouts have the same users
        kind = np.min_scalar_type(self.domain.num_users)
        lengths = self.domain.sequences.all_lengths()
        users = np.concatenate([(first + np.flatnonzero(n_B >= MIN_HELD_OUT)).astype(kind) for first, n_B in lengths])
        if self.users is not None:
            users = users[self.users.is_ranked_M[users]]
        return users.astype(np.int64), np.empty(0, dtype=np.int64)

    def _trained(self, first: int, length_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of training items of users from `first` on, whose sequences have these lengths."""
        trained_B = np.where(length_B >= MIN_HELD_OUT, length_B - 2, length_B)
        return trained_B if self.users is None else trained_B * self.users.is_in_M[first : first + len(length_B)]


def leave_one_out(domain: Domain) -> LeaveOneOut:
    """The leave-one-out split of a domain."""
    return LeaveOneOut(LeaveOneOutConfig(), domain)
