"""Which test targets are regular, which cold, which new to the platform?"""
# Q queries of a holdout.

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.split import Holdout, Split
from pmmrec.errors import RecipeError

Stratum = Literal["all", "regular", "cold", "new"]
STRATA: tuple[Stratum, ...] = get_args(Stratum)

COLD_BELOW = 10  # occurrences in train; PMMRec (section IV-F) calls items with fewer cold


def stratum_mask(split: Split, holdout: Holdout, stratum: str) -> NDArray[np.bool_]:
    """Which queries belong to a stratum, `(Q,)`, by how often the target's item occurs in train.

    `regular`: at least 10 times; `cold`: fewer than 10; `new`: never, which is a part of cold. The history stays whole,
    only whose target counts differs. RecipeError for a word that is no stratum.
    """
    count_Q = split.train_counts[holdout.target]
    if stratum == "all":
        return np.ones(len(count_Q), dtype=np.bool_)
    if stratum == "regular":
        return np.asarray(count_Q >= COLD_BELOW)
    if stratum == "cold":
        return np.asarray(count_Q < COLD_BELOW)
    if stratum == "new":
        return np.asarray(count_Q == 0)
    raise RecipeError(f"stratum {stratum!r}: no such stratum; there are: {', '.join(STRATA)}")
