"""Look up the ids of rows, to write them into a table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from torch import Tensor


def ids_at(ids: pa.ChunkedArray, index: Tensor) -> pa.Array:
    """The ids (of a domain's items or users) at `index`, a 1-d tensor of rows."""
    rows = index.numpy()
    starts = np.cumsum([0, *(len(chunk) for chunk in ids.chunks)])
    if len(rows) and (rows.min() < 0 or rows.max() >= starts[-1]):
        raise IndexError(f"rows must lie in 0..{starts[-1] - 1}, found {rows.min()}..{rows.max()}")
    chunks = np.searchsorted(starts, rows, side="right") - 1
    order = np.argsort(chunks, kind="stable")
    # Take chunk by chunk, because `ChunkedArray.take` first joins all chunks.
    taken = [
        ids.chunk(int(chunk)).take(pa.array(rows[order[chunks[order] == chunk]] - starts[chunk]))
        for chunk in np.unique(chunks)
    ]
    found = pa.concat_arrays(taken) if taken else pa.array([], ids.type)
    return found.take(pa.array(np.argsort(order, kind="stable")))
