"""Items of the catalogue as examples, without users."""
# N items of the domain, H of them held out.

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pmmrec.data.examples import NOBODY, ExampleKind, Examples, example_kinds
from pmmrec.data.randomness import Purpose, generator
from pmmrec.data.splits import Split
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig


class ItemKindConfig(PartConfig):
    """Settings of items as examples."""

    type: Literal["items"] = "items"
    held_out: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of the items that train nothing, always the same ones: validation.judge: loss reads them.",
    )


@example_kinds.register("items", ItemKindConfig)
class ItemKind(ExampleKind):
    """An example is an item of the domain's catalogue; there is no user, and no interaction is read.

    For stages that tune an item encoder on what items hold, such as text beside image (`item_contrast`). Parts of the
    model that read users do not learn from it.

    Example:
        data: {examples: {type: items, held_out: 0.05}}
    """

    holds = frozenset()
    unit = "items"
    config: ItemKindConfig

    @property
    def longest(self) -> int:
        return 1

    def training(self, split: Split) -> Examples:
        rows = np.flatnonzero(~self._is_held_out(split))
        if not len(rows):
            raise DataError(
                f"{split.domain.folder}: data.examples.held_out: {self.config.held_out:g} holds all of "
                f"{split.domain.num_items:,} items out and leaves none to train on; lower it"
            )
        return CatalogueItems(split, rows)

    def validation(self, split: Split, num_users: int | None) -> Examples:
        rows = np.flatnonzero(self._is_held_out(split))[:num_users]
        if not len(rows):
            raise DataError(
                f"{split.domain.folder}: validation.judge: loss has no item to read: data.examples.held_out: "
                f"{self.config.held_out:g} holds none of {split.domain.num_items:,} items out; raise it"
            )
        return CatalogueItems(split, rows)

    def _is_held_out(self, split: Split) -> NDArray[np.bool_]:
        """`(N,)`; the draw depends on nothing but the number of items and the share."""
        num_items = split.domain.num_items
        order = generator(0, Purpose.HELD_OUT_ITEMS).permutation(num_items)
        is_held_out_N = np.zeros(num_items, dtype=bool)
        is_held_out_N[order[: round(self.config.held_out * num_items)]] = True
        return is_held_out_N


class CatalogueItems(Examples):
    """Some items of a domain, each an example."""

    def __init__(self, split: Split, rows: NDArray[np.int64]) -> None:
        self.split, self._rows = split, rows.astype(np.int32)

    @property
    def num_examples(self) -> int:
        return len(self._rows)

    def user(self, number: int) -> int:  # noqa: ARG002  # all are alike
        return NOBODY

    def items(self, number: int, generator: np.random.Generator) -> NDArray[np.int32]:  # noqa: ARG002  # nothing is random
        if not 0 <= number < self.num_examples:
            raise IndexError(f"item {number} of {self.num_examples}")
        return self._rows[number : number + 1]

    def length(self, number: int) -> int:  # noqa: ARG002  # all are alike
        return 1

    def expected_slots(self) -> NDArray[np.float64]:
        return np.bincount(self._rows, minlength=self.split.domain.num_items).astype(np.float64)
