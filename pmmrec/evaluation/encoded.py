"""Vectors of a catalogue, kept in a cache piece by piece: encoded once, by one process or several, and resumed."""
# N items of the catalogue, P items of one piece, U items encoded at once, D width.

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.data.cache import ContentCache, Say, silent
from pmmrec.data.items import ItemReader
from pmmrec.data.releases import made_by
from pmmrec.evaluation.catalogue import ITEMS_AT_ONCE, NotFiniteVectorError, evaluating
from pmmrec.evaluation.share import Share
from pmmrec.models.recommender import Recommender
from pmmrec.progress import Progress

ITEMS_OF_PIECE = 8 * ITEMS_AT_ONCE  # what a killed run loses, at most
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
    """What `encode_catalogue` gives, `(N, D)` float32, out of pieces that are kept in `cache`.

    The encoders are on `device`; the vectors come there too, or to `keep_on`.

    `weights` names the weights of the item encoder: the pieces of other weights, items, devices or libraries are
    others. A run that was killed goes on where it was. Each process of a `share` encodes its own pieces, then those
    that others have not finished, and reads the rest. Raises NotFiniteVectorError where a vector is not finite,
    MachineError when the cache cannot be written.
    """
    rows, contents = reader.in_order(domain_index), reader.contents(domain_index)
    inputs = {"weights": weights, "items": reader.fingerprint(domain_index), "releases": made_by("vectors")}
    sizes = {"items_at_once": ITEMS_AT_ONCE, "items_of_piece": ITEMS_OF_PIECE}
    entry = ContentCache(cache, say).entry("vectors", "item vectors", {**inputs, **sizes, "device": device.type})
    pieces = [rows[start : start + ITEMS_OF_PIECE] for start in range(0, len(rows), ITEMS_OF_PIECE)]
    home, vectors_ND, num_done = keep_on or device, torch.zeros(0, 0), 0
    for place in (share or Share()).order(len(pieces)):
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


def _encode(
    recommender: Recommender, reader: ItemReader, domain_index: int, rows: NDArray[np.int64], device: torch.device
) -> Tensor:
    parts = []
    with evaluating(recommender):
        for start in range(0, len(rows), ITEMS_AT_ONCE):
            some = rows[start : start + ITEMS_AT_ONCE]
            items = reader.read(np.full(len(some), domain_index), some)
            parts.append(recommender.item_encoder(reader.to_device(items, device)).fused_UD.float().cpu())
    vectors_PD = torch.cat(parts)
    wrong = torch.nonzero(~torch.isfinite(vectors_PD).all(dim=1))
    if len(wrong):
        raise NotFiniteVectorError(int(rows[int(wrong[0])]), f"domain {domain_index}")
    return vectors_PD


def _save(encode: Callable[[], Tensor], folder: Path) -> None:
    np.save(folder / VECTORS, encode().numpy(), allow_pickle=False)


def _load(folder: Path) -> Tensor:
    return torch.from_numpy(np.load(folder / VECTORS, allow_pickle=False))
