"""Take the stored features of domains over to one that is made of them."""
# N items of the new domain, K of those of a part, F numbers of a vector.

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pmmrec.data.domain import Domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.data.info import FeatureInfo

if TYPE_CHECKING:
    from pmmrec.data.derived.parts import Part

ROWS_AT_ONCE = 4096


def features_in_common(parts: Sequence[Part]) -> dict[str, FeatureInfo]:
    """The features that all parts have, of one shape and one source, so that their vectors can be compared."""
    first, *others = (part.domain.info.features for part in parts)
    return {
        name: info
        for name, info in first.items()
        if all(name in other and _what(other[name]) == _what(info) for other in others)
        and any(part.domain.feature(name).has_N[part.is_item_N].any() for part in parts)
    }


def take_features(parts: Sequence[Part], made: Domain) -> None:
    """Store the features in common in a domain that was made of these parts, one after another."""
    for name, info in features_in_common(parts).items():
        with tempfile.TemporaryDirectory(dir=made.folder.parent, prefix=f"{made.folder.name}-feature-") as work:
            shape = (made.num_items, *info.shape)
            vector_NF = np.lib.format.open_memmap(Path(work) / "vectors.npy", "w+", info.dtype, shape)
            first = 0
            for part in parts:
                table, row_K = part.domain.feature(name), np.flatnonzero(part.is_item_N)
                for start in range(0, len(row_K), ROWS_AT_ONCE):
                    rows = row_K[start : start + ROWS_AT_ONCE]
                    found = table.read(rows)
                    found[~table.has_N[rows]] = np.nan
                    vector_NF[first : first + len(rows)] = found
                    first += len(rows)
            store_vectors(made, vector_NF, name, info.source, num_values=info.num_values)


def _what(info: FeatureInfo) -> tuple[object, ...]:
    return info.shape, info.dtype, info.num_values, info.source
