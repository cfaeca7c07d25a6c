"""Split interactions into training, validation and test (leave-one-out)."""
# Q queries: the users with a held-out item. N items of the domain. B users of one stretch, H items of their histories.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.domain import Domain
from pmmrec.data.randomness import Purpose, generator
from pmmrec.data.sequences import Stretch

HoldoutName = Literal["validation", "test"]

MIN_HELD_OUT = 3  # with fewer items nothing would be left to learn from once two are held out
NUM_HIDDEN = {"validation": 2, "test": 1}  # items from the target on


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

    One user is read at a time, or all of them in stretches; `train_offsets` and `train_items` hold all in memory.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def train(self, user: int) -> NDArray[np.int32]:
        """Item rows that this user may be trained on, oldest first."""
        items = self.domain.sequence(user)
        return items if len(items) < MIN_HELD_OUT else items[:-2]

    def train_length(self, user: int) -> int:
        """How many items this user may be trained on."""
        return int(_trained(self.domain.sequences.lengths(user, user + 1))[0])

    def train_lengths(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """`train_length` of all users in order, some at a time: the first of them, and their lengths."""
        for first, lengths in self.domain.sequences.all_lengths():
            yield first, _trained(lengths)

    def train_stretches(self) -> Iterator[Stretch]:
        """What all users may be trained on, in order."""
        for first, offset_B, item_H in self.domain.sequences.stretches():
            train_B = _trained(np.diff(offset_B))
            yield Stretch(first, _offsets(train_B), item_H[_is_before(offset_B, train_B)])

    @cached_property
    def train_offsets(self) -> NDArray[np.int64]:
        """Where the training items of each user begin and end in `train_items`, `(users + 1,)`."""
        return _offsets(np.concatenate([lengths for _, lengths in self.train_lengths()]))

    @cached_property
    def train_items(self) -> NDArray[np.int32]:
        """Training items of all users, one after another, all in memory."""
        return np.concatenate([stretch.item_H for stretch in self.train_stretches()])

    @cached_property
    def train_counts(self) -> NDArray[np.int64]:
        """Interactions of each item in train, `(N,)`."""
        counts = np.zeros(self.domain.num_items, dtype=np.int64)
        for stretch in self.train_stretches():
            counts += np.bincount(stretch.item_H, minlength=len(counts))
        return counts

    def holdout(self, name: HoldoutName, num_users: int | None = None) -> Holdout:
        """The queries of validation or of the test: all, or those of `num_users` users, always the same ones."""
        users, num_hidden = self._queries(num_users), NUM_HIDDEN[name]
        targets, lengths, histories = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for first, offset_B, item_H in self.domain.sequences.stretches():
            asked = users[slice(*np.searchsorted(users, [first, first + len(offset_B) - 1]))] - first
            before_B = np.zeros(len(offset_B) - 1, dtype=np.int64)
            before_B[asked] = np.diff(offset_B)[asked] - num_hidden
            targets.append(item_H[offset_B[asked] + before_B[asked]].astype(np.int64))
            lengths.append(before_B[asked])
            histories.append(item_H[_is_before(offset_B, before_B)])
        offsets = _offsets(np.concatenate(lengths))
        return Holdout(name, users, np.concatenate(targets), offsets, np.concatenate(histories))

    def _queries(self, num_users: int | None) -> NDArray[np.int64]:
        """Users with held-out items, rising; at most `num_users`, drawn by nothing but the number of them."""
        kind = np.min_scalar_type(self.domain.num_users)
        lengths = self.domain.sequences.all_lengths()
        users = np.concatenate([(first + np.flatnonzero(n_B >= MIN_HELD_OUT)).astype(kind) for first, n_B in lengths])
        if num_users is not None and num_users < len(users):
            drawn = generator(0, Purpose.RANKED_USERS).choice(len(users), num_users, replace=False, shuffle=False)
            users = users[np.sort(drawn)]
        return users.astype(np.int64)


def _trained(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """How much of histories of these lengths is in train."""
    return np.where(lengths >= MIN_HELD_OUT, lengths - 2, lengths)


def _is_before(offset_B: NDArray[np.int64], kept_B: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which items are among the first `kept_B` of their user, `(H,)`."""
    lengths = np.diff(offset_B)
    pattern = np.stack([np.ones_like(lengths, dtype=bool), np.zeros_like(lengths, dtype=bool)], axis=1)
    counts = np.stack([kept_B, lengths - kept_B], axis=1)
    return np.repeat(pattern.ravel(), counts.ravel())


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
