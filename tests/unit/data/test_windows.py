"""Windows lie where their policy says, and the expected slots are what drawing them shows."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pmmrec.data.examples import windows as examples
from pmmrec.data.examples.windows import WindowConfig, WindowIndex
from pmmrec.data.splits.leave_one_out import leave_one_out


def windows(domain: Any, policy: str, size: int = 4) -> WindowIndex:
    return WindowIndex(leave_one_out(domain), WindowConfig(policy=policy, size=size))


def drawn(index: WindowIndex, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [index.items(window, rng).tolist() for window in range(index.num_examples)]


@pytest.fixture
def long_and_short(make_domain: Any) -> Any:
    """Train parts of 8, 3, 1, 2 and 1 items; the last two users are too short to be held out."""
    return make_domain([list(range(10)), [0, 1, 2, 3, 4], [5, 6, 7], [8, 9], [1]])


def test_latest_takes_the_most_recent_items(long_and_short: Any) -> None:
    assert drawn(windows(long_and_short, "latest")) == [[4, 5, 6, 7], [0, 1, 2], [8, 9]]


def test_random_draws_every_start_equally_often_and_whole_windows_only(long_and_short: Any) -> None:
    index, rng = windows(long_and_short, "random"), np.random.default_rng(0)
    starts = Counter(tuple(index.items(0, rng).tolist()) for _ in range(5000))
    assert set(starts) == {tuple(range(start, start + 4)) for start in range(5)}
    assert all(abs(count - 1000) < 120 for count in starts.values())  # standard error 28
    assert index.items(1, rng).tolist() == [0, 1, 2]


@pytest.mark.parametrize("policy", ["latest", "random", "all"])
def test_windows_are_the_same_whether_histories_are_held_in_memory(
    long_and_short: Any, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    held = drawn(windows(long_and_short, policy))
    monkeypatch.setattr(examples, "MAX_HELD", 0)
    assert drawn(windows(long_and_short, policy)) == held


@pytest.mark.parametrize("size", [2, 3, 4, 8, 21])
def test_all_covers_every_transition_exactly_once(long_and_short: Any, size: int) -> None:
    chunks = drawn(windows(long_and_short, "all", size))
    steps = Counter(step for chunk in chunks for step in pairwise(chunk))
    history = [list(range(8)), [0, 1, 2], [8, 9]]
    assert steps == Counter(step for items in history for step in pairwise(items))
    assert all(2 <= len(chunk) <= size for chunk in chunks)


@pytest.mark.parametrize("policy", ["latest", "random", "all"])
def test_users_with_one_training_item_have_no_window(long_and_short: Any, policy: str) -> None:
    index = windows(long_and_short, policy)
    assert {index.user(window) for window in range(index.num_examples)} == {0, 1, 3}


@pytest.mark.parametrize("policy", ["latest", "random", "all"])
def test_lengths_are_known_before_drawing(long_and_short: Any, policy: str) -> None:
    index = windows(long_and_short, policy)
    assert [index.length(window) for window in range(index.num_examples)] == [len(items) for items in drawn(index)]


def slots_by_loops(histories: list[list[int]], num_items: int, policy: str, size: int) -> np.ndarray:
    """Every window that can be drawn, times its chance."""
    slots = np.zeros(num_items)
    for items in histories:
        if len(items) < 2:
            continue
        ends = {
            "latest": [len(items)],
            "random": range(min(size, len(items)), len(items) + 1),
            "all": range(len(items), 1, 1 - size),
        }[policy]
        for end in ends:
            for item in items[max(0, end - size) : end]:
                slots[item] += 1 / (len(ends) if policy == "random" else 1)
    return slots


@pytest.mark.parametrize("size", [2, 3, 5, 40])
@pytest.mark.parametrize("policy", ["latest", "random", "all"])
def test_expected_slots_equal_the_enumeration_of_all_windows(make_domain: Any, policy: str, size: int) -> None:
    draw = random.Random(0)
    sequences = [draw.choices(range(10), k=draw.randint(1, 15)) for _ in range(12)] + [list(range(10))]
    histories = [seq[:-2] if len(seq) >= 3 else seq for seq in sequences]
    index = windows(make_domain(sequences), policy, size)
    expected = slots_by_loops(histories, 10, policy, size)
    np.testing.assert_allclose(index.expected_slots(), expected, rtol=0, atol=1e-12)  # measured 2e-15


def test_a_window_that_does_not_exist_is_refused(long_and_short: Any) -> None:
    with pytest.raises(IndexError, match="window 3 of 3"):
        windows(long_and_short, "latest").user(3)


def test_a_window_of_one_item_is_refused() -> None:
    with pytest.raises(ValidationError):
        WindowConfig(size=1)
