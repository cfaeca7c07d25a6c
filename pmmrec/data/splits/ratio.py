"""Ratio split: shares of each user's interactions are held out, at random or in the order of time."""
# B users of one stretch, H items of their sequences.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import HoldoutName, Split, SplitPart, splits
from pmmrec.settings import PartConfig

MIN_HELD_OUT = 3  # a user with fewer interactions could not have one of each part

MAX_SHARE = 1_000_000


class RatioConfig(PartConfig):
    """Settings of the ratio split."""

    type: Literal["ratio"] = "ratio"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"by": "time", "shares": (6, 2, 2)},
        {"test_history": "train", "seed": 3},
    )
    shares: tuple[int, int, int] = Field(
        (8, 1, 1), description="Train, validation and test of each user; users with three items have one of each."
    )
    by: Literal["random", "time"] = Field("random", description="time: the oldest train, the latest are for the test.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the random choice; another seed is another split.")
    test_history: Literal["all", "train"] = Field(
        "all",
        description="What a test query knows: items of training and validation (all), or of training alone (train). "
        "Known items are what `seen: exclude` leaves out: with train, validation items stay candidates.",
    )

    @field_validator("shares", mode="before")
    @classmethod
    def _are_three_whole_numbers(cls, shares: Any) -> Any:
        are_shares = isinstance(shares, Sequence) and len(shares) == len(SplitPart) and not isinstance(shares, str)
        if are_shares and all(type(share) is int and 1 <= share <= MAX_SHARE for share in shares):
            return shares
        raise ValueError(
            f"{shares!r}: give three whole numbers from 1 to {MAX_SHARE:,}, of training, validation and test, such as "
            "[8, 1, 1]; only how they compare counts"
        )

    @model_validator(mode="after")
    def _seed_has_an_effect(self) -> Self:
        if self.by == "time" and self.seed:
            raise ValueError("seed: has no effect with by: time; leave one of them out")
        return self


@splits.register("ratio", RatioConfig)
class Ratio(Split):
    """Hold out shares of each user's interactions, 8:1:1 unless told otherwise.

    Of n interactions floor(n x (validation + test) / all shares) are held out, but two at least; of these validation
    has its share, rounded down but one at least, and the test has the rest. With 8:1:1 a user with fewer than ten
    interactions has one of each, and an odd one goes to the test. Users with fewer than three are in training whole.

    `by: random` draws them from (seed, user) alone, so a user's split does not depend on other users. `by: time` takes
    the oldest for training and the latest for the test. A query has all held-out items of its user as targets.

    Example:
        data: {split: {type: ratio, shares: [8, 1, 1], by: random, seed: 0}}
    """

    no_query = "no user has three interactions"
    config: RatioConfig

    def parts(self, stretch: Stretch) -> NDArray[np.uint8]:
        length_B = np.diff(stretch.offset_B)
        user_H = np.repeat(np.arange(len(length_B)), length_B)
        rank_H = np.arange(len(user_H)) - stretch.offset_B[user_H]
        if self.config.by == "random":
            order = np.lexsort((random_keys(self.config.seed, stretch.first + user_H, rank_H), user_H))
            rank_H = _inverse(order) - stretch.offset_B[user_H]
        train_B, validation_B = self._sizes(length_B)
        is_held_out_H = rank_H >= train_B[user_H]
        is_test_H = rank_H >= (train_B + validation_B)[user_H]
        return (is_held_out_H + is_test_H.astype(np.uint8)).astype(np.uint8)

    def knows(self, name: HoldoutName) -> tuple[SplitPart, ...]:
        """See `Split.knows`."""
        return (SplitPart.TRAIN,) if self.config.test_history == "train" else super().knows(name)

    def _sizes(self, length_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of training and of validation interactions of users with so many."""
        train, validation, test = self.config.shares
        held_out_B = np.maximum(2, length_B * (validation + test) // (train + validation + test))
        held_out_B = np.where(length_B >= MIN_HELD_OUT, held_out_B, 0)
        validation_B = np.maximum(1, held_out_B * validation // (validation + test))
        return length_B - held_out_B, np.where(held_out_B > 0, validation_B, 0)


def random_keys(seed: int, user_H: NDArray[np.int64], place_H: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A random number for each interaction, from (seed, user, place) alone: SplitMix64 over the three."""
    key_H = np.full(len(user_H), seed, dtype=np.uint64)
    for number_H in (user_H, place_H):
        key_H = _mixed(key_H ^ _mixed(number_H.astype(np.uint64)))
    return key_H


def _mixed(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014): a bijection whose outputs look random. Products wrap around."""
    number = number + np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = number ^ (number >> np.uint64(31))
    return mixed


def _inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place
