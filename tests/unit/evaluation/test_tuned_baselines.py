"""EASE and item-kNN equal loops over their formulas, and take the settings that rank the validation targets best."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Pmmrec, working_in

from pmmrec.data.splits import Split
from pmmrec.errors import DataError, MachineError
from pmmrec.evaluation.baselines import item_knn_baseline
from pmmrec.evaluation.metrics import mean_metrics
from pmmrec.evaluation.outcome import rank_baselines
from pmmrec.evaluation.ranking import rank_targets
from pmmrec.evaluation.tuned_baselines import EASE, EASE_GRID, KNN_GRID, TUNED_BASELINES, check_tunable
from pmmrec.system import load

MakeSplit = Callable[[list[list[int]], int], Split]


@pytest.fixture
def split(make_split: MakeSplit) -> Split:
    rng = np.random.default_rng(0)
    return make_split([rng.integers(8, size=7).tolist() for _ in range(10)], 8)


def _baskets(split: Split) -> list[set[int]]:
    return [set(split.train(user).tolist()) for user in range(split.domain.num_users)]


def test_ease_weights_are_the_best_linear_model_of_the_training_part(split: Split) -> None:
    """Each column of B is a ridge regression of an item on all others, solved here one item at a time."""
    regularisation, baskets = 2.5, _baskets(split)
    x_VN = torch.tensor([[float(item in basket) for item in range(8)] for basket in baskets], dtype=torch.float64)
    expected_NN = torch.zeros(8, 8, dtype=torch.float64)
    for item in range(8):
        others = [other for other in range(8) if other != item]
        design = x_VN[:, others]
        normal = design.T @ design + regularisation * torch.eye(7, dtype=torch.float64)
        for other, weight in zip(others, torch.linalg.solve(normal, design.T @ x_VN[:, item]), strict=True):
            expected_NN[other, item] = weight
    weight_NN = EASE(split).weights(regularisation)
    torch.testing.assert_close(weight_NN, expected_NN, rtol=0, atol=1e-12)  # measured 3e-16


def test_ease_scores_add_the_weights_of_distinct_items_of_the_history(split: Split) -> None:
    ease, holdout = EASE(split), split.holdout("test")
    weight_NN = ease.weights(3.0)
    expected = torch.zeros(10, 8, dtype=torch.float64)
    for query in range(10):
        for other in set(holdout.history(query).tolist()):
            for item in range(8):
                expected[query, item] += weight_NN[other, item]
    scores = ease.baseline(3.0)(split, holdout)(slice(0, 10))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-12)  # measured 2e-16


def test_only_the_nearest_neighbours_of_an_item_of_the_history_score(split: Split) -> None:
    holdout, baskets, number, shrinkage = split.holdout("test"), _baskets(split), 2, 1.0

    def cosine(one: int, other: int) -> float:
        both = sum(one in basket and other in basket for basket in baskets)
        lone = [sum(item in basket for basket in baskets) for item in (one, other)]
        return both / (math.sqrt(lone[0] * lone[1]) + shrinkage)

    expected = torch.zeros(10, 8, dtype=torch.float64)
    for query in range(10):
        for age, other in enumerate(reversed(holdout.history(query).tolist())):
            near = sorted((item for item in range(8) if item != other), key=lambda item: -cosine(other, item))[:number]
            for item in near:
                expected[query, item] += 0.9**age * cosine(other, item)
    score = item_knn_baseline(split, holdout, shrinkage=shrinkage, num_neighbours=number)
    torch.testing.assert_close(score(slice(0, 10)), expected, rtol=0, atol=1e-12)  # measured 2e-16


def test_a_neighbourhood_of_all_items_changes_nothing(split: Split) -> None:
    holdout = split.holdout("test")
    some, every = (item_knn_baseline(split, holdout, num_neighbours=number)(slice(0, 10)) for number in (8, None))
    assert torch.equal(some, every)


@pytest.mark.parametrize("name", TUNED_BASELINES)
def test_the_settings_that_rank_the_validation_targets_best_are_taken(name: str, split: Split) -> None:
    grid, made = {
        "EASE": (EASE_GRID, lambda settings: EASE(split).baseline(**settings)),
        "tuned item-kNN": (KNN_GRID, lambda settings: lambda *where: item_knn_baseline(*where, **settings)),
    }[name]
    holdout, figures = split.holdout("validation"), []
    for settings in grid:
        ranks = rank_targets(holdout, 8, made(settings)(split, holdout), chunk=4)
        figures.append(mean_metrics(ranks.rank, ranks.query)["ndcg@10"])
    found = TUNED_BASELINES[name](split, "exclude")
    best = figures.index(max(figures))
    assert (found.settings, found.validation, found.num_tried) == (grid[best], figures[best], len(grid))
    expected, actual = (one(split, split.holdout("test"))(slice(0, 10)) for one in (made(grid[best]), found.baseline))
    assert torch.equal(expected, actual)


def test_ease_is_refused_with_the_memory_that_it_would_need(make_split: MakeSplit) -> None:
    split = make_split([[0, 1, 2, 3], [3, 2, 1, 0]], 4)
    assert EASE(split, free_bytes=3 * 8 * 4**2).weights(1.0).shape == (4, 4)
    with pytest.raises(MachineError, match=r"EASE: 4 items of .* need 0\.0 GB for .* 0\.0 GB are free"):
        EASE(split, free_bytes=3 * 8 * 4**2 - 1)
    large = make_split([[0, 1, 2, 29_999], [3, 2, 1, 0]], 30_000)
    with pytest.raises(MachineError, match=r"EASE: 30,000 items of .* need 21\.6 GB"):
        EASE(large, free_bytes=16 * 10**9)


def test_what_cannot_be_tuned_is_refused_before_anything_is_encoded(
    small_run: Path, world: Path, make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no user has three interactions, so there is no validation target to choose"):
        check_tunable(make_split([[0, 1], [1, 0]], 4))
    system = load(small_run / "hub" / "small")
    monkeypatch.setattr(system, "_model_for", lambda _: pytest.fail("the model was built"))
    monkeypatch.setattr("pmmrec.evaluation.tuned_baselines.NUM_MATRICES", 10**9)
    with pytest.raises(MachineError, match="EASE: 36 items of boutique need"):
        system.evaluate(world / "boutique", name="small", tuned_baselines=True)


def test_nothing_is_tuned_for_who_does_not_ask(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(rank_baselines(split, tuned=True)) - set(rank_baselines(split)) == set(TUNED_BASELINES)
    monkeypatch.setattr("pmmrec.evaluation.tuned_baselines.EASE", lambda *_: pytest.fail("EASE was computed"))
    rank_baselines(split)


def test_an_evaluation_shows_them_when_asked(small_run: Path, world: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    with working_in(tmp_path):
        where = (small_run / "hub" / "small", world / "boutique", "--cache", "c", "--json")
        for more, expected in (((), set()), (("--tuned-baselines",), set(TUNED_BASELINES))):
            told = pmmrec("evaluate", *where, *more)
            assert told.code == 0, told.output
            (domain,) = json.loads(told.stdout)["domains"]
            assert set(TUNED_BASELINES) & set(domain["baselines"]) == expected
