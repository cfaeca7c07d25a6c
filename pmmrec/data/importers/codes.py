"""Make codes of the stored vectors of items by optimised product quantisation (VQRec)."""
# N items of the domain, T of them in training, F length of a stored vector, M parts of a code.

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
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
    splits: Sequence[Split],
    feature: str,
    name: str,
    parts: int = 32,
    iterations: int | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> list[StoredFeature]:
    """Store the codes of a stored feature under another name: `parts` whole numbers below 256 for each item.

    The vectors are rotated by a learned matrix, the one coarse centroid is taken away, and what is left is cut into
    parts; the code of a part is the nearest of 256 centroids. All of it is fitted to the items that occur in the
    training parts of all splits together, so that a code means the same in each of their domains, as faiss does for
    `OPQ32,IVF1,PQ32x8` by inner product. Its polysemous training is left out (`np`): that takes most of the time, and
    does nothing but number the centroids of each part otherwise.

    `iterations`: of the rotation and of the centroids; None: 50 and 25, as faiss has it. `warn`: called where there are
    few items.

    Raises DataError where too few items or different vectors can be fitted to, or a vector is too long, RecipeError for
    a name that is taken, a length that the parts do not divide or that differs among domains, or a domain named twice,
    MachineError without faiss.
    """
    _refuse_twice(splits)
    library, tables = faiss(), [_table(split, feature, name, parts) for split in splits]
    both, folders = list(zip(tables, splits, strict=True)), ", ".join(str(split.domain.folder) for split in splits)
    lengths = sorted({table.info.shape[0] for table in tables})
    if len(lengths) > 1:
        raise RecipeError(f"--feature {feature}: is {' and '.join(map(str, lengths))} numbers long; name one length")
    rows = [np.flatnonzero(table.has_N & (split.train_counts > 0)) for table, split in both]
    num_rows, least = sum(map(len, rows)), least_items(lengths[0])
    if num_rows < least:
        raise DataError(
            f"{folders}: {num_rows:,} training items have a {feature}, and codes of 256 values for vectors of "
            f"{lengths[0]} numbers need {least:,} or more; take a larger domain, several at once, or shorter vectors"
        )
    if num_rows < ADVISED:
        warn(f"{num_rows:,} training items are few for codes of {NUM_VALUES} values; faiss advises {ADVISED:,}")
    for table, split in both:
        _refuse_long(table, np.flatnonzero(table.has_N), f"{split.domain.folder}: feature {feature!r}")
    vector_TF = np.concatenate([table.read(some).astype(np.float32) for table, some in zip(tables, rows, strict=True)])
    if (num_distinct := _num_distinct(vector_TF)) < NUM_VALUES:
        raise DataError(
            f"{folders}: the {num_rows:,} training items with a {feature} have {num_distinct:,} different vectors, and "
            f"codes of {NUM_VALUES} values need {NUM_VALUES} or more; store vectors that tell items apart"
        )
    index = _fitted(library, vector_TF, parts, iterations)
    names = ", ".join(split.domain.name for split in splits)
    source = f"OPQ{parts},IVF1,PQ{parts}x8 of {feature}, fitted to {num_rows} training items of {names}"
    return [
        store_vectors(split.domain, _codes(index, table, parts), name, source, num_values=NUM_VALUES)
        for table, split in both
    ]


def _num_distinct(vector_TF: Floats) -> int:
    """How many rows differ, counted up to as many as codes need."""
    found: set[bytes] = set()
    for vector_F in vector_TF:
        found.add(vector_F.tobytes())
        if len(found) == NUM_VALUES:
            break
    return len(found)


def _refuse_twice(splits: Sequence[Split]) -> None:
    """RecipeError where a domain is named twice: its codes would be stored twice."""
    folders = [split.domain.folder for split in splits]
    for place, folder in enumerate(folders):
        if any(folder.samefile(other) for other in folders[:place]):
            raise RecipeError(f"{folder}: named twice; a domain counts once")


def _table(split: Split, feature: str, name: str, parts: int) -> FeatureTable:
    """The feature to make codes of. RecipeError where it has none, or they cannot be called so."""
    check_name(split.domain, name, "--out")
    table = split.domain.feature(feature)
    if len(table.info.shape) != 1 or table.info.num_values is not None:
        raise RecipeError(f"--feature {feature}: codes are made of one vector for each item; name such a feature")
    if table.info.shape[0] % parts:
        length = table.info.shape[0]
        raise RecipeError(f"--parts {parts}: do not divide the {length} numbers of {feature}; choose a divisor")
    return table


def _codes(index: Any, table: FeatureTable, parts: int) -> NDArray[np.float16]:
    """The codes of all items of a domain `(N, M)`; NaN where an item has no vector."""
    code_NM = np.full((len(table.has_N), parts), np.nan, dtype=np.float16)  # which holds 0 to 255 exactly
    having = np.flatnonzero(table.has_N)
    for start in range(0, len(having), ROWS_AT_ONCE):
        some = having[start : start + ROWS_AT_ONCE]
        code_NM[some] = index.sa_encode(table.read(some).astype(np.float32))[:, -parts:]
    return code_NM


def least_items(length: int) -> int:
    """How many training items codes of vectors of this length are fitted to, at least."""
    return max(NUM_VALUES, length)


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
