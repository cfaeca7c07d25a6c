"""A stream of random numbers of its own for each place of a run."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream decides. Two purposes never share one; the numbers are part of every run: only add to them."""

    VISIT_ORDER = 1  # of the windows of a domain in one pass
    STEP_ORDER = 2  # of the slots of one epoch
    WINDOW = 3  # where in its user's history a window lies
    CORRUPTION = 4  # what is done to one window
    RANKED_USERS = 5  # of a domain, where not all are


def generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """A generator that depends on its arguments alone, so that resuming and spreading over processes change nothing."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, int(purpose), *place))))
