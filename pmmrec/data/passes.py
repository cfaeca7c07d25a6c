"""Turn windows into the inputs, targets and drawn negatives of each pass of the user encoder."""
# S items of a window, l inputs of one row, L inputs of a pass, B windows, C negatives of a target, N items of a domain.
# A key names an item of the whole run.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.contracts import Candidates, WindowPass
from pmmrec.data.negatives import NegativePool
from pmmrec.data.noise import KeyedWindow, SlotPool, add_noise
from pmmrec.data.randomness import Purpose, generator
from pmmrec.packing import HostArray, Ints
from pmmrec.requests import (
    DrawnNegatives,
    Dropped,
    Masked,
    NextItems,
    Noised,
    Others,
    Requests,
    Shown,
    WindowRequest,
)

NO_TARGET = -1


@dataclass(frozen=True)
class Row:
    """The inputs and targets of one window in one pass, without padding; items are given by keys."""

    input_l: Ints
    target_l: Ints | None = None  # NO_TARGET where there is none; None: there are none
    is_masked_l: NDArray[np.bool_] | None = None
    noise_l: Ints | None = None
    is_reworded_l: NDArray[np.bool_] | None = None
    shown_c: Ints | None = None  # candidates; None: there are none
    is_clicked_c: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class PassRows:
    """The rows of all windows of a batch in one pass, and what was drawn for their targets."""

    rows: Sequence[Row]
    negatives: Mapping[DrawnNegatives, Sequence[Ints]] = field(default_factory=dict)  # (l, C) of each; NO_TARGET: none

    @property
    def other_keys(self) -> list[Ints]:
        """The items that may lie outside of the windows: replacements, negatives and candidates."""
        replaced = [row.input_l for row in self.rows if row.noise_l is not None]
        shown = [row.shown_c for row in self.rows if row.shown_c is not None]
        drawn = [np.concatenate(negatives).ravel() for negatives in self.negatives.values()]
        return [*replaced, *shown, *(keys[keys != NO_TARGET] for keys in drawn)]


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
        self._drawn_for_last = requests.drawn_for_last
        for pool in pools:
            pool.check(requests.drawn)
        self.reads_others = any(isinstance(request, Noised) for request in self._passes)
        self.adds_items = any(self._passes.values()) or any(isinstance(request, Shown) for request in self._passes)

    def rows(self, visits: Sequence[Visit], pool: SlotPool | None) -> dict[WindowRequest, PassRows]:
        """The rows of each pass, but for passes that `Windows.next_items` gives already.

        `pool`: all windows of the step; needed where noise is asked for.
        """
        found: dict[WindowRequest, PassRows] = {}
        for request, drawn in self._passes.items():
            if isinstance(request, NextItems) and not drawn and all(visit.has_history for visit in visits):
                continue
            rows = [self._row(request, visit, pool) for visit in visits]
            targets = [row.target_l for row in rows if row.target_l is not None]
            negatives = {
                config: self._negatives(self._drawn_for(targets, request, config), visits, config)
                for config in (drawn if targets else ())
            }
            found[request] = PassRows(rows, negatives)
        return found

    def _drawn_for(self, targets: Sequence[Ints], request: WindowRequest, config: DrawnNegatives) -> Sequence[Ints]:
        """The targets for which negatives are drawn: all, or the last of each window."""
        if (request, config) not in self._drawn_for_last:
            return targets
        return [np.where(_is_last(len(target_l)), target_l, NO_TARGET) for target_l in targets]

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

    def _negatives(self, targets: Sequence[Ints], visits: Sequence[Visit], config: DrawnNegatives) -> Sequence[Ints]:
        """Keys of what is drawn for the targets of each window, `(l, C)`; NO_TARGET where there is none."""
        is_whole = not (np.concatenate(targets) == NO_TARGET).any()
        wanted = targets if is_whole else [target_l[target_l != NO_TARGET] for target_l in targets]
        drawn: dict[int, Ints] = {}
        for domain in sorted({visit.window.domain for visit in visits}):
            here = [place for place, visit in enumerate(visits) if visit.window.domain == domain]
            some = [(visits[place], wanted[place]) for place in here]
            draw = self._by_position if config.per == "position" else self._by_pair
            drawn.update(zip(here, draw(self._pools[domain], some, config), strict=True))
        if is_whole:
            return [drawn[place] for place in range(len(visits))]
        negatives = [np.full((len(target_l), config.count), NO_TARGET, dtype=np.int64) for target_l in targets]
        for place, negative_lC in enumerate(negatives):
            negative_lC[targets[place] != NO_TARGET] = drawn[place]
        return negatives

    def _by_position(
        self, pool: NegativePool, some: Sequence[tuple[Visit, Ints]], config: DrawnNegatives
    ) -> Sequence[Ints]:
        users, counts = [visit.window.user for visit, _ in some], [len(target_k) for _, target_k in some]

        def random(place: int) -> np.random.Generator:
            return self._random(Purpose.NEGATIVES, some[place][0], config.count, int(config.by == "popularity"))

        return pool.draw_each(users, counts, config, random)

    def _by_pair(
        self, pool: NegativePool, some: Sequence[tuple[Visit, Ints]], config: DrawnNegatives
    ) -> Sequence[Ints]:
        kind, drawn = (config.count, int(config.by == "popularity")), []
        for visit, target_k in some:
            keys, place_k = np.unique(target_k, return_inverse=True)
            domain, user = visit.window.domain, visit.window.user
            pair = (self._seed, Purpose.PAIR_NEGATIVES, visit.visit, domain, user)
            negatives = [pool.draw(user, 1, config, generator(*pair, key, *kind)) for key in keys.tolist()]
            drawn.append(np.concatenate(negatives)[place_k])
        return drawn

    def _random(self, purpose: Purpose, visit: Visit, *place: int) -> np.random.Generator:
        return generator(self._seed, purpose, visit.visit, visit.window.domain, visit.number, *place)


def _is_last(length: int) -> NDArray[np.bool_]:
    is_last: NDArray[np.bool_] = np.arange(length) == length - 1
    return is_last


def padded(of_pass: PassRows, key_U: Ints, length: int) -> WindowPass:
    """The rows of one pass, left-padded to `length`, over the distinct items `key_U`, which rise."""
    rows = of_pass.rows
    inputs = [row.input_l for row in rows]
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
            config: padded_places(negatives, key_U, length) for config, negatives in of_pass.negatives.items()
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
