"""Texts of a domain as token ids: made once, kept in a cache, read by row."""
# N items of a domain, R rows read, T tokens of the longest of them.

from __future__ import annotations

import hashlib
import json
import uuid
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmmrec.atomic import caching_in
from pmmrec.contracts import Modality, Tokenizer
from pmmrec.data.disk import Parts
from pmmrec.data.domain import Domain
from pmmrec.data.releases import made_by
from pmmrec.errors import DataError
from pmmrec.progress import Progress

ITEMS_AT_ONCE = 4096
ROWS_AT_ONCE = 1 << 18  # of a pass over the tokens
TOKEN_BYTES = 4
FORMAT = 1  # part of the key: a change of layout makes a new cache


class TokenTable:
    """Token ids of every item of a domain. Items without a text hold none.

    On disk: `values` (int32, all tokens in a row) and `offsets` (int64, N + 1) as .npy files, and a small JSON with
    their checksums that is written last. All three names carry the key. Values are read, not mapped: pages of a map
    that were touched would count as memory of each process.
    """

    def __init__(self, stem: Path, num_items: int, pad_token_id: int) -> None:
        """The table whose files begin with `stem`; `open` is the way to one."""
        arrays = _load(stem, num_items)
        if arrays is None:
            raise DataError(f"{stem}: token ids are missing or were changed; make them again with TokenTable.open")
        values, self._offsets = arrays
        self._file, self._begin = Parts(_path(stem, "values")), int(values.offset)
        self._source = (stem, num_items, pad_token_id)
        self._pad_token_id = pad_token_id

    @classmethod
    def open(cls, domain: Domain, tokenizer: Tokenizer, cache: Path, progress: Progress | None = None) -> TokenTable:
        """The table of `domain` under `tokenizer`, made now if `cache` holds none that is whole.

        Raises DataError for a text without any token, MachineError when the disk has no room.
        """
        source = f"tokens {FORMAT} {domain.fingerprint} {tokenizer.fingerprint} {made_by('tokens')}"
        stem = cache / f"tokens-{hashlib.sha256(source.encode()).hexdigest()[:32]}"
        if _load(stem, domain.num_items) is None:
            _save(stem, *_tokenise(domain, tokenizer, progress))
        return cls(stem, domain.num_items, tokenizer.pad_token_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenTable, self._source  # a worker process maps the files again

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """Tokens of each item, `(N,)`; 0 without a text."""
        return np.diff(self._offsets)

    def content(self, row: int) -> bytes:
        """The token ids of one item as bytes, equal where the ids are; empty without a text."""
        return self._tokens(row, row + 1).tobytes()

    def first_alike(self) -> NDArray[np.int64]:
        """The first item with the same token ids, for each item, `(N,)`; items without a text are alike."""
        seed, first_N = 0, first_equal(self._keys(0))
        while not self._are_alike(first_N):  # two texts share a key by chance: draw other keys
            seed += 1
            first_N = first_equal(self._keys(seed))
        return first_N

    def _keys(self, seed: int) -> NDArray[np.uint64]:
        """A number for each item, the same where the token ids are, and hardly ever where they are not."""
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

    def _are_alike(self, first_N: NDArray[np.int64]) -> bool:
        """Whether each item has the token ids of the one that is named beside it."""
        for start in range(0, len(first_N), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(first_N)))
            rows = rows[first_N[rows] != rows]
            own, other = (self._offsets[some + 1] - self._offsets[some] for some in (rows, first_N[rows]))
            if not np.array_equal(own, other):
                return False
            if self._tokens_of(rows) != self._tokens_of(first_N[rows]):
                return False
        return True

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Token ids `(R, T)`, right-padded to the longest of these rows, and which of them are tokens."""
        starts = self._offsets[rows]
        lengths = self._offsets[rows + 1] - starts
        places = np.arange(lengths.max(initial=1))
        is_valid = places < lengths[:, None]
        token_ids = np.full(is_valid.shape, self._pad_token_id, dtype=np.int64)
        token_ids[is_valid] = np.frombuffer(self._tokens_of(rows), dtype="<i4")
        return token_ids, is_valid

    def _tokens(self, first: int, end: int) -> NDArray[np.int32]:
        """Token ids of the items from `first` to `end`, one after another."""
        start, stop = (int(self._offsets[row]) for row in (first, end))
        return np.frombuffer(self._file.read(TOKEN_BYTES * (stop - start), self._begin + TOKEN_BYTES * start), "<i4")

    def _tokens_of(self, rows: NDArray[np.int64]) -> bytes:
        """Token ids of these items, one after another."""
        positions = self._begin + TOKEN_BYTES * self._offsets[rows]
        sizes = TOKEN_BYTES * (self._offsets[rows + 1] - self._offsets[rows])
        return b"".join(map(self._file.read, sizes.tolist(), positions.tolist()))


def first_equal(keys: NDArray[Any]) -> NDArray[np.int64]:
    """Where the key of each place occurs first, of `(N,)` keys."""
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return first[group].astype(np.int64, copy=False)


def _tokenise(
    domain: Domain, tokenizer: Tokenizer, progress: Progress | None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    rows = np.flatnonzero(domain.has[Modality.TEXT])
    lengths = np.zeros(domain.num_items, dtype=np.int64)
    values = array("i")  # grows in place
    for start in range(0, len(rows), ITEMS_AT_ONCE):
        some = rows[start : start + ITEMS_AT_ONCE]
        texts = [text or "" for text in domain.texts(some)]
        distinct = list(dict.fromkeys(texts))
        of_text = dict(zip(distinct, tokenizer.encode(distinct), strict=True))
        encoded = [of_text[text] for text in texts]
        lengths[some] = [len(token_ids) for token_ids in encoded]
        silent = some[lengths[some] == 0]
        if len(silent):
            item_id = domain.item_ids[int(silent[0])].as_py()
            raise DataError(f"{domain.folder}: item {item_id!r}: its text gives no token; mend the text or remove it")
        for token_ids in encoded:
            values.extend(token_ids)
        if progress is not None:
            progress("tokens", start + len(some), len(rows))
    return np.frombuffer(values, dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)])


def _save(stem: Path, values: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
    unfinished = stem.parent / f".{stem.name}-{uuid.uuid4().hex}.npy"
    checksums = {}
    with caching_in(stem.parent, "token ids"):
        stem.parent.mkdir(parents=True, exist_ok=True)
        try:
            for name, numbers in (("values", values), ("offsets", offsets)):
                np.save(unfinished, numbers, allow_pickle=False)
                path = _path(stem, name)
                checksums[path.name] = _sha256(unfinished)
                unfinished.replace(path)
            unfinished.write_text(json.dumps(checksums), encoding="utf-8")
            unfinished.replace(f"{stem}.json")
        finally:
            unfinished.unlink(missing_ok=True)


def _path(stem: Path, name: str) -> Path:
    return Path(f"{stem}.{name}.npy")


def _load(stem: Path, num_items: int) -> tuple[np.memmap[Any, np.dtype[np.int32]], NDArray[np.int64]] | None:
    """The two arrays, memory-mapped; None where a file is missing, was cut short or changed."""
    paths = [_path(stem, name) for name in ("values", "offsets")]
    try:
        checksums = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        if checksums != {path.name: _sha256(path) for path in paths}:
            return None
        values, offsets = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
    except (OSError, ValueError):  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        return None
    fits = values.dtype == np.int32 and offsets.dtype == np.int64 and offsets.shape == (num_items + 1,)
    return (values, offsets) if fits and offsets[-1] == len(values) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
