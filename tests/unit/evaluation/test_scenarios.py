"""Strata of test targets, against a loop over users."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pmmrec.data.split import Split
from pmmrec.errors import RecipeError
from pmmrec.evaluation.scenarios import STRATA, stratum_mask

MakeSplit = Callable[[list[list[int]], int], Split]


def stratum_by_loops(sequences: list[list[int]], stratum: str) -> list[bool]:
    """Count the target in what every user's training part holds, user by user."""
    long = [items for items in sequences if len(items) >= 3]
    train = [items[:-2] for items in long] + [items for items in sequences if len(items) < 3]
    is_in = []
    for items in long:
        count = sum(item == items[-1] for part in train for item in part)
        rule = {"all": True, "regular": count >= 10, "cold": count < 10, "new": count == 0}
        is_in.append(rule[stratum])
    return is_in


@pytest.mark.parametrize("stratum", STRATA)
def test_strata_are_those_of_a_loop_over_users(make_split: MakeSplit, stratum: str) -> None:
    drawn = random.Random(1)
    sequences = [[min(int(drawn.expovariate(0.2)), 29) for _ in range(drawn.randint(1, 7))] for _ in range(60)]
    split = make_split(sequences, 30)
    expected = stratum_by_loops(sequences, stratum)
    assert stratum_mask(split, split.holdout("test"), stratum).tolist() == expected
    assert any(expected)
    assert stratum == "all" or not all(expected)


def test_ten_occurrences_in_train_are_regular_nine_are_cold_and_held_out_ones_do_not_count(
    make_split: MakeSplit,
) -> None:
    nine, ten = [0] * 9, [1] * 10
    sequences = [[*nine, 2, 0], [*ten, 2, 1], [2, 2, 3], [2, 3, 0]]  # 3 is held out only
    split = make_split(sequences, 4)
    masks = {name: stratum_mask(split, split.holdout("test"), name).tolist() for name in STRATA}
    assert masks["regular"] == [False, True, False, False]
    assert masks["cold"] == [True, False, True, True]
    assert masks["new"] == [False, False, True, False]


def test_an_unknown_stratum_is_refused(make_split: MakeSplit) -> None:
    split = make_split([[0, 1, 2]], 3)
    with pytest.raises(RecipeError, match="stratum 'warm': no such stratum; there are: all, regular, cold, new"):
        stratum_mask(split, split.holdout("test"), "warm")
