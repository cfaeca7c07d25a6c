"""What one example of training is: a window of a user's history, or one interaction."""
# N items of the domain.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.splits import Split

ExampleKind = Literal["windows", "interactions"]


class Examples(ABC):
    """The examples of one domain, numbered from 0: of its training part, or of validation.

    Attributes:
        split: What of the domain is for training.
        have_history: Whether an example holds the items before its target; else it is a user and a target alone.
        last_alone_counts: Whether only the last item of an example counts as a target, as in validation.
    """

    split: Split
    have_history: bool
    last_alone_counts: bool = False

    @property
    @abstractmethod
    def num_examples(self) -> int:
        """How many there are; an epoch with natural weights shows each once."""

    @abstractmethod
    def user(self, number: int) -> int:
        """The user that an example belongs to."""

    @abstractmethod
    def items(self, number: int, generator: np.random.Generator) -> NDArray[np.int32]:
        """Item rows of an example, oldest first. `generator` decides what is random about it."""

    @abstractmethod
    def length(self, number: int) -> int:
        """How many items an example has."""

    @abstractmethod
    def expected_slots(self) -> NDArray[np.float64]:
        """In how many slots each item is expected when every example is shown once, `(N,)`."""

    def touched(self, user: int) -> NDArray[np.int32]:
        """Item rows that may not be drawn as negatives of a user."""
        return self.split.train(user)

    def users_who_touched(self, num_items: int) -> Iterator[int]:
        """Users of the examples who touched so many items or more, each time counted."""
        least = max(num_items, 1 + self.have_history)
        for first, lengths in self.split.train_lengths():
            yield from (first + np.flatnonzero(lengths >= least)).tolist()


class Interactions(Examples):
    """Every training interaction is an example: a user, and the item that the user touched."""

    have_history = False

    def __init__(self, split: Split) -> None:
        self.split = split
        self._offsets = split.train_offsets

    @property
    def num_examples(self) -> int:
        return int(self._offsets[-1])

    def user(self, number: int) -> int:
        if not 0 <= number < self.num_examples:
            raise IndexError(f"interaction {number} of {self.num_examples}")
        return int(np.searchsorted(self._offsets, number, side="right")) - 1

    def items(self, number: int, generator: np.random.Generator) -> NDArray[np.int32]:  # noqa: ARG002  # nothing is random
        user = self.user(number)
        place = number - int(self._offsets[user])
        return self.split.train(user)[place : place + 1]

    def length(self, number: int) -> int:  # noqa: ARG002  # all are alike
        return 1

    def expected_slots(self) -> NDArray[np.float64]:
        return self.split.train_counts.astype(np.float64)
