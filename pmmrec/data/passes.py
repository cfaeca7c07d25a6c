"""Turn windows into the inputs, targets and drawn negatives of each pass of the user encoder."""
# S items of a window, l inputs of one row, L inputs of a pass, B windows, C negatives of a target, N items of a domain.
# A key names an item of the whole run.

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.contracts import Candidates, WindowPass
from pmmrec.data.examples import Examples
from pmmrec.data.noise import KeyedWindow, SlotPool, add_noise
from pmmrec.data.randomness import Purpose, generator
from pmmrec.errors import DataError
from pmmrec.packing import HostArray, Ints
from pmmrec.requests import (
    DrawnNegatives,
    Dropped,
    Masked,
    NegativeWeight,
    NextItems,
    Noised,
    Others,
    Requests,
    Shown,
    WindowRequest,
)

BLIND_ROUNDS = 16  # of drawing again in place of touched items, before the items that are left are listed
NO_TARGET = -1
MAX_KEPT = 4_000_000  # touched items of the users of a domain that are kept in memory, 8 bytes each


@dataclass(frozen=True)
class Row:
    """The inputs and targets of one window in one pass, without padding; items are given by keys."""

    input_l: Ints
    target_l: Ints | None = None  # NO_TARGET where there is none; None: there are none
    is_masked_l: NDArray[np.bool_] | None = None
    noise_l: Ints | None = None
    is_reworded_l: NDArray[np.bool_] | None = None
    negative_lC: Mapping[DrawnNegatives, Ints] = field(default_factory=dict)  # NO_TARGET where there is no target
    shown_c: Ints | None = None  # candidates; None: there are none
    is_clicked_c: NDArray[np.bool_] | None = None

    @property
    def other_keys(self) -> list[Ints]:
        """The items that may lie outside of its window: replacements, negatives and candidates."""
        drawn = [negative_lC[negative_lC[:, 0] != NO_TARGET].ravel() for negative_lC in self.negative_lC.values()]
        replaced = [] if self.noise_l is None else [self.input_l]
        return [*replaced, *drawn, *([] if self.shown_c is None else [self.shown_c])]


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


@dataclass(frozen=True)
class Visit:
    """Which visit to which window a row is made for; with the seed it decides all that is drawn."""

    window: KeyedWindow
    visit: int
    number: int  # of the window in its domain
    has_history: bool = True  # False: all of its items are targets, and none is an input
    last_alone_counts: bool = False  # only the last item may be a target
    shown: KeyedImpression | None = None


@dataclass(frozen=True)
class KeyedImpression:
    """The candidates of an example as keys, and which of them were clicked."""

    keys: Ints
    is_clicked: NDArray[np.bool_]


class PassMaker:
    """Makes the rows of all passes that are asked for, as a pure function of (seed, visit, domain, window)."""

    def __init__(self, requests: Requests, pools: Sequence[NegativePool], seed: int) -> None:
        """`pools`: of each domain. DataError where one of its users has no item left that could be a negative."""
        self._passes, self._pools, self._seed = requests.passes, pools, seed
        for pool in pools:
            pool.check(requests.drawn)
        self.reads_others = any(isinstance(request, Noised) for request in self._passes)
        self.adds_items = any(self._passes.values()) or any(isinstance(request, Shown) for request in self._passes)

    def rows(self, visit: Visit, pool: SlotPool | None) -> dict[WindowRequest, Row]:
        """The row of each pass, but for passes that `Windows.next_items` gives already.

        `pool`: all windows of the step; needed where noise is asked for.
        """
        rows: dict[WindowRequest, Row] = {}
        for request, drawn in self._passes.items():
            if isinstance(request, NextItems) and not drawn and visit.has_history:
                continue
            row = self._row(request, visit, pool)
            rows[request] = self._with_negatives(row, visit, drawn) if drawn else row
        return rows

    def _row(self, request: WindowRequest, visit: Visit, pool: SlotPool | None) -> Row:
        keys = visit.window.keys
        if isinstance(request, Noised):
            if pool is None:
                raise ValueError("noise: replacements come from the windows of the step; give them")
            noised, noise = add_noise(visit.window, pool, request, self._random(Purpose.NOISE, visit))
            return Row(noised, noise_l=noise)
        if isinstance(request, Masked):
            is_masked = self._masked(len(keys), request, visit)
            return Row(keys, np.where(is_masked, keys, NO_TARGET), is_masked)
        if isinstance(request, Others):
            return Row(keys, np.where(_is_last(len(keys)), keys, NO_TARGET) if visit.last_alone_counts else keys)
        if isinstance(request, Shown):
            shown = self._shown(request, visit)
            return Row(keys, shown_c=shown.keys, is_clicked_c=shown.is_clicked)
        if isinstance(request, Dropped):
            return self._dropped(keys[:-1], request, self._random(Purpose.DROPPING, visit))
        if not isinstance(request, NextItems):
            raise TypeError(f"passes: nothing is known of windows of the kind {type(request).__name__}")
        inputs, targets = (keys[:-1], keys[1:]) if visit.has_history else (keys[:0], keys)
        if visit.last_alone_counts:
            targets = np.where(_is_last(len(targets)), targets, NO_TARGET)
        return Row(inputs, targets)

    def _masked(self, num_items: int, request: Masked, visit: Visit) -> NDArray[np.bool_]:
        if visit.last_alone_counts:
            return _is_last(num_items)
        rng = self._random(Purpose.MASKING, visit)
        is_masked = rng.random(num_items) < request.share
        if not is_masked.any():
            is_masked[rng.integers(0, num_items)] = True
        return is_masked

    def _dropped(self, inputs: Ints, request: Dropped, rng: np.random.Generator) -> Row:
        is_kept = rng.random(len(inputs)) >= request.share
        is_kept[:1] = True
        if not request.reworded:
            return Row(inputs[is_kept])
        if rng.random() >= request.reworded:
            return Row(inputs[is_kept], is_reworded_l=np.zeros(int(is_kept.sum()), dtype=bool))
        return Row(inputs, is_reworded_l=rng.random(len(inputs)) < request.reworded_items)

    def _shown(self, request: Shown, visit: Visit) -> KeyedImpression:
        """The candidates of an example, or the clicked ones and some others."""
        shown = visit.shown
        if shown is None:
            raise ValueError("passes: the examples have no candidates")
        others = np.flatnonzero(~shown.is_clicked)
        if request.num_not_clicked is None or len(others) <= request.num_not_clicked:
            return shown
        rng = self._random(Purpose.CANDIDATES, visit)
        drawn = rng.choice(others, request.num_not_clicked, replace=False)
        chosen = np.sort(np.concatenate([np.flatnonzero(shown.is_clicked), drawn]))
        return KeyedImpression(shown.keys[chosen], shown.is_clicked[chosen])

    def _with_negatives(self, row: Row, visit: Visit, drawn: frozenset[DrawnNegatives]) -> Row:
        if row.target_l is None:
            return row
        is_target = row.target_l != NO_TARGET
        negatives: dict[DrawnNegatives, Ints] = {}
        for config in drawn:
            if is_target.all():
                negatives[config] = self._negatives(row.target_l, visit, config)
                continue
            negative_lC = np.full((len(is_target), config.count), NO_TARGET, dtype=np.int64)
            negative_lC[is_target] = self._negatives(row.target_l[is_target], visit, config)
            negatives[config] = negative_lC
        return dataclasses.replace(row, negative_lC=negatives)

    def _negatives(self, target_k: Ints, visit: Visit, config: DrawnNegatives) -> Ints:
        """Keys of what is drawn for some targets, `(k, C)`."""
        pool, user = self._pools[visit.window.domain], visit.window.user
        kind = (config.count, int(config.by == "popularity"))
        if config.per == "position":
            return pool.draw(user, len(target_k), config, self._random(Purpose.NEGATIVES, visit, *kind))
        keys, place_k = np.unique(target_k, return_inverse=True)
        pair = (self._seed, Purpose.PAIR_NEGATIVES, visit.visit, visit.window.domain, user)
        drawn = [pool.draw(user, 1, config, generator(*pair, key, *kind)) for key in keys.tolist()]
        return np.concatenate(drawn)[place_k]

    def _random(self, purpose: Purpose, visit: Visit, *place: int) -> np.random.Generator:
        return generator(self._seed, purpose, visit.visit, visit.window.domain, visit.number, *place)


def _is_last(length: int) -> NDArray[np.bool_]:
    is_last: NDArray[np.bool_] = np.arange(length) == length - 1
    return is_last


def padded(rows: Sequence[Row], key_U: Ints, length: int) -> WindowPass:
    """The rows of one pass, left-padded to `length`, over the distinct items `key_U`, which rise."""
    first, inputs = rows[0], [row.input_l for row in rows]
    masked = [row.is_masked_l for row in rows if row.is_masked_l is not None]
    noise = [row.noise_l for row in rows if row.noise_l is not None]
    reworded = [row.is_reworded_l for row in rows if row.is_reworded_l is not None]
    targets = [row.target_l for row in rows if row.target_l is not None]
    item_index_BL = padded_places(inputs, key_U, length)
    target_index_BL, is_target_BL = torch.zeros_like(item_index_BL), torch.zeros(item_index_BL.shape, dtype=torch.bool)
    if targets:
        target_index_BL = padded_places(targets, key_U, length)
        is_target_BL = left_padded([target != NO_TARGET for target in targets], length)
    return WindowPass(
        item_index_BL=item_index_BL,
        is_valid_BL=filled([len(keys) for keys in inputs], length),
        length_B=HostArray([len(keys) for keys in inputs]),
        target_index_BL=target_index_BL,
        is_target_BL=is_target_BL,
        is_masked_BL=left_padded(masked, length) if masked else None,
        noise_BL=left_padded(noise, length) if noise else None,
        is_reworded_BL=left_padded(reworded, length) if reworded else None,
        negative_index_BLC={
            config: padded_places([row.negative_lC[config] for row in rows], key_U, length)
            for config in first.negative_lC
        },
        candidates=_candidates(rows, key_U),
    )


def _candidates(rows: Sequence[Row], key_U: Ints) -> Candidates | None:
    """The candidates of several rows, left-padded; None where there are none."""
    shown = [row.shown_c for row in rows if row.shown_c is not None]
    if not shown:
        return None
    lengths = [len(keys) for keys in shown]
    clicked = [row.is_clicked_c for row in rows if row.is_clicked_c is not None]
    return Candidates(
        padded_places(shown, key_U, max(lengths)), filled(lengths, max(lengths)), left_padded(clicked, max(lengths))
    )


def padded_places(rows: Sequence[Ints], key_U: Ints, length: int) -> Tensor:
    """Places of keys among the distinct items, `(B, length, ...)`; 0 before each row and where there is no target."""
    keys = np.concatenate(rows)
    places = np.where(keys == NO_TARGET, 0, np.searchsorted(key_U, keys))
    return _laid_out(places, [len(row) for row in rows], length)


def left_padded(rows: Sequence[NDArray[Any]], length: int) -> Tensor:
    """`(B, length, ...)` of the rows' own kind, with zeros before each row."""
    return _laid_out(np.concatenate(rows), [len(row) for row in rows], length)


def _laid_out(values: NDArray[Any], lengths: Sequence[int], length: int) -> Tensor:
    """`(B, length, ...)`: the values of rows of these lengths, with zeros before each row."""
    padded = np.zeros((len(lengths), length, *values.shape[1:]), dtype=values.dtype)
    padded[filled(lengths, length).numpy()] = values
    return torch.from_numpy(padded)


def filled(lengths: Sequence[int], length: int) -> Tensor:
    """`(B, length)` bool: which places rows of these lengths fill, on the right."""
    return torch.from_numpy(np.arange(length) >= length - np.array(lengths)[:, None])
