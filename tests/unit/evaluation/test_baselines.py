"""Baselines equal values computed by hand on tiny domains."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pmmrec.data.splits import Split
from pmmrec.evaluation import baselines
from pmmrec.evaluation.baselines import (
    BASELINES,
    item_knn_baseline,
    left_out,
    markov_baseline,
    popularity_baseline,
    random_baseline,
)
from pmmrec.evaluation.outcome import rank_baselines
from pmmrec.evaluation.ranking import rank_targets

MakeSplit = Callable[[list[list[int]], int], Split]
SEQUENCES = [[0, 1, 2, 3], [0, 1, 3, 4], [1, 0, 4, 2], [2, 2, 1, 0]]  # train: 0 1 | 0 1 | 1 0 | 2 2
ALL = slice(0, 4)


def test_popularity_counts_the_training_part_only(make_split: MakeSplit) -> None:
    split = make_split(SEQUENCES, 5)
    score = popularity_baseline(split, split.holdout("test"))
    assert score(ALL).tolist() == [[3.0, 3.0, 2.0, 0.0, 0.0]] * 4


def test_markov_counts_items_that_follow_the_last_item_in_training(make_split: MakeSplit) -> None:
    split = make_split(SEQUENCES, 5)
    score = markov_baseline(split, split.holdout("validation"))  # last items: 1, 1, 0, 2
    assert score(ALL).tolist() == [[1.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0], [0, 2.0, 0, 0, 0], [0, 0, 1.0, 0, 0]]


def test_item_knn_equals_a_sum_of_cosines_by_loops(make_split: MakeSplit) -> None:
    rng = np.random.default_rng(0)
    split = make_split([rng.integers(8, size=7).tolist() for _ in range(10)], 8)
    holdout, shrinkage, decay = split.holdout("test"), 2.0, 0.5
    baskets = [set(split.train(user).tolist()) for user in range(10)]
    expected = torch.zeros(10, 8, dtype=torch.float64)
    for query in range(10):
        history = holdout.history(query).tolist()
        for age, other in enumerate(reversed(history)):
            for item in set(range(8)) - {other}:
                both = sum(item in basket and other in basket for basket in baskets)
                lone = [sum(one in basket for basket in baskets) for one in (item, other)]
                expected[query, item] += decay**age * both / (math.sqrt(lone[0] * lone[1]) + shrinkage)
    score = item_knn_baseline(split, holdout, shrinkage=shrinkage, decay=decay)
    torch.testing.assert_close(score(slice(0, 10)), expected, rtol=0, atol=1e-12)  # measured 2e-16


def test_the_textbook_item_knn_has_neither_shrinkage_nor_decay(make_split: MakeSplit) -> None:
    split = make_split(SEQUENCES, 5)
    score = item_knn_baseline(split, split.holdout("validation"), shrinkage=0.0, decay=1.0)
    assert score(ALL).flatten().tolist() == pytest.approx([1, 1, 0, 0, 0] * 3 + [0] * 5, abs=1e-12)


def test_items_that_never_occur_in_training_score_zero(make_split: MakeSplit) -> None:
    split = make_split(SEQUENCES, 5)
    for baseline in (popularity_baseline, markov_baseline, item_knn_baseline):
        assert baseline(split, split.holdout("test"))(ALL)[:, 3:].abs().sum() == 0


@pytest.mark.parametrize("name", BASELINES)
def test_ranks_of_a_baseline_do_not_depend_on_the_chunk(name: str, make_split: MakeSplit) -> None:
    rng = np.random.default_rng(4)
    split = make_split([rng.integers(30, size=6).tolist() for _ in range(25)], 30)
    holdout = split.holdout("test")
    whole, small = (rank_targets(holdout, 30, BASELINES[name](split, holdout), chunk=chunk) for chunk in (25, 4))
    assert whole.rank.tolist() == small.rank.tolist()


def test_the_random_baseline_hits_as_often_as_chance_says(make_split: MakeSplit) -> None:
    split = make_split([[user % 40, (user + 1) % 40, (user + 2) % 40] for user in range(2000)], 40)
    ranks = rank_targets(split.holdout("test"), 40, random_baseline(split, split.holdout("test")), chunk=300)
    chance = 10 / 38  # of 40 items two are seen; standard error 0.0098
    assert (ranks.rank <= 10).double().mean().item() == pytest.approx(chance, abs=0.03)
    assert len(ranks.rank.unique()) == 38


def test_the_random_baseline_changes_with_its_seed(make_split: MakeSplit) -> None:
    split = make_split(SEQUENCES, 5)
    first, second = (random_baseline(split, split.holdout("test"), seed=seed)(ALL) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_baselines_that_need_all_interactions_in_memory_are_skipped_for_a_very_large_domain(
    make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split([[0, 1, 2, 3], [3, 2, 1, 0]], 4)
    assert left_out(split) is None
    monkeypatch.setattr(baselines, "MAX_HELD", 7)
    assert set(rank_baselines(split)) == {"random", "popularity"}
    assert left_out(split) == (
        f"{split.domain.name}: last-item Markov and item-kNN would hold 8 interactions in memory, and are left out"
    )
