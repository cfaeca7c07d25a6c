"""Noise has the means that it promises, moves what it says it moves, and labels items, not places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pmmrec.data.noise import KeyedWindow, SlotPool, add_noise
from pmmrec.requests import Noise, Noised

DRAWS = 4000


def window(keys: list[int] | range, user: int = 0, domain: int = 0) -> KeyedWindow:
    return KeyedWindow(np.array(keys, dtype=np.int64), domain, user)


def corrupted(
    own: KeyedWindow, others: list[KeyedWindow], seed: int = 0, **config: Any
) -> tuple[np.ndarray, np.ndarray]:
    return add_noise(own, SlotPool([own, *others]), Noised(**config), np.random.default_rng(seed))


def labels_of_many(num_inputs: int, **config: Any) -> np.ndarray:
    """Labels of `DRAWS` corruptions of a window of distinct items."""
    own, other = window(range(num_inputs + 1)), window(range(100, 140), user=1)
    pool, settings, rng = SlotPool([own, other]), Noised(**config), np.random.default_rng(0)
    return np.stack([add_noise(own, pool, settings, rng)[1] for _ in range(DRAWS)])


@pytest.mark.parametrize("num_inputs", [2, 5, 9, 20])
def test_fifteen_percent_of_inputs_are_shuffled_on_average_and_never_one(num_inputs: int) -> None:
    num_shuffled = (labels_of_many(num_inputs) == Noise.SHUFFLED).sum(axis=1)
    assert 1 not in num_shuffled
    # Standard error .0056 and error measured .0033 at their widest (2 inputs).
    assert abs(num_shuffled.mean() / num_inputs - 0.15) < 0.015


@pytest.mark.parametrize("num_inputs", [1, 5, 20])
def test_five_percent_of_inputs_are_replaced_on_average(num_inputs: int) -> None:
    num_replaced = (labels_of_many(num_inputs) == Noise.REPLACED).sum(axis=1)
    # Standard error .0036 and error measured .0045 at their widest (1 input).
    assert abs(num_replaced.mean() / num_inputs - 0.05) < 0.01


def test_a_window_with_one_input_is_never_shuffled() -> None:
    assert not (labels_of_many(1, shuffle=0.9) == Noise.SHUFFLED).any()


def test_every_place_is_shuffled_equally_often() -> None:
    per_place = (labels_of_many(5) == Noise.SHUFFLED).mean(axis=0)
    assert np.abs(per_place - 0.15).max() < 0.025  # standard error .0056


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_inputs_take_each_others_items_and_all_of_them_move(seed: int) -> None:
    own = window(range(11))
    keys, noise = corrupted(own, [], seed, shuffle=0.5)
    moved = keys != own.keys[:-1]
    assert moved.sum() == 5
    np.testing.assert_array_equal(noise == Noise.SHUFFLED, moved)
    assert sorted(keys) == list(range(10))


def test_the_shuffled_items_go_round_in_one_cycle() -> None:
    keys, _ = corrupted(window(range(9)), [], shuffle=1.0, replace=0)
    place, steps = int(keys[0]), 1
    while place != 0:
        place, steps = int(keys[place]), steps + 1
    assert steps == 8


@pytest.mark.parametrize("seed", range(20))
def test_labels_compare_items_and_not_places(seed: int) -> None:
    own = window([1, 1, 1, 2, 2, 2, 3])
    keys, noise = corrupted(own, [], seed, shuffle=1.0, replace=0)
    np.testing.assert_array_equal(noise == Noise.SHUFFLED, keys != own.keys[:-1])


def test_a_window_of_one_repeated_item_stays_unchanged() -> None:
    keys, noise = corrupted(window([4] * 9), [], shuffle=1.0, replace=0)
    assert (keys == 4).all()
    assert (noise == Noise.UNCHANGED).all()


def test_replacements_come_from_other_users_and_are_not_in_the_window() -> None:
    own, again, other = window(range(9)), window(range(20, 30)), window([0, 1, 8, 50, 51], user=1)
    for seed in range(30):
        keys, noise = corrupted(own, [again, other], seed, shuffle=0, replace=1.0)
        assert (noise == Noise.REPLACED).all()
        assert set(keys.tolist()) <= {50, 51}  # 8 is the target, 20 to 29 are of another window of the same user


def test_by_default_replacements_come_from_the_same_domain() -> None:
    others = [window([100, 101], user=1, domain=1), window([50, 51], user=1), window([7, 9], user=0, domain=2)]
    same, _ = corrupted(window(range(9)), others, replace=1.0, shuffle=0)
    any_domain = [corrupted(window(range(9)), others, s, replace=1.0, shuffle=0, replace_from="batch") for s in (0, 1)]
    assert set(same.tolist()) == {50, 51}
    assert set(np.concatenate([keys for keys, _ in any_domain]).tolist()) == {50, 51, 100, 101, 9}


def test_without_a_candidate_the_input_stays() -> None:
    other_domain, same_items = window([100, 101], user=1, domain=1), window([3, 4], user=2)
    keys, noise = corrupted(window(range(6)), [other_domain, same_items], shuffle=0, replace=1.0)
    np.testing.assert_array_equal(keys, range(5))
    assert (noise == Noise.UNCHANGED).all()


def test_the_only_candidate_of_a_large_batch_is_found() -> None:
    crowd = [window(range(6), user=user) for user in range(1, 400)]
    keys, _ = corrupted(window(range(6)), [*crowd, window([2, 77], user=400)], shuffle=0, replace=1.0)
    assert (keys == 77).all()


def test_frequent_items_replace_more_often() -> None:
    own, other = window(range(2)), window([50, 50, 50, 51], user=1)
    pool, rng = SlotPool([own, other]), np.random.default_rng(0)
    drawn = [add_noise(own, pool, Noised(shuffle=0, replace=1), rng)[0][0] for _ in range(DRAWS)]
    assert abs(np.mean(np.array(drawn) == 50) - 0.75) < 0.025  # standard error .0068


def test_shuffled_and_replaced_inputs_are_disjoint() -> None:
    keys, noise = corrupted(window(range(11)), [window(range(50, 60), user=1)], shuffle=0.5, replace=0.5)
    assert (noise == Noise.SHUFFLED).sum() == (noise == Noise.REPLACED).sum() == 5
    np.testing.assert_array_equal(keys >= 50, noise == Noise.REPLACED)


def test_noise_beyond_all_inputs_is_refused() -> None:
    with pytest.raises(ValidationError, match="sum must be at most 1"):
        Noised(shuffle=0.7, replace=0.5)
