"""Encode a catalogue once and keep the vectors in a cache, which processes, runs and verbs share.

The store has a folder `vectors-KEY` for each catalogue, encoder and kind of device, with a folder for each piece of
2,048 items: `vectors.npy`, and an index with its checksum. The key is a SHA-256 of all that decides the vectors: the
tensors and settings of the item encoder, the items and how they are read (stored features included), and the releases
of the libraries that compute. Where the store would hold more than 20 GB, catalogues that were not used for the longest
time are removed.
"""
# N items of the catalogue, P items of one piece, U items encoded at once, D width.

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.data.cache import INDEX, CacheEntry, ContentCache, Say, remove, silent
from pmmrec.data.items import ItemReader
from pmmrec.data.releases import made_by
from pmmrec.encoders.prefix import fingerprint_of
from pmmrec.errors import MachineError
from pmmrec.evaluation.catalogue import ITEMS_AT_ONCE, NotFiniteVectorError, encode_catalogue
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.evaluation.share import Share
from pmmrec.models.build import ModelConfig
from pmmrec.models.recommender import Recommender, packed
from pmmrec.progress import Progress

ITEMS_OF_PIECE = 8 * ITEMS_AT_ONCE  # a killed run loses at most these
VECTORS = "vectors.npy"
VERSION = 1  # raise it when the same encoder and items give other vectors
STORE_BYTES = 20_000_000_000  # the vectors of all catalogues in one cache
IN_USE_S = 3600  # a catalogue that was used this recently is never removed


@dataclass(frozen=True)
class KeptVectors:
    """The vectors of a catalogue, and how many of its distinct items had to be encoded for them."""

    vectors_ND: Tensor
    num_encoded: int
    num_kept: int

    def counts(self) -> str:
        """For people."""
        total = self.num_encoded + self.num_kept
        return f"{self.num_encoded:,} of {total:,} items encoded, {self.num_kept:,} kept"


def encoder_name(recommender: Recommender, config: ModelConfig, adapters: Mapping[str, Any] | None = None) -> str:
    """A hash of the item encoder: its tensors and settings, what a graph reads, its backbones and adapters."""
    encoder = recommender.item_encoder
    facts = {
        "version": VERSION,
        "settings": config.item_encoder.model_dump(mode="json"),
        "width": config.width,
        "adapters": dict(adapters or {}),
        "backbones": {field: dict(one.backbone_facts) for field, one in encoder.encoders.items()},
    }
    if encoder.graph_streams:
        facts["streams"] = sorted(encoder.graph_streams)
    return fingerprint_of(facts, encoder.state_dict())


def kept_vectors(
    recommender: Recommender,
    reader: ItemReader,
    domain_index: int,
    *,
    weights: str,
    cache: Path,
    device: torch.device,
    keep_on: torch.device | None = None,
    share: Share | None = None,
    must_keep: bool = False,
    progress: Progress | None = None,
    say: Say = silent,
) -> KeptVectors:
    """The vectors of `encode_catalogue`, `(N, D)` float32, read from `cache` or encoded now, piece by piece.

    A run that was killed continues with the first missing piece. Each process of a `share` encodes its own pieces,
    then those that no other process is making, and reads or waits for the rest. A model that knows items by id has its
    vectors already: they are read from its table and not kept.

    Args:
        recommender: Its item encoder is on `device`.
        reader: Reads the items.
        domain_index: Which of the reader's domains.
        weights: The `encoder_name` of the item encoder, part of the key of the pieces.
        cache: Folder of the pieces.
        device: Where items are encoded.
        keep_on: Where the result lies; None: `device`.
        share: Which part of the work is this process's; None: all.
        must_keep: Whether a cache that cannot be written is an error; else its vectors are encoded and not kept.
        progress: Called after each piece.
        say: Told when a damaged piece is encoded again, when another process is waited for, what was removed from the
            cache, and that vectors cannot be kept.

    Raises:
        NotFiniteVectorError: Where a vector is not finite.
        MachineError: Where the cache cannot be written, with `must_keep`.
    """
    if not recommender.item_encoder.fields:
        num_items = len(reader.contents(domain_index).same_as_N)
        rules: dict[str, Any] = {"chunk": ITEMS_AT_ONCE, "device": device, "progress": progress}
        vectors_ND = encode_catalogue(recommender, reader, domain_index, num_items, **rules)
        return KeptVectors(vectors_ND.to(keep_on or device), 0, 0)
    rows, contents = reader.in_order(domain_index), reader.contents(domain_index)
    entry = vectors_entry(reader, domain_index, weights, cache, device, say)
    pieces = [rows[start : start + ITEMS_OF_PIECE] for start in range(0, len(rows), ITEMS_OF_PIECE)]
    store = _Store(entry, say, must_keep=must_keep)
    home, vectors_ND, num_done = keep_on or device, torch.zeros(0, 0), 0
    for place in _free_first((share or Share()).order(len(pieces)), entry):
        encode = partial(_encode, recommender, reader, domain_index, pieces[place], device)
        vectors_PD = store.open(place, encode)
        if not len(vectors_ND):
            vectors_ND = torch.zeros(len(contents.same_as_N), vectors_PD.shape[1], device=home)
        vectors_ND[torch.from_numpy(pieces[place]).to(home)] = vectors_PD.to(home)
        num_done += len(pieces[place])
        if progress is not None:
            progress("items encoded", num_done, len(rows))
    _repeat(vectors_ND, contents.same_as_N)
    return KeptVectors(vectors_ND, store.num_encoded, len(rows) - store.num_encoded)


def vectors_entry(
    reader: ItemReader, domain_index: int, weights: str, cache: Path, device: torch.device, say: Say = silent
) -> CacheEntry:
    """The entry of the store whose pieces are the vectors of a domain; arguments as in `kept_vectors`."""
    inputs = {"weights": weights, "items": reader.fingerprint(domain_index), "releases": made_by("vectors")}
    sizes = {"items_at_once": ITEMS_AT_ONCE, "items_of_piece": ITEMS_OF_PIECE}
    return ContentCache(cache, say).entry("vectors", "item vectors", {**inputs, **sizes, "device": device.type})


def read_vectors(entry: CacheEntry, rows: NDArray[np.int64], same_as_N: NDArray[np.int64]) -> Tensor:
    """The vectors `(N, D)` of a domain from the pieces of `vectors_entry`, whose items are `rows`, in this order.

    Raises MachineError where a piece is missing or damaged.
    """
    pieces = [entry.piece(place).open(None, _load) for place in range(-(-len(rows) // ITEMS_OF_PIECE))]
    vectors_RD = torch.cat(pieces)
    vectors_ND = vectors_RD.new_zeros(len(same_as_N), vectors_RD.shape[1])
    vectors_ND[torch.from_numpy(rows)] = vectors_RD
    _repeat(vectors_ND, same_as_N)
    return vectors_ND


def _repeat(vectors_ND: Tensor, same_as_N: NDArray[np.int64]) -> None:
    """Give each item the vector of the first one with the same content, in place."""
    again = np.flatnonzero(same_as_N != np.arange(len(same_as_N)))
    first = torch.from_numpy(same_as_N[again]).to(vectors_ND.device)
    vectors_ND[torch.from_numpy(again).to(vectors_ND.device)] = vectors_ND[first]


class _Store:
    """The pieces of one catalogue; counts the items that had to be encoded."""

    def __init__(self, entry: CacheEntry, say: Say, *, must_keep: bool) -> None:
        self._entry, self._say, self._must_keep = entry, say, must_keep
        self.num_encoded, self._warned = 0, False

    def open(self, place: int, encode: Callable[[], Tensor]) -> Tensor:
        """The vectors of a piece, `(P, D)`, kept or encoded now."""

        def make(folder: Path) -> None:
            if not self.num_encoded:
                remove_unused(self._entry.folder, self._say)
            vectors_PD = encode()
            np.save(folder / VECTORS, vectors_PD.numpy(), allow_pickle=False)
            self.num_encoded += len(vectors_PD)

        try:
            return self._entry.piece(place).open(make, _load)
        except MachineError as error:
            if self._must_keep:
                raise
            if not self._warned:
                self._say(f"{error}; they are encoded each time")
            self._warned = True
            vectors_PD = encode()
            self.num_encoded += len(vectors_PD)
            return vectors_PD


def remove_unused(folder: Path, say: Say, budget: int = STORE_BYTES) -> None:
    """Remove the catalogues that were not used for the longest time, but `folder`, until `budget` holds the others."""
    groups = [path for path in folder.parent.glob("vectors-*") if path != folder]
    sizes, used = ({path: measure(path) for path in groups} for measure in (_size, _last_used))
    excess = sum(sizes.values()) - budget
    for path in sorted(groups, key=lambda group: used[group]):
        unused_s = time.time() - used[path]
        if excess <= 0 or unused_s <= IN_USE_S:
            return
        if remove(path):
            say(f"{path}: item vectors not used for {unused_s / 3600:.1f} h made room for others")
        excess -= sizes[path]


def _size(group: Path) -> int:
    """Bytes of the vectors of a catalogue."""
    try:
        return sum(file.stat().st_size for file in group.glob("*/*"))
    except OSError:  # another process is at work in it
        return 0


def _last_used(group: Path) -> float:
    """When a piece of a catalogue was last opened."""
    try:
        return max((index.stat().st_mtime for index in group.glob(f"*/{INDEX}")), default=group.stat().st_mtime)
    except OSError:
        return time.time()


def _free_first(places: Iterable[int], entry: CacheEntry) -> Iterator[int]:
    """The pieces that no other process is making when their turn comes, then the others."""
    later = []
    for place in places:
        if entry.piece(place).is_being_made:
            later.append(place)
        else:
            yield place
    yield from later


def _encode(
    recommender: Recommender, reader: ItemReader, domain_index: int, rows: NDArray[np.int64], device: torch.device
) -> Tensor:
    parts, encoder = [], recommender.item_encoder
    with evaluating(recommender):
        for start in range(0, len(rows), ITEMS_AT_ONCE):
            some = rows[start : start + ITEMS_AT_ONCE]
            items = reader.read(np.full(len(some), domain_index), some)
            parts.append(packed(encoder(reader.to_device(items, device)), encoder.streams).float().cpu())
    vectors_PD = torch.cat(parts)
    wrong = torch.nonzero(~torch.isfinite(vectors_PD).all(dim=1))
    if len(wrong):
        raise NotFiniteVectorError(int(rows[int(wrong[0])]), f"domain {domain_index}")
    return vectors_PD


def _load(folder: Path) -> Tensor:
    return torch.from_numpy(np.load(folder / VECTORS, allow_pickle=False))
