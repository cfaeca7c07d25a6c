"""Make a smaller domain: some of the users and some of the items of another."""
# N items of the domain, M users. B users of one stretch, H items of their sequences.

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pmmrec.data.derived.parts import Described, Part, write_parts
from pmmrec.data.domain import Domain
from pmmrec.data.info import NAME_PATTERN
from pmmrec.data.sequences import Stretch
from pmmrec.errors import RecipeError
from pmmrec.settings import Config, Place


class SampleConfig(Config):
    """Settings of a sample."""

    domain: Place = Field(description="Folder of the domain.")
    out: Place = Field(description="Folder of the new domain; must not exist.")
    name: str = Field(pattern=NAME_PATTERN, description="What reports call the new domain.")
    users: int | None = Field(None, ge=1, description="How many users are drawn; None: all.")
    items: int | Literal["used", "all"] = Field(
        "used",
        description="used: the items that these users touched; all: the whole catalogue; a number: so many items are "
        "drawn first, and users among those who touched one.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Of both draws; a smaller sample of a seed is part of a larger.")

    @model_validator(mode="after")
    def _leaves_something_out(self) -> Self:
        if isinstance(self.items, int) and self.items < 1:
            raise ValueError("items: a number of items is 1 or more")
        if self.users is None and not isinstance(self.items, int):
            raise ValueError("users and items: nothing would be left out; give a number of users, of items, or both")
        return self


def sample_domain(config: SampleConfig) -> Domain:
    """Write a sample of a domain as a new one. Users and items keep their order, sequences and ids.

    Those with the lowest hashes of (seed, id) are drawn, so who else is there changes no choice between two.
    Raises RecipeError for more users or items than there are.
    """
    domain = Domain.open(config.domain)
    is_item_N = np.ones(domain.num_items, dtype=bool)
    if isinstance(config.items, int):
        is_item_N = _drawn(_ids(domain.item_ids), is_item_N, config.items, config.seed, "items")
    length_M = np.concatenate([_lengths(stretch, is_item_N) for stretch in domain.sequences.stretches()])
    is_user_M = length_M > 0
    if config.users is not None:
        is_user_M = _drawn(_ids(domain.user_ids), is_user_M, config.users, config.seed, "users")
    if not is_user_M.any():
        raise RecipeError(f"items {config.items}: no user of {domain.name} touched one of them; draw more")
    if config.items == "used":
        is_item_N = _touched(domain, is_user_M)
    drawn = [f"{config.users:,} users"] if config.users is not None else []
    drawn += [f"{config.items:,} items"] if isinstance(config.items, int) else []
    left_out = f"outside the sample of {' and '.join(drawn)} (seed {config.seed})"
    core = {"k_core": None, "min_user": None, "min_item": None}  # which a sample need not have
    draw = {} if config.users is None else {"sample_users": config.users, "seed": config.seed}
    filters = domain.info.filters.model_copy(update={**core, **draw})
    described = Described(config.name, filters, domain.info.time_unit, left_out)
    return write_parts([Part(domain, is_item_N, is_user_M)], config.out, described)


def _ids(column: pa.ChunkedArray) -> Iterator[str]:
    return (one for chunk in column.chunks for one in chunk.to_pylist())


def _drawn(ids: Iterator[str], may_be_drawn: NDArray[np.bool_], count: int, seed: int, what: str) -> NDArray[np.bool_]:
    """Which are drawn: `count` of those that may be. RecipeError where there are fewer."""
    num_left = int(may_be_drawn.sum())
    if num_left < count:
        raise RecipeError(f"--{what} {count:,}: only {num_left:,} {what} are left; choose fewer")
    keys = ((hashlib.sha256(f"{seed}/{one}".encode()).digest(), place) for place, one in enumerate(ids))
    chosen = sorted(key for key in keys if may_be_drawn[key[1]])[:count]
    is_drawn = np.zeros_like(may_be_drawn)
    is_drawn[[place for _, place in chosen]] = True
    return is_drawn


def _lengths(stretch: Stretch, is_item_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many interactions each user of a stretch has with these items, `(B,)`."""
    kept_H = np.concatenate([[0], np.cumsum(is_item_N[stretch.item_H])])
    return np.diff(kept_H[stretch.offset_B])


def _touched(domain: Domain, is_user_M: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The items that these users touched, `(N,)`."""
    is_item_N = np.zeros(domain.num_items, dtype=bool)
    for stretch in domain.sequences.stretches():
        length_B = np.diff(stretch.offset_B)
        is_user_B = is_user_M[stretch.first : stretch.first + len(length_B)]
        is_item_N[stretch.item_H[np.repeat(is_user_B, length_B)]] = True
    return is_item_N
