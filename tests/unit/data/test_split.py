"""Leave-one-out: what is held out is never trained on, and is asked for once."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from pmmrec.data.batches import DataConfig
from pmmrec.data.splits import split_of, splits
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.errors import RecipeError
from pmmrec.settings import validate


def test_the_last_item_is_for_the_test_and_the_one_before_for_validation(make_domain: Any) -> None:
    split = leave_one_out(make_domain([[0, 1, 2, 3, 4]]))
    validation, test = split.holdout("validation"), split.holdout("test")
    assert split.train(0).tolist() == [0, 1, 2]
    assert (validation.history(0).tolist(), validation.target.tolist()) == ([0, 1, 2], [3])
    assert (test.history(0).tolist(), test.target.tolist()) == ([0, 1, 2, 3], [4])


def test_users_with_fewer_than_three_items_are_trained_on_and_never_held_out(make_domain: Any) -> None:
    split = leave_one_out(make_domain([[0, 1], [2], [1, 2, 0]]))
    assert [split.train(user).tolist() for user in range(3)] == [[0, 1], [2], [1]]
    for name in ("validation", "test"):
        assert split.holdout(name).user_index.tolist() == [2]


def test_counts_see_train_only(make_domain: Any) -> None:
    split = leave_one_out(make_domain([[0, 1, 0, 2, 3], [3, 1]]))
    assert split.train_counts.tolist() == [2, 2, 0, 1]
    assert split.train_counts.dtype == np.int64


@pytest.mark.parametrize("name", ["validation", "test"])
def test_flat_arrays_agree_with_the_rule_user_by_user(make_domain: Any, name: str) -> None:
    draw = random.Random(0)
    sequences = [draw.choices(range(12), k=draw.randint(1, 7)) for _ in range(30)]
    sequences[0] = list(range(12))
    split = leave_one_out(make_domain(sequences))
    cut = {"validation": -2, "test": -1}[name]
    expected = [(user, seq[:cut], seq[cut]) for user, seq in enumerate(sequences) if len(seq) >= 3]
    queries = split.holdout(name)
    found = [
        (int(queries.user_index[query]), queries.history(query).tolist(), int(queries.target[query]))
        for query in range(queries.num_queries)
    ]
    assert found == expected
    trained = [split.train(user).tolist() for user in range(30)]
    assert trained == [seq[:-2] if len(seq) >= 3 else seq for seq in sequences]


def test_a_domain_of_short_users_has_no_queries(make_domain: Any) -> None:
    queries = leave_one_out(make_domain([[0, 1], [1]])).holdout("test")
    assert queries.num_queries == len(queries.history_items) == 0
    assert queries.history_offsets.tolist() == [0]


@pytest.mark.parametrize("name", ["validation", "test"])
def test_some_users_are_ranked_always_the_same_ones(make_domain: Any, name: str) -> None:
    split = leave_one_out(make_domain([[0, 1, 2, user % 4, 3] for user in range(40)] + [[0, 1]]))
    some, whole = split.holdout(name, 7), split.holdout(name)
    assert len(some.user_index) == 7 < whole.num_queries == 40
    assert (np.diff(some.user_index) > 0).all()
    assert some.user_index.tolist() == leave_one_out(split.domain).holdout(name, 7).user_index.tolist()
    for place, user in enumerate(some.user_index.tolist()):
        assert some.target[place] == whole.target[user]
        assert some.history(place).tolist() == whole.history(user).tolist()


def test_more_users_than_there_are_is_all_of_them(make_domain: Any) -> None:
    split = leave_one_out(make_domain([[0, 1, 2], [2, 1, 0]]))
    assert split.holdout("test", 9).user_index.tolist() == [0, 1]


def test_a_domain_is_split_as_the_settings_say(make_domain: Any) -> None:
    domain = make_domain([[0, 1, 2, 3]])
    config = splits.config({"type": "leave_one_out"})
    assert split_of(config, domain).train(0).tolist() == [0, 1]
    assert DataConfig.model_validate({"split": {"type": "leave_one_out"}}) == DataConfig()


def test_an_unknown_split_is_named_with_those_that_there_are() -> None:
    with pytest.raises(RecipeError, match=r"split: no split is called 'leave_one'; did you mean 'leave_one_out'"):
        validate(DataConfig, {"split": {"type": "leave_one"}}, "data")


@pytest.mark.parametrize("split", [{"type": "leave_one_out"}, {"type": "ratio"}, {"type": "ratio", "by": "time"}])
@pytest.mark.parametrize("sequences", [[[0, 1], [0, 1, 2, 3]], [[0, 1], [1, 0]]])
def test_a_split_has_a_query_where_its_holdout_has_one(
    make_domain: Any, split: dict[str, Any], sequences: list[list[int]]
) -> None:
    found = split_of(splits.config(split), make_domain(sequences))
    for name in ("validation", "test"):
        assert found.has_query(name) == (found.holdout(name).num_queries > 0) == (len(sequences[1]) > 2)
