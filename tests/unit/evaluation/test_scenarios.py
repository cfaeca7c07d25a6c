"""Scenarios and strata of targets equal loops over users and positions."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Holdout, Split
from pmmrec.data.user_sample import UserSample, UserSampleConfig
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.baselines import BASELINES
from pmmrec.evaluation.catalogue import evaluate_model
from pmmrec.evaluation.outcome import StratumOutcome, domain_outcome, rank_baselines
from pmmrec.evaluation.scenarios import STRATA, popularity_masks, scenario_queries, stratum_mask
from pmmrec.models.recommender import Recommender

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


def test_ten_occurrences_in_training_are_regular_and_nine_are_cold(
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


def queries_by_loops(sequences: list[list[int]], below: int) -> list[tuple[int, list[int], int, bool]]:
    """Every sub-sequence that ends in an item with fewer than `below` training occurrences, user by user."""
    train = [items[:-2] if len(items) >= 3 else items for items in sequences]
    found = []
    for user, items in enumerate(sequences):
        for place in range(1, len(items)):
            count = sum(item == items[place] for part in train for item in part)
            if count < below:
                found.append((user, items[:place], items[place], place >= len(train[user])))
    return found


@pytest.mark.parametrize(("scenario", "below"), [("cold", 10), ("new", 1)])
def test_sub_sequences_are_those_of_a_loop_over_users_and_places(
    make_split: MakeSplit, scenario: str, below: int
) -> None:
    drawn = random.Random(1)
    sequences = [[min(int(drawn.expovariate(0.2)), 29) for _ in range(drawn.randint(1, 7))] for _ in range(60)]
    sequences[5:5] = [[0, 30, 31], [1, 2, 32]]
    queries = scenario_queries(make_split(sequences, 33), scenario)
    holdout = queries.holdout
    actual = [
        (user, holdout.history(place).tolist(), target, held_out)
        for place, (user, target, held_out) in enumerate(
            zip(holdout.user_index.tolist(), holdout.target.tolist(), queries.is_held_out_T.tolist(), strict=True)
        )
    ]
    expected = queries_by_loops(sequences, below)
    assert actual == expected
    assert queries.place_T.tolist() == [len(history) for _, history, _, _ in expected]
    assert len({user for user, *_ in expected}) < len(expected)  # several for some users


def test_no_new_target_lies_in_the_training_part_but_many_cold_ones_do(make_split: MakeSplit) -> None:
    split = make_split([[0, 1, 2, 3], [0, 1], [2, 0, 4]], 5)
    cold, new = scenario_queries(split, "cold"), scenario_queries(split, "new")
    steps = list(zip(cold.holdout.user_index.tolist(), cold.place_T.tolist(), strict=True))
    assert steps == [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1), (2, 2)]
    assert cold.is_held_out_T.tolist() == [False, True, True, False, True, True]
    assert new.holdout.target.tolist() == [3, 4]
    assert new.is_held_out_T.all()


def test_latest_targets_are_items_that_nobody_touched_before_the_test(make_split: MakeSplit) -> None:
    split = make_split([[0, 1, 2, 3], [0, 4, 3], [2, 0, 4], [1, 5, 5], [0, 1]], 6)
    latest = scenario_queries(split, "latest")  # 4 is a validation item of another user, 5 of the same one
    assert [(latest.holdout.user_index[q], latest.holdout.target[q]) for q in range(latest.num_queries)] == [
        (0, 3),
        (1, 3),
    ]
    assert latest.place_T is not None
    assert latest.place_T.tolist() == [3, 2]
    assert latest.is_held_out_T.all()
    split.users = UserSample(UserSampleConfig(sample=1), np.array([True, False, False, False, False]), 5)
    assert scenario_queries(split, "latest").holdout.target.tolist() == [3, 3]  # the platform knew the others


def test_regular_queries_are_the_last_item_of_each_user(make_split: MakeSplit) -> None:
    split = make_split([[0, 1, 2], [3, 4], [1, 0, 2, 4]], 5)
    queries, holdout = scenario_queries(split, "regular"), split.holdout("test")
    assert queries.holdout.target.tolist() == holdout.target.tolist() == [2, 4]
    assert queries.place_T is None
    assert queries.is_held_out_T.all()


def test_a_scenario_without_targets_and_an_unknown_scenario_are_errors(make_split: MakeSplit) -> None:
    popular = make_split([[0, 1] * 12 for _ in range(3)], 2)
    for scenario, words in (("cold", "so none is cold"), ("new", "so none is new"), ("latest", "none appeared in it")):
        with pytest.raises(DataError, match=words):
            scenario_queries(popular, scenario)
    with pytest.raises(DataError, match="no user has three interactions"):
        scenario_queries(make_split([[0, 1]], 2), "regular")
    with pytest.raises(
        RecipeError, match="'warm': no such scenario; there are: regular, validation, cold, new, latest"
    ):
        scenario_queries(popular, "warm")


def test_popularity_strata_hold_each_target_once_at_their_bounds(make_split: MakeSplit) -> None:
    counts = {0: 0, 1: 1, 2: 9, 3: 10, 4: 99, 5: 100}
    sequences = [[item, item] for item, count in counts.items() for _ in range(count // 2)]
    sequences += [[item] for item, count in counts.items() if count % 2]
    split = make_split(sequences, 6)
    assert split.train_counts.tolist() == list(counts.values())
    masks = popularity_masks(split, np.arange(6))
    assert {name: np.flatnonzero(is_in).tolist() for name, is_in in masks.items()} == {
        "0": [0],
        "1-9": [1, 2],
        "10-99": [3, 4],
        "100+": [5],
    }


def test_every_query_of_a_user_is_ranked_independently(
    make_split: MakeSplit, recommender: Recommender, make_reader: Callable[[Domain], ItemReader]
) -> None:
    split = make_split([[0, 1, 2, 3, 4], [5, 1, 6], [2, 5, 3, 0]], 8)
    queries, reader = scenario_queries(split, "cold"), make_reader(split.domain)
    together = evaluate_model(recommender, reader, 0, split, queries.holdout, "cpu").ranks
    for place in range(queries.num_queries):
        history = queries.holdout.history(place)
        alone = Holdout(
            "test",
            queries.holdout.user_index[place : place + 1],
            np.array([0, 1]),
            queries.holdout.target[place : place + 1],
            np.array([0, len(history)]),
            history,
        )
        rank = evaluate_model(recommender, reader, 0, split, alone, "cpu").ranks.rank
        assert rank.tolist() == [together.rank[place].item()]
        assert together.num_candidates[place] == 8 - len(set(history.tolist()))


def test_metrics_of_strata_and_of_held_out_targets_are_means_over_them(
    make_split: MakeSplit, recommender: Recommender, make_reader: Callable[[Domain], ItemReader]
) -> None:
    split = make_split([[0, 1, 2, 3, 4], [5, 1, 6], [2, 5, 3, 0]], 8)
    queries = scenario_queries(split, "cold")
    evaluation = evaluate_model(recommender, make_reader(split.domain), 0, split, queries.holdout, "cpu")
    baselines = rank_baselines(split, holdout=queries.holdout)
    found = domain_outcome(split, evaluation, baselines, is_held_out_T=queries.is_held_out_T, learned_here=True)
    place_Q = evaluation.ranks.rank.clamp(min=1).double()
    gain_Q = (1 / torch.log2(place_Q + 1) * (evaluation.ranks.rank > 0)).numpy()
    assert (found.num_users, found.num_targets) == (3, queries.num_queries)
    assert found.metrics["ndcg@10"].mean == pytest.approx(gain_Q.mean(), abs=1e-15)
    assert found.held_out is not None
    assert found.held_out.num_targets == queries.is_held_out_T.sum() == 6
    assert found.held_out.metrics["ndcg@10"].mean == pytest.approx(gain_Q[queries.is_held_out_T].mean(), abs=1e-15)
    assert set(found.held_out.baselines) == set(found.baselines) == set(BASELINES)
    is_new_Q = split.train_counts[queries.holdout.target] == 0
    assert found.popularity["0"].num_targets == is_new_Q.sum() > 0
    assert found.popularity["0"].metrics["ndcg@10"].mean == pytest.approx(gain_Q[is_new_Q].mean(), abs=1e-15)
    assert found.popularity["100+"] == StratumOutcome(num_targets=0)
    assert sum(stratum.num_targets for stratum in found.popularity.values()) == queries.num_queries
