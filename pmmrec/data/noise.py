"""Add noise to windows for noised item detection: shuffle some inputs and replace others."""
# l inputs of one window, without padding. A key names an item of the whole run: two domains never share one.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pmmrec.requests import Noise, Noised

Ints = NDArray[np.int64]

BLIND_DRAWS = 32  # tries before the slots that do fit are listed


@dataclass(frozen=True)
class KeyedWindow:
    """The items of one window as keys, oldest first, and whose they are."""

    keys: Ints
    domain: int
    user: int


class SlotPool:
    """All slots of the global batch, from which replacements are drawn: a frequent item is drawn more often."""

    def __init__(self, windows: Sequence[KeyedWindow]) -> None:
        ordered = sorted(windows, key=lambda window: window.domain)  # stable: the order of the batch within a domain
        lengths = [len(window.keys) for window in ordered]
        self._keys = np.concatenate([window.keys for window in ordered])
        self._domains = np.repeat([window.domain for window in ordered], lengths)
        self._users = np.repeat([window.user for window in ordered], lengths)

    def draw(self, window: KeyedWindow, *, same_domain: bool, rng: np.random.Generator) -> int | None:
        """An item of another user that is not in `window`; None where the batch holds none."""
        start, end = 0, len(self._keys)
        if same_domain:
            start = int(np.searchsorted(self._domains, window.domain, side="left"))
            end = int(np.searchsorted(self._domains, window.domain, side="right"))
        drawn = self._fitting(window, rng.integers(start, end, size=BLIND_DRAWS))
        if len(drawn):
            return int(self._keys[drawn[0]])
        listed = self._fitting(window, np.arange(start, end))
        return int(self._keys[rng.choice(listed)]) if len(listed) else None

    def _fitting(self, window: KeyedWindow, slots: Ints) -> Ints:
        is_own_user = (self._domains[slots] == window.domain) & (self._users[slots] == window.user)
        fitting: Ints = slots[~is_own_user & ~np.isin(self._keys[slots], window.keys)]
        return fitting


def add_noise(window: KeyedWindow, pool: SlotPool, config: Noised, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Keys and labels (`Noise`) of the noised inputs, `(l,)` each; the window's last item is no input.

    The number of shuffled inputs has the mean `shuffle * l` by stochastic rounding. One alone cannot change places: a
    drawn 1 becomes 2 or 0 at even odds (always 0 where there is one input). The inputs chosen take each other's items,
    each moved on by one place in a random cyclic order, so every one of them moves. Replaced inputs are drawn from the
    rest; where the batch holds no candidate, the input stays. Labels compare items, not places: an item that moved
    onto an equal one is UNCHANGED.

    Replacements come from the *global* batch, and `rng` belongs to the window, not to the process: spreading a batch
    over processes changes nothing. So a process may have to encode an item that lies in no slot of its own share.
    """
    inputs = window.keys[:-1]
    noised = inputs.copy()
    noise = np.full(len(inputs), Noise.UNCHANGED, dtype=np.int64)
    num_shuffled = _num_shuffled(config.shuffle * len(inputs), len(inputs), rng)
    num_replaced = min(_round_up_or_down(config.replace * len(inputs), rng), len(inputs) - num_shuffled)
    places = rng.permutation(len(inputs))
    shuffled, replaced = places[:num_shuffled], places[num_shuffled : num_shuffled + num_replaced]
    noised[np.roll(shuffled, -1)] = inputs[shuffled]
    noise[noised != inputs] = Noise.SHUFFLED
    for place in replaced:
        key = pool.draw(window, same_domain=config.replace_from == "domain", rng=rng)
        if key is not None:
            noised[place], noise[place] = key, Noise.REPLACED
    return noised, noise


def _num_shuffled(mean: float, num_inputs: int, rng: np.random.Generator) -> int:
    count = _round_up_or_down(mean, rng)
    if count != 1:
        return count
    return 2 * int(rng.integers(0, 2)) if num_inputs > 1 else 0


def _round_up_or_down(mean: float, rng: np.random.Generator) -> int:
    """A whole number with this mean: the one below it, or the one above."""
    return int(mean) + int(rng.random() < mean - int(mean))
