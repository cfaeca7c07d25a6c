"""Choose which targets are ranked: test, validation, cold items, new items, or items of the last days."""
# Q queries, T targets, H interactions of all users, one after another.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.splits import Holdout, HoldoutName, Split, SplitPart
from pmmrec.errors import DataError, RecipeError

Stratum = Literal["all", "regular", "cold", "new"]
STRATA: tuple[Stratum, ...] = get_args(Stratum)
Scenario = Literal["regular", "validation", "cold", "new", "latest"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)

COLD_BELOW = 10  # occurrences in training; PMMRec (section IV-F) calls an item with fewer cold
POPULARITY: Mapping[str, int] = {"0": 0, "1-9": 1, "10-99": 10, "100+": 100}  # stratum -> fewest occurrences


@dataclass(frozen=True)
class Queries:
    """Histories and the targets of each. In `cold`, `new` and `latest` a user may have several queries, of one each."""

    scenario: Scenario
    holdout: Holdout  # ordered by user and position
    place_T: NDArray[np.int64] | None  # of the target in its user's sequence, from 0; None where users have one query
    is_held_out_T: NDArray[np.bool_]  # False: the step to the target lies in the training part

    @property
    def num_queries(self) -> int:
        return self.holdout.num_queries


def scenario_queries(split: Split, scenario: str) -> Queries:
    """The queries of a scenario. Each target is ranked among the whole catalogue, including new items.

    `regular`: the test targets of the split; under leave-one-out the last item of each user with three or more.

    `validation`: its validation targets, to choose among systems without a look at the test.

    `cold`: all sub-sequences that end in a cold item, which occurs fewer than 10 times in training (PMMRec, section
    IV-F; MoRec). Every position of a user but the first counts, and the history of a target is everything before it.
    Many of these steps lie in the training part: a model trained on this domain has seen them, and the baselines count
    them. `is_held_out_T` marks the others, which the split holds out, so that figures can be given for all targets, as
    in the paper, and for the held-out ones. Validation items were only used to choose the epoch. For a model that never
    saw the domain both sets are fair.

    `new`: all sub-sequences that end in an item that never occurs in training (MoRec). None is a training step.

    `latest`: all sub-sequences that end in an item that occurs in the test part alone: under `global_time` an item that
    appeared after its last point in time, such as on the last day. Validation did not know it either.

    Raises RecipeError for an unknown scenario, DataError if the domain has no such target.
    """
    if scenario == "regular":
        queries = _held_out(split, "regular", "test")
    elif scenario == "validation":
        queries = _held_out(split, "validation", "validation")
    elif scenario == "cold":
        queries = _ending_in(split, "cold", split.train_counts < COLD_BELOW)
    elif scenario == "new":
        queries = _ending_in(split, "new", split.train_counts == 0)
    elif scenario == "latest":
        queries = _ending_in(split, "latest", ~_is_known_before_test(split))
    else:
        raise RecipeError(f"scenario {scenario!r}: no such scenario; there are: {', '.join(SCENARIOS)}")
    if not queries.num_queries:
        lacking = {
            "regular": f"{split.no_query}, so there is no test target",
            "validation": f"{split.no_query}, so there is no validation target",
            "cold": f"every item that is a target occurs {COLD_BELOW} times or more in training, so none is cold",
            "new": "every item that is a target occurs in training, so none is new",
            "latest": "every item that is a target occurs before the test part, so none appeared in it",
        }
        raise DataError(f"{split.domain.folder}: {lacking[queries.scenario]}; choose another scenario")
    return queries


def _held_out(split: Split, scenario: Scenario, name: HoldoutName) -> Queries:
    """The queries of a part of the split, one for each user."""
    holdout = split.holdout(name)
    return Queries(scenario, holdout, None, np.ones(len(holdout.target), dtype=np.bool_))


def _is_known_before_test(split: Split) -> NDArray[np.bool_]:
    """Whether each item occurs outside the test part, whoever trains, `(N,)`."""
    is_known_N = np.zeros(split.domain.num_items, dtype=bool)
    for stretch in split.stretches():
        is_known_N[stretch.item_H[split.parts(stretch) != SplitPart.TEST]] = True
    return is_known_N


def _ending_in(split: Split, scenario: Scenario, is_asked_N: NDArray[np.bool_]) -> Queries:
    """Every sub-sequence of a user's items that ends in one of these items."""
    offsets, items_H = split.domain.sequence_offsets.astype(np.int64), np.asarray(split.domain.sequence_items)
    lengths = np.diff(offsets)
    user_H = np.repeat(np.arange(len(lengths)), lengths)
    place_H = np.arange(len(items_H)) - offsets[user_H]
    is_ranked_M = np.ones(len(lengths), dtype=bool) if split.users is None else split.users.is_ranked_M
    end_Q = np.flatnonzero((place_H > 0) & is_asked_N[items_H] & is_ranked_M[user_H])
    user_Q, place_Q = user_H[end_Q], place_H[end_Q]
    history_offsets = np.concatenate([[0], np.cumsum(place_Q)])
    within = np.arange(history_offsets[-1]) - np.repeat(history_offsets[:-1], place_Q)
    history_items = items_H[np.repeat(offsets[user_Q], place_Q) + within].astype(np.int32)
    target_Q = items_H[end_Q].astype(np.int64)
    is_held_out_T = np.concatenate(list(split.held_out()))[end_Q]
    target_offsets = np.arange(len(target_Q) + 1)
    holdout = Holdout("test", user_Q, target_offsets, target_Q, history_offsets, history_items)
    return Queries(scenario, holdout, place_Q, is_held_out_T)


def popularity_masks(split: Split, target_T: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """For each stratum of POPULARITY, which targets occur that often in training, `(T,)`."""
    least = list(POPULARITY.values())
    stratum_T = np.searchsorted(least, split.train_counts[target_T], side="right") - 1
    return {name: np.asarray(stratum_T == place) for place, name in enumerate(POPULARITY)}


def stratum_mask(split: Split, holdout: Holdout, stratum: str) -> NDArray[np.bool_]:
    """Which targets belong to a stratum, `(T,)`, by how often the target occurs in training.

    `regular`: at least 10 times; `cold`: fewer than 10; `new`: never, a part of cold. Histories stay whole; strata
    only select targets. RecipeError for an unknown stratum.
    """
    count_T = split.train_counts[holdout.target]
    if stratum == "all":
        return np.ones(len(count_T), dtype=np.bool_)
    if stratum == "regular":
        return np.asarray(count_T >= COLD_BELOW)
    if stratum == "cold":
        return np.asarray(count_T < COLD_BELOW)
    if stratum == "new":
        return np.asarray(count_T == 0)
    raise RecipeError(f"stratum {stratum!r}: no such stratum; there are: {', '.join(STRATA)}")
