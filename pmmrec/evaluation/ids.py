"""Which ids stand behind rows, in a table that is to be written?"""

from __future__ import annotations

import pyarrow as pa
from torch import Tensor


def ids_at(ids: pa.ChunkedArray, index: Tensor) -> pa.Array:
    """The ids (of a domain's items or users) at `index`, a 1-d tensor of rows."""
    taken = ids.take(pa.array(index.numpy()))
    return pa.concat_arrays(taken.chunks) if isinstance(taken, pa.ChunkedArray) else taken
