"""Which items of a domain say the same to a model, and which say nothing?"""
# N items of a domain.

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pmmrec.contracts import Modality
from pmmrec.data.domain import Domain
from pmmrec.data.text import TokenTable
from pmmrec.errors import DataError

Ints = NDArray[np.int64]
IMAGES_AT_ONCE = 256
MAX_UNREADABLE = 0.05  # share of a domain's items


@dataclass(frozen=True)
class Contents:
    """What a model is told of each item of one domain."""

    same_as_N: Ints  # first row with the same content; of the item itself where no other is like it
    is_readable_N: NDArray[np.bool_]  # has something that the model reads; a model that knows ids reads every item

    @property
    def distinct(self) -> Ints:
        """The first row of each content that can be read."""
        is_first_N = self.same_as_N == np.arange(len(self.same_as_N))
        return np.flatnonzero(is_first_N & self.is_readable_N)


def contents_of(domain: Domain, modalities: frozenset[Modality], tokens: TokenTable | None) -> Contents:
    """Compare items by their token ids and stored image bytes, as far as a model reads them.

    `tokens` is given where texts are read. Only images of items whose texts are alike are read from disk: one pass.
    """
    rows = np.arange(domain.num_items)
    if not modalities:
        return Contents(rows, np.ones(domain.num_items, dtype=bool))
    same_as_N = np.zeros_like(rows)
    if tokens is not None:
        same_as_N = _first_alike(rows, map(tokens.content, rows.tolist()))
    if Modality.IMAGE in modalities:
        is_shared_N = np.bincount(same_as_N, minlength=len(rows))[same_as_N] > 1
        shared = np.flatnonzero(is_shared_N)
        keys = zip(same_as_N[shared].tolist(), _image_hashes(domain, shared), strict=True)
        same_as_N[shared] = _first_alike(shared, keys)
    return Contents(same_as_N, is_readable(domain, modalities))


def is_readable(domain: Domain, modalities: frozenset[Modality]) -> NDArray[np.bool_]:
    """Which items have something that the model reads, `(N,)`; no modalities: it knows ids."""
    if not modalities:
        return np.ones(domain.num_items, dtype=bool)
    has_something_N: NDArray[np.bool_] = np.any([domain.has[modality] for modality in sorted(modalities)], axis=0)
    return has_something_N


def check_readable(domain: Domain, modalities: frozenset[Modality], max_unreadable: float) -> str | None:
    """A warning that names the items with nothing that the model reads; None where there are none.

    Raises DataError where they are all items, or a larger share than `max_unreadable`.
    """
    bare = np.flatnonzero(~is_readable(domain, modalities))
    if not len(bare):
        return None
    wanted = " or ".join(modality.value for modality in sorted(modalities))
    first = ", ".join(repr(domain.item_ids[int(row)].as_py()) for row in bare[:5])
    found = (
        f"{domain.folder}: {len(bare):,} of {domain.num_items:,} items have no {wanted} for the model to read "
        f"({first}{', ...' if len(bare) > 5 else ''})"
    )
    if len(bare) == domain.num_items:
        raise DataError(f"{found}; give them one, or use a model that reads what they have")
    if len(bare) > max_unreadable * domain.num_items:
        raise DataError(
            f"{found}, more than the share of {max_unreadable:g} that may be so; import the domain without them, give "
            f"them one, raise data.max_unreadable (--max-unreadable), or use a model that reads what they have"
        )
    return (
        f"{found}; they count as zero vectors in histories and are never recommended, and whoever takes one next "
        f"counts as a miss"
    )


def _first_alike(rows: Ints, keys: Iterable[Hashable]) -> Ints:
    """The first of `rows` with the same key, for each of them."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(key, int(row)) for row, key in zip(rows, keys, strict=True)], dtype=np.int64)


def _image_hashes(domain: Domain, rows: Ints) -> Iterable[bytes | None]:
    for start in range(0, len(rows), IMAGES_AT_ONCE):
        for jpeg in domain.jpegs(rows[start : start + IMAGES_AT_ONCE]):
            yield None if jpeg is None else hashlib.sha256(jpeg).digest()
