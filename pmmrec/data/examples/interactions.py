"""Single interactions as examples: a user and an item, without a history."""
# N items of the domain.

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.examples import ExampleKind, Examples, example_kinds
from pmmrec.data.splits import Split
from pmmrec.data.validation_examples import ValidationExamples
from pmmrec.requests import Holding
from pmmrec.settings import PartConfig


class InteractionKindConfig(PartConfig):
    """Settings of interactions as examples; there are none."""

    type: Literal["interactions"] = "interactions"


@example_kinds.register("interactions", InteractionKindConfig)
class InteractionKind(ExampleKind):
    """Every training interaction is an example: a user, and the item that the user touched.

    For systems that know users by id (DSSM, matrix factorisation). No history is read.

    Example:
        data: {examples: interactions}
    """

    holds = frozenset({Holding.USER, Holding.TARGET})

    @property
    def longest(self) -> int:
        return 1

    def training(self, split: Split) -> Examples:
        return Interactions(split)

    def validation(self, split: Split, num_users: int | None) -> Examples:
        return ValidationExamples(split, 0, num_users)


class Interactions(Examples):
    """The training interactions of one domain, numbered user by user; all of them are in memory."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self._offsets, self._items = split.train_offsets, split.train_items

    @property
    def num_examples(self) -> int:
        return int(self._offsets[-1])

    @property
    def warning(self) -> str | None:
        """Names users and items without a training interaction."""
        domain, named = self.split.domain, []
        users, items = np.flatnonzero(np.diff(self._offsets) == 0), np.flatnonzero(self.split.train_counts == 0)
        if len(users):
            first = domain.sequences.user_id(int(users[0]))
            named.append(f"{len(users):,} of {domain.num_users:,} users, such as {first!r}")
        if len(items):
            first = domain.item_ids[int(items[0])].as_py()
            named.append(f"{len(items):,} of {domain.num_items:,} items, such as {first!r}")
        if not named:
            return None
        return (
            f"{domain.name}: {' and '.join(named)}, have no training interaction; their ids learn nothing, and they "
            "are ranked by what else the model reads of them"
        )

    def user(self, number: int) -> int:
        if not 0 <= number < self.num_examples:
            raise IndexError(f"interaction {number} of {self.num_examples}")
        return int(np.searchsorted(self._offsets, number, side="right")) - 1

    def items(self, number: int, generator: np.random.Generator) -> NDArray[np.int32]:  # noqa: ARG002  # nothing is random
        if not 0 <= number < self.num_examples:
            raise IndexError(f"interaction {number} of {self.num_examples}")
        return self._items[number : number + 1]

    def touched(self, user: int) -> NDArray[np.int32]:
        return self._items[self._offsets[user] : self._offsets[user + 1]]

    def length(self, number: int) -> int:  # noqa: ARG002  # all are alike
        return 1

    def expected_slots(self) -> NDArray[np.float64]:
        return self.split.train_counts.astype(np.float64)
