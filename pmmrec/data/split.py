"""Which interactions are for training, which for validation, which for the test (leave-one-out)?"""
# Q queries: the users with a held-out item. N items of the domain.

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.domain import Domain

HoldoutName = Literal["validation", "test"]

MIN_HELD_OUT = 3  # with fewer items nothing would be left to learn from once two are held out


@dataclass(frozen=True)
class Holdout:
    """One item held out for each user that has enough, and what that user did before it."""

    name: HoldoutName
    user_index: NDArray[np.int64]  # (Q,) users of the domain
    target: NDArray[np.int64]  # (Q,) item rows
    history_offsets: NDArray[np.int64]  # (Q + 1,)
    history_items: NDArray[np.int32]  # item rows, flat and chronological; never empty for a query

    @property
    def num_queries(self) -> int:
        return len(self.user_index)

    def history(self, query: int) -> NDArray[np.int32]:
        """Item rows before the target, oldest first."""
        return self.history_items[self.history_offsets[query] : self.history_offsets[query + 1]]


class Split:
    """Leave-one-out: train = all but the last two; validation asks for the last but one, test for the last.

    The history of a test query holds the validation item too: it lies before the target. Users with fewer than three
    items are in train whole and in no holdout. Whatever is counted or learned looks at train only.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        lengths = np.diff(domain.sequence_offsets)
        self._is_long = lengths >= MIN_HELD_OUT
        train_lengths = np.where(self._is_long, lengths - 2, lengths)
        self.train_offsets: NDArray[np.int64] = _offsets(train_lengths)
        self.train_items: NDArray[np.int32] = self._without(last=2)

    def train(self, user: int) -> NDArray[np.int32]:
        """Item rows that this user may be trained on, oldest first."""
        return self.train_items[self.train_offsets[user] : self.train_offsets[user + 1]]

    @cached_property
    def train_counts(self) -> NDArray[np.int64]:
        """Interactions of each item in train, `(N,)`."""
        return np.bincount(self.train_items, minlength=self.domain.num_items).astype(np.int64, copy=False)

    def holdout(self, name: HoldoutName) -> Holdout:
        """The queries of validation or of the test."""
        num_hidden = {"validation": 2, "test": 1}[name]  # items from the target on
        user_index = np.flatnonzero(self._is_long).astype(np.int64, copy=False)
        ends = self.domain.sequence_offsets[1:][user_index]
        lengths = ends - self.domain.sequence_offsets[:-1][user_index] - num_hidden
        target = self.domain.sequence_items[ends - num_hidden].astype(np.int64)
        history_items = self._without(last=num_hidden, only_long=True)
        return Holdout(name, user_index, target, _offsets(lengths), history_items)

    def _without(self, last: int, *, only_long: bool = False) -> NDArray[np.int32]:
        """All items, flat, less the `last` ones of every long user; `only_long`: less the short users too."""
        offsets = self.domain.sequence_offsets
        is_kept = np.ones(len(self.domain.sequence_items), dtype=bool)
        ends = offsets[1:][self._is_long]
        for place in range(1, last + 1):
            is_kept[ends - place] = False
        if only_long:
            is_kept &= np.repeat(self._is_long, np.diff(offsets))
        kept: NDArray[np.int32] = np.asarray(self.domain.sequence_items)[is_kept]
        return kept


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
