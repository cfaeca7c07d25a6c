"""Impressions as examples: items that a user was shown at once, some of them clicked, and what the user did before."""
# M impressions, N items of the domain.

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pmmrec.data.examples import ExampleKind, Examples, Impression, example_kinds
from pmmrec.data.splits import Split, SplitPart
from pmmrec.data.splits.impressions import Impressions
from pmmrec.errors import DataError, RecipeError
from pmmrec.requests import Holding
from pmmrec.settings import PartConfig


class ImpressionKindConfig(PartConfig):
    """Settings of impressions as examples."""

    type: Literal["impressions"] = "impressions"
    history: int = Field(20, ge=1, description="The latest items before an impression: so many are read at most.")


@example_kinds.register("impressions", ImpressionKindConfig)
class ImpressionKind(ExampleKind):
    """An example is an impression: a user, the history before it, the items that were shown, and which were clicked.

    The impressions are those of `data.split: impressions`; those stored with `split: train` train, and those of
    validation give the validation loss. For news recommendation (MIND, `impression_ce`).

    Example:
        data: {split: {type: impressions, name: shown}, examples: {type: impressions, history: 50}}
    """

    holds = frozenset({Holding.USER, Holding.HISTORY, Holding.TARGET, Holding.CANDIDATES})
    of_history = frozenset({"history"})
    unit = "impressions"
    config: ImpressionKindConfig

    @property
    def longest(self) -> int:
        return self.config.history

    def training(self, split: Split) -> Examples:
        return ImpressionIndex(self._impressions(split), SplitPart.TRAIN, self.config.history)

    def validation(self, split: Split, num_users: int | None) -> Examples:
        return ImpressionIndex(self._impressions(split), SplitPart.VALIDATION, self.config.history, num_users)

    def _impressions(self, split: Split) -> Impressions:
        if not isinstance(split, Impressions):
            raise RecipeError(
                f"data.examples: impressions are those of data.split: impressions, and data.split is "
                f"{split.config.type}; set data.split={{type: impressions, name: NAME}}, or choose other examples"
            )
        return split


class ImpressionIndex(Examples):
    """The impressions of one part of a domain, user by user."""

    def __init__(self, split: Impressions, part: SplitPart, history: int, num_users: int | None = None) -> None:
        """`history`: items of it that are read, at most. `num_users`: so many, always the same ones; None: all.

        Raises DataError where there is no impression of the part.
        """
        self.split, self._history, self._lists = split, history, split.lists(part, num_users)
        if not len(self._lists.user_M):
            word = part.name.lower()
            raise DataError(
                f"{split.path}: holds no impression of {word}; store some whose split is {word} (data impressions)"
            )

    @property
    def num_examples(self) -> int:
        return len(self._lists.user_M)

    @property
    def most_candidates(self) -> int:
        return int(np.diff(self._lists.offsets).max())

    def user(self, number: int) -> int:
        return int(self._lists.user_M[self._checked(number)])

    def items(self, number: int, generator: np.random.Generator) -> NDArray[np.int32]:  # noqa: ARG002  # nothing is random
        known = int(self._lists.known_M[self._checked(number)])
        return self.split.domain.sequence(self.user(number))[max(0, known - self._history) : known]

    def length(self, number: int) -> int:
        return min(int(self._lists.known_M[self._checked(number)]), self._history)

    def impression(self, number: int) -> Impression:
        own = slice(*self._lists.offsets[self._checked(number) : number + 2])
        return Impression(self._lists.item_C[own], self._lists.is_clicked_C[own])

    def expected_slots(self) -> NDArray[np.float64]:
        """How often each item stands in the histories that are read, `(N,)`."""
        domain, ends = self.split.domain, self._lists.known_M
        first_M = domain.sequence_offsets[self._lists.user_M]
        steps = np.zeros(len(domain.sequence_items) + 1)  # +1 where a history begins, -1 where it ends
        np.add.at(steps, first_M + np.maximum(0, ends - self._history), 1)
        np.add.at(steps, first_M + ends, -1)
        weights = np.cumsum(steps)[:-1]
        return np.bincount(domain.sequence_items, weights, domain.num_items).astype(np.float64)

    def touched(self, user: int) -> NDArray[np.int32]:
        """What the user did in training, what the user's impressions know, and all that was clicked in them."""
        first, end = np.searchsorted(self._lists.user_M, [user, user + 1]).tolist()
        clicked = [one.item_C[one.is_clicked_C] for one in map(self.impression, range(first, end))]
        known = int(self._lists.known_M[first:end].max(initial=0))
        return np.concatenate([self.split.train(user), self.split.domain.sequence(user)[:known], *clicked])

    def users_who_touched(self, num_items: int) -> Iterator[int]:
        for user in np.unique(self._lists.user_M).tolist():
            if len(self.touched(user)) >= num_items:
                yield user

    def _checked(self, number: int) -> int:
        if not 0 <= number < self.num_examples:
            raise IndexError(f"impression {number} of {self.num_examples}")
        return number
