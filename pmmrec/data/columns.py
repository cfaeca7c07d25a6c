"""Read a further column of a domain's items: as texts, or as values of an attribute."""
# N items of the domain, R of them that are read.

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmmrec.data.wording import cleaned


class ItemColumn:
    """A column that was imported beside `item_id` and `text`, such as a description or a brand.

    Blank cells count as missing. Values are compared after they were cleaned as texts are.
    """

    def __init__(self, cells: pa.ChunkedArray) -> None:
        self._cells = cells

    @cached_property
    def has_N(self) -> NDArray[np.bool_]:
        """Which items have a value, `(N,)`."""
        words = pc.utf8_trim_whitespace(self._cells.cast(pa.large_string()))
        is_there = pc.fill_null(pc.not_equal(words, ""), fill_value=False).combine_chunks()
        has_N: NDArray[np.bool_] = is_there.to_numpy(zero_copy_only=False)
        return has_N

    def texts(self, rows: NDArray[np.int64]) -> list[str | None]:
        """The clean text of each item in `rows`, None where it has none."""
        words = self._cells.take(pa.array(rows)).cast(pa.large_string()).to_pylist()
        return [_clean(one) if has else None for one, has in zip(words, self.has_N[rows].tolist(), strict=True)]

    @cached_property
    def key_N(self) -> NDArray[np.int64]:
        """A number for the value of each item, the same in every domain, `(N,)`; 0 where it has none."""
        coded = pc.dictionary_encode(self._cells.cast(pa.large_string())).combine_chunks()
        words = coded.dictionary.to_pylist()
        keys = np.array([_key(_clean(one)) for one in words], dtype=np.int64).reshape(-1)
        place_N = pc.fill_null(coded.indices, 0).to_numpy(zero_copy_only=False)
        return np.where(self.has_N, keys[place_N] if len(keys) else 0, 0)

    @property
    def counts(self) -> dict[int, int]:
        """How many items have each value, by its number in `key_N`."""
        keys, counts = np.unique(self.key_N[self.has_N], return_counts=True)
        return dict(zip(keys.tolist(), counts.tolist(), strict=True))


def _clean(text: str) -> str:
    return cleaned(text) or text


def _key(value: str) -> int:
    """Any number from 1 up to 2 ** 63 - 2."""
    digest = hashlib.sha256(value.encode()).digest()
    return int.from_bytes(digest[:8], "big") % (2**63 - 2) + 1
