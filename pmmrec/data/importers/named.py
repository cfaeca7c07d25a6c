"""Count rows that an import leaves out or misses, and remember the ids of the first of them for a message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import Self

MAX_SHOWN = 3


@dataclass
class Named:
    """How many rows there are, and what the first of them are called."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, ids: pa.Array | pa.ChunkedArray | Sequence[str], is_in: NDArray[np.bool_]) -> Self:
        """The selected rows; `ids` names each row."""
        named = cls()
        named.add(ids, is_in)
        return named

    def add(self, ids: pa.Array | pa.ChunkedArray | Sequence[str], is_in: NDArray[np.bool_]) -> None:
        """Add the selected rows; `ids` names each row."""
        places = np.flatnonzero(is_in)
        self.count += len(places)
        for place in places[: MAX_SHOWN - len(self.first)].tolist():
            named = ids[place]
            self.first.append(str(named.as_py() if isinstance(named, pa.Scalar) else named))

    def __str__(self) -> str:
        """Such as `12, such as 'a', 'b', 'c'`; for few, all of them."""
        shown = ", ".join(map(repr, self.first))
        return f"{self.count:,}{':' if self.count <= MAX_SHOWN else ', such as'} {shown}" if self.first else "0"
