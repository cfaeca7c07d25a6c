"""A sample of users trains; the others are history of their own queries and are counted by nobody."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmmrec.data.importers.given_split import store_split
from pmmrec.data.splits import Split, split_of, splits
from pmmrec.data.user_sample import UserSampleConfig
from pmmrec.errors import RecipeError
from pmmrec.evaluation.baselines import BASELINES
from pmmrec.evaluation.scenarios import scenario_queries

MakeSplit = Callable[..., Split]
LEAVE_ONE_OUT = {"type": "leave_one_out"}
SPLITS = (LEAVE_ONE_OUT, {"type": "ratio"}, {"type": "ratio", "by": "time"}, {"type": "given", "name": "g"})
NUM_USERS, NUM_ITEMS, SAMPLE = 24, 9, 8


@pytest.fixture
def make_split(make_domain: Any, tmp_path: Path) -> MakeSplit:
    """Call it with the settings of a split and of `data.users`; without the latter all users train."""
    draw = random.Random(1)
    sequences = [[*range(NUM_ITEMS)]] + [draw.sample(range(NUM_ITEMS), 3 + user % 5) for user in range(NUM_USERS - 1)]
    domain = make_domain(sequences)
    rows = ["user_id,item_id,split"]
    for user, items in zip(domain.user_ids.to_pylist(), sequences, strict=True):
        parts = ["train"] * (len(items) - 2) + ["validation", "test"]
        rows += [f"{user},{domain.item_ids[item]},{part}" for item, part in zip(items, parts, strict=True)]
    (tmp_path / "split.csv").write_text("\n".join(rows) + "\n")
    store_split(domain.folder, tmp_path / "split.csv", "g")

    def make(split: dict[str, Any], **users: Any) -> Split:
        return split_of(splits.config(split), domain, UserSampleConfig(**users) if users else None)

    return make


@pytest.mark.parametrize("split", SPLITS)
def test_users_of_the_sample_train_on_what_they_would_and_others_on_nothing(make_split: MakeSplit, split: Any) -> None:
    some, whole = make_split(split, sample=SAMPLE), make_split(split)
    trained = [some.train(user).tolist() for user in range(NUM_USERS)]
    users = [user for user in range(NUM_USERS) if trained[user]]
    assert len(users) == SAMPLE
    assert all(trained[user] == whole.train(user).tolist() for user in users)
    assert some.train_items.tolist() == [item for items in trained for item in items]
    assert [some.train_length(user) for user in range(NUM_USERS)] == list(map(len, trained))
    assert np.diff(some.train_offsets).tolist() == list(map(len, trained))
    assert some.train_counts.tolist() == np.bincount(some.train_items, minlength=NUM_ITEMS).tolist()
    assert sorted(set(some.graph.read()[0].tolist())) == users
    again = pickle.loads(pickle.dumps(some))  # noqa: S301 - as worker processes get it
    assert again.train_items.tolist() == some.train_items.tolist()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["validation", "test"])
def test_queries_of_all_users_are_what_they_are_without_a_sample(make_split: MakeSplit, split: Any, name: Any) -> None:
    some, whole = make_split(split, sample=SAMPLE), make_split(split).holdout(name)
    assert some.has_query(name)
    assert some.holdout(name).user_index.tolist() == whole.user_index.tolist()
    assert some.holdout(name).target.tolist() == whole.target.tolist()
    assert some.holdout(name).history_items.tolist() == whole.history_items.tolist()


@pytest.mark.parametrize("split", SPLITS)
def test_with_the_sample_held_out_its_users_alone_are_ranked(make_split: MakeSplit, split: Any) -> None:
    some, whole = make_split(split, sample=SAMPLE, held_out="sample"), make_split(split).holdout("test")
    users = np.flatnonzero(np.diff(some.train_offsets)).tolist()
    holdout = some.holdout("test")
    assert holdout.user_index.tolist() == users == some.query_users("test")[0].tolist()
    for query, user in enumerate(users):
        assert holdout.history(query).tolist() == whole.history(user).tolist()
        assert holdout.targets(query).tolist() == whole.targets(user).tolist()
    assert set(scenario_queries(some, "cold").holdout.user_index.tolist()) <= set(users)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"random"}))
def test_baselines_know_nothing_of_items_that_only_others_touched(make_split: MakeSplit, name: str) -> None:
    some = make_split(LEAVE_ONE_OUT, sample=1, seed=1)
    unknown = np.flatnonzero(some.train_counts == 0)
    assert 0 < len(unknown) < NUM_ITEMS
    queries = some.holdout("test")
    scores = BASELINES[name](some, queries)(slice(0, queries.num_queries))
    dense_QN = np.asarray(scores.todense() if hasattr(scores, "todense") else scores)
    assert not dense_QN[..., unknown].any()


def test_a_smaller_sample_is_part_of_a_larger_and_another_seed_is_another(make_split: MakeSplit) -> None:
    def drawn(sample: int, seed: int = 0) -> set[int]:
        return set(np.flatnonzero(np.diff(make_split(LEAVE_ONE_OUT, sample=sample, seed=seed).train_offsets)).tolist())

    assert drawn(3) < drawn(7) < drawn(NUM_USERS) == set(range(NUM_USERS))
    assert drawn(7) != drawn(7, seed=1)


def test_more_users_than_there_are_is_refused(make_split: MakeSplit) -> None:
    with pytest.raises(RecipeError, match="sample: 25 is more than the 24 users of shop who have training items"):
        make_split(LEAVE_ONE_OUT, sample=25)


def test_the_sample_stands_in_what_is_told(make_split: MakeSplit) -> None:
    split = make_split(LEAVE_ONE_OUT, sample=SAMPLE, seed=4)
    assert split.told == {"type": "leave_one_out", "users": {"sample": SAMPLE, "seed": 4, "held_out": "all"}}
    assert split.users is not None
    assert split.users.words("shop").startswith("shop: 8 of 24 users train (data.users, seed 4); validation and test")
