"""Search a FAISS index in a defined order: highest score first, equal scores by entry.

FAISS does not define which of several equal scores it returns, nor their order, and its float32 sums may differ in the
last digit for equal keys. The search therefore requests more entries than needed, scores each of them again on its
own, and requests more while the end of the list cuts through equal scores.
"""
# Q queries, W entries requested, K entries of a list, D width of queries and keys.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pmmrec.faiss_library import faiss

Kind = Literal["flat", "hnsw", "ivf"]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SPARE = 32  # entries requested beyond the list, to see equal scores at its end
GROWTH = 4  # factor by which the request grows while it is not enough
SEARCHED_AT_ONCE = 64  # queries
SCORED_AT_ONCE = 4096  # entries whose keys are copied from the index at once
ROUNDING = 2.0**-24  # relative error of one float32 operation


@dataclass(frozen=True)
class IndexSearch:
    """A FAISS index and its search effort."""

    index: Any
    kind: Kind
    effort: int  # efSearch of hnsw, nprobe of ivf; unused by flat
    longest: float  # norm of the longest key

    @classmethod
    def of(cls, index: Any, kind: Kind, effort: int, keys: Floats) -> IndexSearch:
        """Prepare an index for search. `keys`: those of all its entries, `(C, D)`."""
        if kind == "ivf":
            index.make_direct_map()  # so that keys can be copied from it
        square_C = np.einsum("cd,cd->c", keys, keys)
        return cls(index, kind, effort, float(np.sqrt(square_C.max(initial=0))))

    def best(self, queries: Floats, k: int) -> tuple[Ints, Floats]:
        """The best k entries of each query and their scores, `(Q, K)`; -1 and -inf if fewer are found.

        A shorter list is a prefix of a longer one: always for flat and ivf, up to `effort` entries for hnsw, whose
        graph is searched more widely for longer lists.
        """
        starts = range(0, max(1, len(queries)), SEARCHED_AT_ONCE)
        parts = [self._best(queries[start : start + SEARCHED_AT_ONCE], k) for start in starts]
        entries, scores = zip(*parts, strict=True)
        return np.concatenate(entries), np.concatenate(scores)

    def _best(self, queries: Floats, k: int) -> tuple[Ints, Floats]:
        entries = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        margin = queries.shape[1] * ROUNDING * self.longest * np.linalg.norm(queries, axis=1)
        unsure, wanted = np.arange(len(queries)), k + SPARE
        while len(unsure):
            wanted = min(self._pool(wanted), self.index.ntotal)
            found, least = self._found(queries[unsure], wanted)
            exact = np.stack([self._scores(*pair) for pair in zip(queries[unsure], found, strict=True)])
            order = np.lexsort((found, -exact), axis=1)[:, :k]
            num = order.shape[1]
            entries[unsure, :num] = np.take_along_axis(found, order, axis=1)
            scores[unsure, :num] = np.take_along_axis(exact, order, axis=1)
            if wanted == self.index.ntotal or self.kind == "hnsw":
                break
            unsure = unsure[(least > -np.inf) & (scores[unsure, -1] <= least + margin[unsure])]
            wanted *= GROWTH
        return entries, scores

    def _pool(self, wanted: int) -> int:
        """How many entries to request: a graph returns all entries it visited, whatever the length of the list."""
        if self.kind != "hnsw":
            return wanted
        pool = self.effort
        while pool < wanted - SPARE:
            pool *= 2
        return pool

    def _found(self, queries: Floats, wanted: int) -> tuple[Ints, Floats]:
        """Entries `(Q, W)` in any order, and an upper bound of the scores of all other entries, `(Q,)`."""
        library, parameters = faiss(), None
        if self.kind == "hnsw":
            parameters = library.SearchParametersHNSW(efSearch=wanted)
        elif self.kind == "ivf":
            parameters = library.SearchParametersIVF(nprobe=self.effort)
        scores, entries = self.index.search(queries, wanted, params=parameters)
        return entries, np.where(entries[:, -1] < 0, -np.inf, scores[:, -1])

    def _scores(self, query: Floats, entries: Ints) -> Floats:
        """The inner product of a query with the key of each entry, `(W,)`; equal keys get equal scores."""
        scores = np.full(len(entries), -np.inf, dtype=np.float32)
        there = np.flatnonzero(entries >= 0)
        for start in range(0, len(there), SCORED_AT_ONCE):
            places = there[start : start + SCORED_AT_ONCE]
            keys = self.index.reconstruct_batch(entries[places]).astype(np.float64)
            scores[places] = (keys * query).sum(axis=1)
        return scores
