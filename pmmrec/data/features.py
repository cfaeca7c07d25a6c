"""Read the features of a domain: vectors that were computed elsewhere and stored, one entry for each item."""
# N items of the domain, R of them that are read; an entry is a vector (F,) or T vectors (T, F).

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmmrec.data.info import DOMAIN_FILE, FeatureInfo
from pmmrec.errors import DataError

VECTOR = "vector"
ADVICE = "copy the domain again"
FLOATS: Mapping[str, pa.DataType] = {"float16": pa.float16(), "float32": pa.float32()}


class FeatureTable:
    """One feature of all items, mapped from its file: only rows that are read take memory.

    Raises DataError for a file that cannot be read, or that is not what `domain.json` says.
    """

    def __init__(self, path: Path, info: FeatureInfo, num_items: int) -> None:
        self.path, self.info = path, info
        try:
            column = pa.ipc.open_file(pa.memory_map(str(path))).read_all()[VECTOR]
            column.validate()
        except KeyError as error:
            raise DataError(f"{path}: has no column {VECTOR}, or several; {ADVICE}") from error
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read as an Arrow file of vectors: {error}; {ADVICE}") from error
        if column.type != vector_type(info) or len(column) != num_items:
            found = f"{len(column):,} rows of {column.type}"
            raise DataError(f"{path}: {found} where {DOMAIN_FILE} says {num_items:,} of {vector_type(info)}; {ADVICE}")
        if any(chunk.values.null_count for chunk in column.chunks):
            raise DataError(f"{path}: an entry of a vector is missing; {ADVICE}")
        self.has_N: NDArray[np.bool_] = column.is_valid().combine_chunks().to_numpy(zero_copy_only=False)
        self._chunks = [chunk.values.to_numpy().reshape(-1, *info.shape) for chunk in column.chunks]
        self._starts = np.cumsum([0, *map(len, column.chunks)])

    def read(self, row_R: NDArray[np.int64]) -> NDArray[Any]:
        """The entries of these rows, `(R, F)` or `(R, T, F)`, as they are stored; zeros where an item has none."""
        found = np.zeros((len(row_R), *self.info.shape), dtype=self.info.dtype)
        chunk_R = np.searchsorted(self._starts, row_R, side="right") - 1
        for chunk in np.unique(chunk_R).tolist():
            places = np.flatnonzero((chunk_R == chunk) & self.has_N[row_R])
            found[places] = self._chunks[chunk][row_R[places] - self._starts[chunk]]
        return found


def vector_type(info: FeatureInfo) -> pa.DataType:
    """How Arrow stores an entry of a feature: its numbers in order."""
    return pa.list_(FLOATS[info.dtype], int(np.prod(info.shape)))
