"""Make codes of the stored vectors of items by optimised product quantisation (VQRec)."""
# N items of the domain, T of them in training, F length of a stored vector, M parts of a code.

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.features import FeatureTable
from pmmrec.data.importers.features import StoredFeature, check_name, store_vectors
from pmmrec.data.splits import Split
from pmmrec.errors import DataError, RecipeError
from pmmrec.faiss_library import faiss
from pmmrec.packing import Ints

NUM_VALUES = 256  # of each part: 8 bits
ADVISED = 39 * NUM_VALUES  # training items, by faiss
ROWS_AT_ONCE = 100_000
LONGEST = 1e15  # length of a vector: squares of 100 million such vectors add up in float32

Floats = NDArray[np.float32]


def store_codes(
    split: Split,
    feature: str,
    name: str,
    parts: int = 32,
    iterations: int | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> StoredFeature:
    """Store the codes of a stored feature under another name: `parts` whole numbers below 256 for each item.

    The vectors are rotated by a learned matrix, the one coarse centroid is taken away, and what is left is cut into
    parts; the code of a part is the nearest of 256 centroids. All of it is fitted to the items that occur in the
    training part of the split, as faiss does for `OPQ32,IVF1,PQ32x8` by inner product. Its polysemous training is left
    out (`np`): that takes most of the time, and does nothing but number the centroids of each part otherwise.

    `iterations`: of the rotation and of the centroids; None: 50 and 25, as faiss has it. `warn`: called where there are
    few items.

    Raises DataError where too few items can be fitted to or a vector is too long, RecipeError for a name that is taken
    or a length that the parts do not divide, MachineError without faiss.
    """
    domain, library = split.domain, faiss()
    check_name(domain, name, "--out")
    table = domain.feature(feature)
    if len(table.info.shape) != 1 or table.info.num_values is not None:
        raise RecipeError(f"--feature {feature}: codes are made of one vector for each item; name such a feature")
    length = table.info.shape[0]
    if length % parts:
        raise RecipeError(f"--parts {parts}: do not divide the {length} numbers of {feature}; choose a divisor")
    rows = np.flatnonzero(table.has_N & (split.train_counts > 0))
    least = max(NUM_VALUES, length)
    if len(rows) < least:
        raise DataError(
            f"{domain.folder}: {len(rows):,} training items have a {feature}, and codes of 256 values for vectors of "
            f"{length} numbers need {least:,} or more; take a larger domain, or shorter vectors"
        )
    if len(rows) < ADVISED:
        warn(f"{len(rows):,} training items are few for codes of {NUM_VALUES} values; faiss advises {ADVISED:,}")
    having = np.flatnonzero(table.has_N)
    _refuse_long(table, having, f"{domain.folder}: feature {feature!r}")
    index = _fitted(library, table.read(rows).astype(np.float32), parts, iterations)
    code_NM = np.full((domain.num_items, parts), np.nan, dtype=np.float16)  # which holds 0 to 255 exactly
    for start in range(0, len(having), ROWS_AT_ONCE):
        some = having[start : start + ROWS_AT_ONCE]
        code_NM[some] = index.sa_encode(table.read(some).astype(np.float32))[:, -parts:]
    source = f"OPQ{parts},IVF1,PQ{parts}x8 of {feature}, fitted to {len(rows)} training items"
    return store_vectors(domain, code_NM, name, source, num_values=NUM_VALUES)


def _refuse_long(table: FeatureTable, having: Ints, where: str) -> None:
    """DataError for a vector too long for sums of squares in float32, in which codes are fitted."""
    for start in range(0, len(having), ROWS_AT_ONCE):
        norm_T = np.linalg.norm(table.read(having[start : start + ROWS_AT_ONCE]).astype(np.float64), axis=1)
        if norm_T.max() > LONGEST:
            raise DataError(
                f"{where} holds a vector of length {norm_T.max():.1e}, and codes are made of vectors of up to "
                f"{LONGEST:.0e}; store them divided by a number"
            )


def _fitted(library: Any, vector_TF: Floats, parts: int, iterations: int | None) -> Any:
    """A faiss index that encodes vectors as it was fitted to these."""
    length = vector_TF.shape[1]
    index = library.index_factory(length, f"OPQ{parts},IVF1,PQ{parts}x8np", library.METRIC_INNER_PRODUCT)
    rotation = library.downcast_VectorTransform(index.chain.at(0))
    lists, quantizer = library.downcast_index(index.index), library.ProductQuantizer(length, parts, 8)
    rotation.pq = quantizer
    for clustering in (quantizer.cp, lists.pq.cp, lists.cp):
        clustering.min_points_per_centroid = 1  # else faiss prints a line for each part and iteration
    if iterations is not None:
        rotation.niter = rotation.niter_pq_0 = lists.pq.cp.niter = iterations
    index.train(vector_TF)
    return index
