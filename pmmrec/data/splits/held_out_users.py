"""Held-out users: all users train but a sample, whose last items are for validation."""
# B users of one stretch, H items of their sequences, M users of the domain.

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pmmrec.data.randomness import Purpose, generator
from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import HISTORY_ONLY, Split, SplitPart
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig

MIN_HELD_OUT = 2  # a target and a history


class HeldOutUsersConfig(PartConfig):
    """Settings of `data.holdout`, such as `{users: 0.05, seed: 1}`."""

    type: Literal["held_out_users"] = "held_out_users"
    users: float = Field(0.05, gt=0, lt=1, description="Share of each source's users who do not train.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the draw; another seed holds out other users.")


class HeldOutUsers(Split):
    """Train on the whole sequences of all users but a sample; validate on the last item of each user of the sample.

    The earlier items of these users are histories and train nothing. There is no test target: a pretraining is tested
    on other platforms. Sources of a pretraining alone are split so (`data.holdout`), so it is no member of the family.

    Example:
        data: {holdout: {users: 0.05, seed: 0}}
    """

    no_query = "data.holdout trains on all users but those of validation"
    config: HeldOutUsersConfig

    @property
    def about_users(self) -> str:
        """See `Split.about_users`."""
        number, num_users = int(self._is_held_out_M.sum()), len(self._is_held_out_M)
        return (
            f"{self.domain.name}: {num_users - number:,} of {num_users:,} users train with their whole sequences "
            f"(data.holdout, seed {self.config.seed}); validation targets are the last items of the other {number:,}"
        )

    def parts(self, stretch: Stretch) -> NDArray[np.uint8]:
        length_B = np.diff(stretch.offset_B)
        is_held_out_B = self._is_held_out_M[stretch.first : stretch.first + len(length_B)]
        part_H = np.where(np.repeat(is_held_out_B, length_B), HISTORY_ONLY, SplitPart.TRAIN).astype(np.uint8)
        part_H[stretch.offset_B[1:][is_held_out_B] - 1] = SplitPart.VALIDATION
        return part_H

    @cached_property
    def _is_held_out_M(self) -> NDArray[np.bool_]:
        """Drawn from the users with two interactions or more, one at least. DataError where there are too few."""
        length_M = np.concatenate([lengths for _, lengths in self.domain.sequences.all_lengths()])
        users = np.flatnonzero(length_M >= MIN_HELD_OUT)
        if len(users) < 2:
            raise DataError(
                f"{self.domain.folder}: data.holdout needs a user to learn from and another to validate on, each with "
                f"two interactions, and {len(users)} has so many; leave the domain out"
            )
        number = min(max(1, round(self.config.users * len(users))), len(users) - 1)
        drawn = generator(self.config.seed, Purpose.HELD_OUT_USERS).permutation(len(users))[:number]
        is_held_out_M = np.zeros(len(length_M), dtype=bool)
        is_held_out_M[users[drawn]] = True
        return is_held_out_M
