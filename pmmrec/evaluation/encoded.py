"""Encode a catalogue once and keep the vectors in a cache, in pieces that several processes or runs share."""
# N items of the catalogue, P items of one piece, U items encoded at once, D width.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.data.cache import CacheEntry, ContentCache, Say, silent
from pmmrec.data.items import ItemReader
from pmmrec.data.releases import made_by
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.catalogue import ITEMS_AT_ONCE, NotFiniteVectorError
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.evaluation.share import Share
from pmmrec.models.recommender import Recommender, packed
from pmmrec.progress import Progress

ITEMS_OF_PIECE = 8 * ITEMS_AT_ONCE  # a killed run loses at most these
VECTORS = "vectors.npy"


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
    progress: Progress | None = None,
    say: Say = silent,
) -> Tensor:
    """The vectors of `encode_catalogue`, `(N, D)` float32, read from `cache` or encoded now, piece by piece.

    A run that was killed continues with the first missing piece. Each process of a `share` encodes its own pieces,
    then those that no other process is making, and reads or waits for the rest.

    Args:
        recommender: Its item encoder is on `device`.
        reader: Reads the items.
        domain_index: Which of the reader's domains.
        weights: Identifies the weights of the item encoder, and is part of the key of the pieces.
        cache: Folder of the pieces.
        device: Where items are encoded.
        keep_on: Where the result lies; None: `device`.
        share: Which part of the work is this process's; None: all.
        progress: Called after each piece.
        say: Told when a damaged piece is encoded again, and when another process is waited for.

    Raises:
        NotFiniteVectorError: Where a vector is not finite.
        MachineError: Where the cache cannot be written.
    """
    rows, contents = reader.in_order(domain_index), reader.contents(domain_index)
    inputs = {"weights": weights, "items": reader.fingerprint(domain_index), "releases": made_by("vectors")}
    sizes = {"items_at_once": ITEMS_AT_ONCE, "items_of_piece": ITEMS_OF_PIECE}
    entry = ContentCache(cache, say).entry("vectors", "item vectors", {**inputs, **sizes, "device": device.type})
    pieces = [rows[start : start + ITEMS_OF_PIECE] for start in range(0, len(rows), ITEMS_OF_PIECE)]
    home, vectors_ND, num_done = keep_on or device, torch.zeros(0, 0), 0
    for place in _free_first((share or Share()).order(len(pieces)), entry):
        encode = partial(_encode, recommender, reader, domain_index, pieces[place], device)
        vectors_PD = entry.piece(place).open(partial(_save, encode), _load)
        if not len(vectors_ND):
            vectors_ND = torch.zeros(len(contents.same_as_N), vectors_PD.shape[1], device=home)
        vectors_ND[torch.from_numpy(pieces[place]).to(home)] = vectors_PD.to(home)
        num_done += len(pieces[place])
        if progress is not None:
            progress("items encoded", num_done, len(rows))
    again = np.flatnonzero(contents.same_as_N != np.arange(len(contents.same_as_N)))
    first = torch.from_numpy(contents.same_as_N[again]).to(home)
    vectors_ND[torch.from_numpy(again).to(home)] = vectors_ND[first]
    return vectors_ND


def item_features(
    recommender: Recommender,
    reader: ItemReader,
    domain_index: int,
    which: str,
    device: torch.device,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Vectors `(N, D)` of all items: `fused` ones, or the cls vectors of one field; NaN where an item has none.

    Raises RecipeError where the model gives no such vectors, NotFiniteVectorError where a vector is not finite.
    """
    contents, encoder = reader.contents(domain_index), recommender.item_encoder
    if which != "fused" and which not in encoder.cls_fields:
        given = " or ".join(["fused", *sorted(encoder.cls_fields)])
        raise RecipeError(f"the checkpoint gives no {which} vectors; ask for {given}")
    vectors_ND: NDArray[np.float32] | None = None
    num_done, num_items = 0, len(contents.same_as_N)
    for items in reader.catalogue(domain_index, ITEMS_AT_ONCE):
        with evaluating(recommender):
            vectors = encoder(reader.to_device(items, device))
        rows, has_U = items.row_U.numpy(), vectors.is_readable_U
        vectors_UD = vectors.fused_UD if which == "fused" else vectors.cls_UD[which]
        if which != "fused":
            has_U = vectors.has_U[which]
        vectors_UD = torch.where(has_U[:, None], vectors_UD.float(), torch.nan)
        wrong = torch.nonzero(~torch.isfinite(vectors_UD).all(dim=1) & has_U)
        if len(wrong):
            raise NotFiniteVectorError(int(rows[int(wrong[0])]), f"domain {domain_index}")
        if vectors_ND is None:
            vectors_ND = np.full((num_items, vectors_UD.shape[1]), np.nan, dtype=np.float32)
        vectors_ND[rows] = vectors_UD.cpu().numpy()
        num_done += len(rows)
        if progress is not None:
            progress("items encoded", num_done, len(contents.distinct))
    if vectors_ND is None:
        raise DataError(f"domain {domain_index}: no item can be read")
    return vectors_ND[contents.same_as_N]


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
    parts = []
    with evaluating(recommender):
        for start in range(0, len(rows), ITEMS_AT_ONCE):
            some = rows[start : start + ITEMS_AT_ONCE]
            items = reader.read(np.full(len(some), domain_index), some)
            parts.append(packed(recommender.item_encoder(reader.to_device(items, device))).float().cpu())
    vectors_PD = torch.cat(parts)
    wrong = torch.nonzero(~torch.isfinite(vectors_PD).all(dim=1))
    if len(wrong):
        raise NotFiniteVectorError(int(rows[int(wrong[0])]), f"domain {domain_index}")
    return vectors_PD


def _save(encode: Callable[[], Tensor], folder: Path) -> None:
    np.save(folder / VECTORS, encode().numpy(), allow_pickle=False)


def _load(folder: Path) -> Tensor:
    return torch.from_numpy(np.load(folder / VECTORS, allow_pickle=False))
