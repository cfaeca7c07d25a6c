"""Give each place of a run its own stream of random numbers."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream decides. Each purpose has its own; the numbers are part of every run, so only add new ones."""

    VISIT_ORDER = 1  # of the windows of a domain in one pass
    STEP_ORDER = 2  # of the slots of one epoch
    WINDOW = 3  # the position of a window in its user's history
    NOISE = 4  # what is done to one window for noise detection
    RANKED_USERS = 5  # of a domain, where not all are ranked
    MASKING = 6  # which items of a window are masked
    DROPPING = 7  # which inputs of a window are left out
    NEGATIVES = 8  # what is drawn for the targets of a window
    PAIR_NEGATIVES = 9  # what is drawn for a user and an item
    HELD_OUT_ITEMS = 10  # of a domain, where items are the examples
    CANDIDATES = 11  # which of the candidates of an impression are left
    SAMPLED_USERS = 12  # of a domain, where not all train
    HELD_OUT_USERS = 13  # of a source, whose last items are for validation
    HIDING = 14  # what of the items of a step is hidden, and which pairs are compared


def generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """A generator that depends only on its arguments, so a resumed run or several processes draw the same numbers."""
    words: tuple[int, ...] = (seed, int(purpose), *place)
    # An array of 32-bit words seeds alike and is read three times as fast; larger numbers take two words each.
    entropy = np.array(words, dtype=np.uint32) if max(words) < 1 << 32 else words
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
