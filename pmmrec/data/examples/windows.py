"""Windows of the users' histories as examples."""
# S window positions.

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pmmrec.data.examples import ExampleKind, Examples, example_kinds
from pmmrec.data.splits import Split
from pmmrec.data.validation_examples import ValidationExamples
from pmmrec.requests import Holding
from pmmrec.settings import Config, PartConfig

MAX_HELD = 4_000_000  # interactions of a domain that are held in memory, 4 bytes each
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


class WindowKindConfig(PartConfig):
    """Settings of windows as examples; how they are cut is said under `data.window`."""

    type: Literal["windows"] = "windows"


@example_kinds.register("windows", WindowKindConfig)
class WindowKind(ExampleKind):
    """An example is a window of a user's history: several items in their order.

    Example:
        data: {examples: windows, window: {size: 21, policy: random}}
    """

    holds = frozenset({Holding.USER, Holding.HISTORY, Holding.TARGET})
    reads_window = True

    @property
    def longest(self) -> int:
        return self.window.size

    def training(self, split: Split) -> Examples:
        return WindowIndex(split, self.window)

    def validation(self, split: Split, num_users: int | None) -> Examples:
        return ValidationExamples(split, self.num_inputs, num_users)


class WindowIndex(Examples):
    """The windows of one domain's training split, numbered from 0.

    Only users with two training items or more have windows: fewer hold no next item. `latest` and `random` give one
    window a user; `all` cuts a history from its end into chunks that share one item, so that no step is lost.
    """

    least_touched = 2

    def __init__(self, split: Split, config: WindowConfig) -> None:
        self.split, self._config = split, config
        users = np.empty(split.domain.num_users, np.min_scalar_type(split.domain.num_users))
        self._num_users, num_windows = 0, []
        self._shows_all_once = config.policy != "all"
        for first, lengths in split.train_lengths():
            self._shows_all_once &= bool(((lengths >= 2) & (lengths <= config.size)).all())
            can_train = np.flatnonzero(lengths >= 2)
            users[self._num_users : self._num_users + len(can_train)] = first + can_train
            self._num_users += len(can_train)
            if config.policy == "all":
                num_windows.append(-(-(lengths[can_train] - 1) // (config.size - 1)))
        self._users = users[: self._num_users] if self._num_users < len(users) else None  # None: everyone, in order
        self._first_window = (
            np.concatenate([[0], np.cumsum(np.concatenate(num_windows))]) if config.policy == "all" else None
        )

    @property
    def draws(self) -> bool:
        return self._config.policy == "random"

    @property
    def num_examples(self) -> int:
        return self._num_users if self._first_window is None else int(self._first_window[-1])

    def user(self, window: int) -> int:
        """The user whose history the window lies in."""
        return self._user(self._place(window))

    def items(self, window: int, generator: np.random.Generator) -> NDArray[np.int32]:
        """Item rows of a window, oldest first: S of them where the history allows, never fewer than two.

        `generator` is read under `random` only, where each start is equally likely.
        """
        place = self._place(window)
        history = self._history(self._user(place))
        size = self._config.size
        end = len(history)
        if self._config.policy == "random" and end > size:
            end = size + int(generator.integers(0, end - size + 1))
        elif self._config.policy == "all":
            end -= self._chunk(window, place) * (size - 1)
        return history[max(0, end - size) : end]

    def length(self, window: int) -> int:
        """How many items a window holds, without drawing it."""
        place = self._place(window)
        length = self.split.train_length(self._user(place))
        return min(length - self._chunk(window, place) * (self._config.size - 1), self._config.size)

    def expected_slots(self) -> NDArray[np.float64]:
        """How often each item of the domain is expected to be shown when every window is drawn once, `(N,)`."""
        if self._shows_all_once:
            return self.split.train_counts.astype(np.float64)
        slots_N = np.zeros(self.split.domain.num_items)
        for stretch in self.split.train_stretches():
            weights = self._slots(stretch.offset_B)
            slots_N += np.bincount(stretch.item_H, weights=weights, minlength=len(slots_N))
        return slots_N

    def _slots(self, offset_B: NDArray[np.int64]) -> NDArray[np.float64]:
        """In how many windows each item of these histories is expected, `(H,)`: its place and their length tell."""
        lengths = np.diff(offset_B)
        kinds, kind_B = np.unique(lengths, return_inverse=True)
        starts = np.concatenate([[0], np.cumsum(kinds)])
        table: NDArray[np.float64] = np.concatenate([np.empty(0), *map(self._slots_of, kinds.tolist())])
        slots: NDArray[np.float64] = table[np.arange(offset_B[-1]) + np.repeat(starts[kind_B] - offset_B[:-1], lengths)]
        return slots

    def _slots_of(self, length: int) -> NDArray[np.float64]:
        """In how many windows each item of a history is expected, `(length,)`."""
        place, size = np.arange(length), self._config.size
        if length < 2:
            return np.zeros(length)
        if self._config.policy == "latest":
            return (place >= length - size).astype(np.float64)
        if self._config.policy == "all":
            is_shared = (place > 0) & (place < length - 1) & ((length - 1 - place) % (size - 1) == 0)
            return np.where(is_shared, 2.0, 1.0)
        num_starts = max(length - size, 0) + 1
        first, last = np.maximum(place - size + 1, 0), np.minimum(place, num_starts - 1)
        return np.asarray((last - first + 1) / num_starts, dtype=np.float64)

    def _chunk(self, window: int, place: int) -> int:
        """Which chunk of its history a window is, from the end of it; 0 where a history has one window."""
        return 0 if self._first_window is None else window - int(self._first_window[place])

    def _history(self, user: int) -> NDArray[np.int32]:
        """Training items of a user, from memory where all of a domain's fit."""
        if self.split.domain.num_interactions > MAX_HELD:
            return self.split.train(user)
        offsets = self.split.train_offsets
        return self.split.train_items[offsets[user] : offsets[user + 1]]

    def _user(self, place: int) -> int:
        return place if self._users is None else int(self._users[place])

    def _place(self, window: int) -> int:
        if not 0 <= window < self.num_examples:
            raise IndexError(f"window {window} of {self.num_examples}")
        if self._first_window is None:
            return window
        return int(self._first_window.searchsorted(window, side="right")) - 1
