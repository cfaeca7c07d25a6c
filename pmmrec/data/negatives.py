"""Draw items that a user did not touch, as negatives of the items that are right."""
# N items of the domain, B users, C negatives of a target, H numbers drawn for all users, h of them in question.

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.examples import Examples
from pmmrec.errors import DataError
from pmmrec.packing import Ints
from pmmrec.requests import DrawnNegatives, NegativeWeight

BLIND_ROUNDS = 16  # of drawing again in place of touched items, before the items that are left are listed
MAX_KEPT = 4_000_000  # touched items of the users of a domain that are kept in memory, 8 bytes each
MAX_JOINED = 1 << 18  # touched items of the users of a batch that are searched in one list
SPARE = 4  # numbers drawn for a user beyond twice as many as are needed


class NegativePool:
    """Draws items of one domain that a user did not touch and that a model can read."""

    def __init__(self, examples: Examples, first_key: int, is_readable_N: NDArray[np.bool_]) -> None:
        """`examples`: of the domain; they say what users touched. `first_key`: of the domain's first item."""
        self._examples, self._split, self._first_key = examples, examples.split, first_key
        self._unreadable = np.flatnonzero(~is_readable_N)
        self._cumulative_N: NDArray[np.float64] | None = None
        self._seen_by: dict[int, Ints] = {}
        self._num_kept = 0

    def check(self, asked: Iterable[DrawnNegatives]) -> None:
        """DataError that names a user who touched every item that negatives can be drawn from."""
        for by in sorted({config.by for config in asked}):
            opens = np.flatnonzero(self._weights(by))
            for user in self._examples.users_who_touched(len(opens)):
                if not len(np.setdiff1d(opens, self._examples.touched(user))):
                    raise DataError(self._nothing_left(user, len(opens), by))

    def draw(self, user: int, num_targets: int, config: DrawnNegatives, rng: np.random.Generator) -> Ints:
        """Keys of negatives, `(num_targets, count)`, for a user whom `check` lets pass."""
        seen = self._seen(user)
        drawn = self._rows(num_targets * config.count, config, rng)
        for _ in range(BLIND_ROUNDS):
            is_seen = _is_among(drawn, seen)
            if not is_seen.any():
                break
            drawn[is_seen] = self._rows(int(is_seen.sum()), config, rng)
        else:
            drawn = self._listed(seen, len(drawn), config, rng)
        keys: Ints = self._first_key + drawn.reshape(num_targets, config.count)
        return keys

    def draw_each(
        self,
        users: Sequence[int],
        num_targets: Sequence[int],
        config: DrawnNegatives,
        random: Callable[[int], np.random.Generator],
    ) -> list[Ints]:
        """What `draw` gives for each of several users, whose generators `random` makes by their place.

        A generator gives the same numbers in one piece as in several, so each draws a few more than are needed, and
        these replace touched items of all users at once.
        """
        size_B = np.array(num_targets) * config.count
        length_B = 2 * size_B + SPARE
        drawn_H = np.concatenate(
            [self._rows(length, config, random(place)) for place, length in enumerate(length_B.tolist())]
        )
        user_H, first_B = np.repeat(np.arange(len(users)), length_B), np.cumsum(length_B) - length_B
        is_seen_H, used_B = self._are_seen(users, drawn_H, user_H), size_B.copy()
        is_own_H = np.arange(len(drawn_H)) < np.repeat(first_B + size_B, length_B)
        open_h = np.flatnonzero(is_own_H & is_seen_H)
        again: set[int] = set()  # users for whom the spare numbers are too few
        for _ in range(BLIND_ROUNDS - 1):
            if not len(open_h):
                break
            user_h = user_H[open_h]
            next_h = used_B[user_h] + np.arange(len(user_h)) - np.searchsorted(user_h, user_h)
            is_short_h = np.isin(user_h, user_h[next_h >= length_B[user_h]])
            again.update(user_h[is_short_h].tolist())
            open_h, user_h, next_h = open_h[~is_short_h], user_h[~is_short_h], next_h[~is_short_h]
            source_h = first_B[user_h] + next_h
            drawn_H[open_h] = drawn_H[source_h]
            used_B += np.bincount(user_h, minlength=len(users))
            open_h = open_h[is_seen_H[source_h]]
        again.update(user_H[open_h].tolist())
        drawn_H += self._first_key
        keys = [
            drawn_H[first : first + size].reshape(-1, config.count)
            for first, size in zip(first_B.tolist(), size_B.tolist(), strict=True)
        ]
        for place in again:
            keys[place] = self.draw(users[place], num_targets[place], config, random(place))
        return keys

    def _are_seen(self, users: Sequence[int], row_H: Ints, user_H: Ints) -> NDArray[np.bool_]:
        """Which rows are not to be drawn for their users; `user_H`: places in `users`, rising."""
        seen, num_items = [self._seen(user) for user in users], self._split.domain.num_items
        lengths = [len(rows) for rows in seen]
        if sum(lengths) <= MAX_JOINED:
            rising = np.concatenate(seen) + np.repeat(np.arange(len(users)) * num_items, lengths)
            return _is_among(row_H + user_H * num_items, rising)
        places = np.searchsorted(user_H, np.arange(1, len(users)))
        rows = zip(np.split(row_H, places), seen, strict=True)
        return np.concatenate([_is_among(row_h, rising) for row_h, rising in rows])

    def _seen(self, user: int) -> Ints:
        """Rows that are not drawn for a user, in rising order; those of the users that came first are kept."""
        seen = self._seen_by.get(user)
        if seen is None:
            seen = np.sort(np.concatenate([self._examples.touched(user), self._unreadable]).astype(np.int64))
            if self._num_kept + len(seen) <= MAX_KEPT:
                self._seen_by[user] = seen
                self._num_kept += len(seen)
        return seen

    def _rows(self, count: int, config: DrawnNegatives, rng: np.random.Generator) -> Ints:
        if config.by == "uniform":
            return rng.integers(0, self._split.domain.num_items, size=count)
        if self._cumulative_N is None:
            self._cumulative_N = np.cumsum(self._split.train_counts, dtype=np.float64)
        drawn = rng.random(count) * self._cumulative_N[-1]
        rows: Ints = np.searchsorted(self._cumulative_N, drawn, side="right").astype(np.int64)
        return rows

    def _listed(self, seen: Ints, count: int, config: DrawnNegatives, rng: np.random.Generator) -> Ints:
        """Rows drawn from a list of the items that are left, for users who touched almost all."""
        weight_N = self._weights(config.by)
        weight_N[seen] = 0
        return rng.choice(len(weight_N), count, p=weight_N / weight_N.sum()).astype(np.int64)

    def _weights(self, by: NegativeWeight) -> NDArray[np.float64]:
        """How likely each item is drawn for a user who touched nothing, `(N,)`; the sum is not 1."""
        is_popular = by == "popularity"
        counts_N = self._split.train_counts if is_popular else np.ones(self._split.domain.num_items)
        weight_N = counts_N.astype(np.float64)
        weight_N[self._unreadable] = 0
        return weight_N

    def _nothing_left(self, user: int, num_open: int, by: NegativeWeight) -> str:
        """What is wrong where a user touched all items that can be drawn, and what to do."""
        domain = self._split.domain
        which = "that someone touched in training, from which " if by == "popularity" else "from which "
        other = "draw them uniformly (negatives: {by: uniform}), " if by == "popularity" else ""
        return (
            f"{domain.folder}: user {domain.sequences.user_id(user)!r} touched all {num_open:,} items {which}negatives "
            f"are drawn; {other}import the domain without the user, or choose an objective without drawn negatives"
        )


def _is_among(items: Ints, rising: Ints) -> NDArray[np.bool_]:
    """Which items are in an array that does not fall; as `np.isin`, which takes much longer for a few."""
    if not len(rising):
        return np.zeros(len(items), dtype=bool)
    found: NDArray[np.bool_] = rising.take(rising.searchsorted(items), mode="clip") == items
    return found
