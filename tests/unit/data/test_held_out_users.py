"""All users of a source train but a sample, on whose last items a pretraining is judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pmmrec.data.splits.held_out_users import HeldOutUsers, HeldOutUsersConfig
from pmmrec.errors import DataError

SEQUENCES = [[user % 7, (user + 1) % 7, (user + 3) % 7, 7] for user in range(20)] + [[1], [2, 3]]


def test_users_train_on_whole_sequences_or_are_held_out_whole(make_domain: Any) -> None:
    split = HeldOutUsers(HeldOutUsersConfig(users=0.2), make_domain(SEQUENCES))
    validation = split.holdout("validation")
    users = validation.user_index.tolist()
    assert len(users) == 4  # of 21 with two interactions or more
    for user, items in enumerate(SEQUENCES):
        assert split.train(user).tolist() == ([] if user in users else items)
        assert split.train_length(user) == len(split.train(user))
    for query, user in enumerate(users):
        assert validation.history(query).tolist() == SEQUENCES[user][:-1]
        assert validation.targets(query).tolist() == SEQUENCES[user][-1:]
    assert split.train_counts.sum() == sum(len(items) for user, items in enumerate(SEQUENCES) if user not in users)


def test_nobody_has_a_test_target(make_domain: Any) -> None:
    split = HeldOutUsers(HeldOutUsersConfig(), make_domain(SEQUENCES))
    assert not split.has_query("test")
    assert split.holdout("test").num_queries == 0
    assert split.has_query("validation")


def test_a_small_share_holds_out_one_user_and_a_large_one_leaves_one(make_domain: Any) -> None:
    domain = make_domain(SEQUENCES)
    for share, number in ((1e-6, 1), (0.999, 20)):
        split = HeldOutUsers(HeldOutUsersConfig(users=share), domain)
        assert split.holdout("validation").num_queries == number


def test_a_seed_gives_the_same_users_and_another_seed_others(make_domain: Any) -> None:
    domain = make_domain(SEQUENCES)

    def users(seed: int) -> list[int]:
        config = HeldOutUsersConfig(users=0.3, seed=seed)
        return HeldOutUsers(config, domain).holdout("validation").user_index.tolist()

    assert users(1) == users(1) != users(2)
    assert np.diff(users(1)).min() > 0


def test_a_domain_of_too_few_users_is_refused(make_domain: Any) -> None:
    split = HeldOutUsers(HeldOutUsersConfig(), make_domain([[0, 1], [1]]))
    with pytest.raises(DataError, match="two interactions, and 1 has so many"):
        split.has_query("validation")
