"""Which stretches of the users' histories does training see?"""
# S window positions.

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pmmrec.data.split import Split
from pmmrec.settings import Config

WindowPolicy = Literal["latest", "random", "all"]


class WindowConfig(Config):
    """How a user's history becomes windows."""

    size: int = Field(
        default=21, ge=2, description="Items of a window (S); the model reads all but the last as inputs."
    )
    policy: WindowPolicy = Field(
        default="random",
        description="latest: the last S items. random: S items from anywhere, another place at every visit. "
        "all: as many windows as it takes to see every step from one item to the next exactly once.",
    )


class WindowIndex:
    """The windows of one domain's training split, numbered from 0.

    Only users with two training items or more have windows: fewer hold no next item. `latest` and `random` give one
    window a user; `all` cuts a history from its end into chunks that share one item, so that no step is lost.
    """

    def __init__(self, split: Split, config: WindowConfig) -> None:
        self._split = split
        self._config = config
        lengths = np.diff(split.train_offsets)
        self._users = np.flatnonzero(lengths >= 2)
        num_windows_user = np.ones(len(self._users), dtype=np.int64)
        if config.policy == "all":
            num_windows_user = -(-(lengths[self._users] - 1) // (config.size - 1))
        self._first_window = np.concatenate([[0], np.cumsum(num_windows_user)])

    @property
    def num_windows(self) -> int:
        return int(self._first_window[-1])

    def user(self, window: int) -> int:
        """The user whose history the window lies in."""
        return int(self._users[self._place(window)])

    def items(self, window: int, generator: np.random.Generator) -> NDArray[np.int32]:
        """Item rows of a window, oldest first: S of them where the history allows, never fewer than two.

        `generator` is read under `random` only, where each start is equally likely.
        """
        place = self._place(window)
        history = self._split.train(int(self._users[place]))
        size = self._config.size
        end = len(history)
        if self._config.policy == "random" and end > size:
            end = size + int(generator.integers(0, end - size + 1))
        elif self._config.policy == "all":
            end -= (window - int(self._first_window[place])) * (size - 1)
        return history[max(0, end - size) : end]

    def lengths(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many items each of these windows holds, without drawing any of them."""
        places = np.searchsorted(self._first_window, windows, side="right") - 1
        users = self._users[places]
        lengths = self._split.train_offsets[users + 1] - self._split.train_offsets[users]
        if self._config.policy == "all":
            lengths = lengths - (windows - self._first_window[places]) * (self._config.size - 1)
        shown: NDArray[np.int64] = np.minimum(lengths, self._config.size)
        return shown

    def expected_slots(self) -> NDArray[np.float64]:
        """How often each item of the domain is expected to be shown when every window is drawn once, `(N,)`."""
        lengths = np.diff(self._split.train_offsets)
        length = np.repeat(lengths, lengths)  # of the history that each training interaction belongs to
        place = np.arange(len(length)) - np.repeat(self._split.train_offsets[:-1], lengths)
        size = self._config.size
        if self._config.policy == "latest":
            slots = (place >= length - size).astype(np.float64)
        elif self._config.policy == "random":
            num_starts = np.maximum(length - size, 0) + 1
            first, last = np.maximum(place - size + 1, 0), np.minimum(place, num_starts - 1)
            slots = (last - first + 1) / num_starts
        else:
            is_shared = (place > 0) & (place < length - 1) & ((length - 1 - place) % (size - 1) == 0)
            slots = 1.0 + is_shared
        slots = np.where(length >= 2, slots, 0.0)
        num_items = self._split.domain.num_items
        return np.bincount(self._split.train_items, weights=slots, minlength=num_items).astype(np.float64, copy=False)

    def _place(self, window: int) -> int:
        if not 0 <= window < self.num_windows:
            raise IndexError(f"window {window} of {self.num_windows}")
        return int(np.searchsorted(self._first_window, window, side="right")) - 1
