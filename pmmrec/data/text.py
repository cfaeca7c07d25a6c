"""Tokenise the texts of a domain once, keep the token ids in a cache, and read them by row."""
# N items of a domain, R rows read, K tokens of all of them.

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmmrec.contracts import Modality
from pmmrec.data.cache import ContentCache
from pmmrec.data.disk import SharedFile
from pmmrec.data.domain import Domain
from pmmrec.data.releases import made_by
from pmmrec.errors import DataError
from pmmrec.modality import Tokenizer
from pmmrec.progress import Progress

ITEMS_AT_ONCE = 4096
ROWS_AT_ONCE = 1 << 18  # of a pass over the tokens
TOKEN_BYTES = 4
VALUES, OFFSETS = "values.npy", "offsets.npy"


class TokenTable:
    """Token ids of every item of a domain. Items without a text have none.

    On disk: all tokens one after another (int32), and the offsets of the items (int64, N + 1). Tokens are read, not
    mapped: pages of a map that were touched would count as memory of each process.
    """

    def __init__(self, folder: Path) -> None:
        """The table in a folder of the cache; call `open` instead, which makes it where it is missing."""
        values = np.load(folder / VALUES, mmap_mode="r", allow_pickle=False)
        self._offsets: NDArray[np.int64] = np.load(folder / OFFSETS, mmap_mode="r", allow_pickle=False)
        self._file, self._begin = SharedFile(folder / VALUES), int(values.offset)
        self._folder = folder

    @classmethod
    def open(
        cls,
        domain: Domain,
        tokenizer: Tokenizer,
        cache: ContentCache,
        progress: Progress | None = None,
        field: str = Modality.TEXT.value,
    ) -> TokenTable:
        """The table of `domain` under `tokenizer`, made now if `cache` does not hold it.

        `field`: `text`, or a further column of the items.

        Raises DataError for a text without any token, MachineError where the cache cannot be written.
        """

        def make(folder: Path) -> None:
            values, offsets = _tokenise(domain, field, tokenizer, progress)
            np.save(folder / VALUES, values, allow_pickle=False)
            np.save(folder / OFFSETS, offsets, allow_pickle=False)

        inputs = {"domain": domain.fingerprint, "tokenizer": tokenizer.fingerprint, "releases": made_by("tokens")}
        if field != Modality.TEXT:
            inputs["field"] = field
        entry = cache.entry("tokens", "token ids", inputs)
        return entry.open(make, cls)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenTable, (self._folder,)  # a worker process opens the files again

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """Tokens of each item, `(N,)`; 0 without a text."""
        return np.diff(self._offsets)

    def num_tokens_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of these items, `(R,)`."""
        return self._offsets[rows + 1] - self._offsets[rows]

    def content(self, row: int) -> bytes:
        """The token ids of one item as bytes, equal where the ids are; empty without a text."""
        return self._tokens(row, row + 1).tobytes()

    def first_same(self) -> NDArray[np.int64]:
        """For each item the first item with the same token ids, `(N,)`; items without a text count as equal."""
        seed, first_N = 0, first_equal(self._keys(0))
        while not self._are_same(first_N):  # two texts share a hash by chance: draw other hashes
            seed += 1
            first_N = first_equal(self._keys(seed))
        return first_N

    def _keys(self, seed: int) -> NDArray[np.uint64]:
        """A hash for each item: equal where the token ids are equal, and hardly ever elsewhere."""
        longest = int(self.num_tokens.max(initial=0))
        draw = np.random.default_rng(seed)
        weights = draw.integers(1, 2**63, longest + 1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        keys = np.zeros(len(self._offsets) - 1, dtype=np.uint64)
        for start in range(0, len(keys), ROWS_AT_ONCE):
            offsets = self._offsets[start : start + ROWS_AT_ONCE + 1]
            lengths = np.diff(offsets)
            tokens = self._tokens(start, start + len(offsets) - 1).astype(np.uint64) + np.uint64(1)
            place = np.arange(len(tokens)) - np.repeat(offsets[:-1] - offsets[0], lengths)
            sums = np.concatenate([[np.uint64(0)], np.cumsum(tokens * weights[place])])  # wraps, and so do differences
            here = offsets - offsets[0]
            keys[start : start + ROWS_AT_ONCE] = sums[here[1:]] - sums[here[:-1]] + weights[lengths]
        return keys

    def _are_same(self, first_N: NDArray[np.int64]) -> bool:
        """Whether each item has the same token ids as the item that `first_N` names for it."""
        for start in range(0, len(first_N), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(first_N)))
            rows = rows[first_N[rows] != rows]
            own, other = (self._offsets[some + 1] - self._offsets[some] for some in (rows, first_N[rows]))
            if not np.array_equal(own, other):
                return False
            if self._tokens_of(rows) != self._tokens_of(first_N[rows]):
                return False
        return True

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids `(K,)` of these rows, one row after another."""
        return np.frombuffer(self._tokens_of(rows), dtype="<i4").astype(np.int64)

    def _tokens(self, first: int, end: int) -> NDArray[np.int32]:
        """Token ids of the items from `first` to `end`, one after another."""
        start, stop = (int(self._offsets[row]) for row in (first, end))
        return np.frombuffer(self._file.read(TOKEN_BYTES * (stop - start), self._begin + TOKEN_BYTES * start), "<i4")

    def _tokens_of(self, rows: NDArray[np.int64]) -> bytes:
        """Token ids of these items, one after another."""
        positions = self._begin + TOKEN_BYTES * self._offsets[rows]
        sizes = TOKEN_BYTES * self.num_tokens_of(rows)
        return b"".join(map(self._file.read, sizes.tolist(), positions.tolist()))


def first_equal(keys: NDArray[Any]) -> NDArray[np.int64]:
    """For each of `(N,)` keys the first position of an equal key."""
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return first[group].astype(np.int64, copy=False)


def _tokenise(
    domain: Domain, field: str, tokenizer: Tokenizer, progress: Progress | None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    rows = np.flatnonzero(domain.has_text(field))
    lengths = np.zeros(domain.num_items, dtype=np.int64)
    values = array("i")  # grows in place
    for start in range(0, len(rows), ITEMS_AT_ONCE):
        some = rows[start : start + ITEMS_AT_ONCE]
        texts = [text or "" for text in domain.texts(some, field)]
        distinct = list(dict.fromkeys(texts))
        of_text = dict(zip(distinct, tokenizer.encode(distinct), strict=True))
        encoded = [of_text[text] for text in texts]
        lengths[some] = [len(token_ids) for token_ids in encoded]
        empty = some[lengths[some] == 0]
        if len(empty):
            item_id = domain.item_ids[int(empty[0])].as_py()
            raise DataError(f"{domain.folder}: item {item_id!r}: its {field} gives no token; mend it or remove it")
        for token_ids in encoded:
            values.extend(token_ids)
        if progress is not None:
            progress("tokens", start + len(some), len(rows))
    return np.frombuffer(values, dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)])
