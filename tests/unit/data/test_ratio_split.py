"""The ratio split against a rule written out user by user."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pmmrec.data.batches import DataConfig
from pmmrec.data.splits import Split, split_of, splits
from pmmrec.errors import RecipeError
from pmmrec.settings import validate

MASK = 2**64 - 1


def split_by(domain: Any, **settings: Any) -> Split:
    return split_of(splits.config({"type": "ratio", **settings}), domain)


def sizes_by_hand(n: int, shares: tuple[int, int, int]) -> tuple[int, int, int]:
    """Training, validation and test of a user with n interactions."""
    if n < 3:
        return n, 0, 0
    held_out = max(2, n * (shares[1] + shares[2]) // sum(shares))
    validation = max(1, held_out * shares[1] // (shares[1] + shares[2]))
    return n - held_out, validation, held_out - validation


def mixed(number: int) -> int:
    number = (number + 0x9E3779B97F4A7C15) & MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


def parts_by_hand(user: int, n: int, shares: tuple[int, int, int], by: str, seed: int) -> list[int]:
    """The part of each interaction of one user: 0 training, 1 validation, 2 test."""
    order = list(range(n))
    if by == "random":
        order.sort(key=lambda place: mixed(mixed(seed ^ mixed(user)) ^ mixed(place)))
    part_of = [part for part, size in enumerate(sizes_by_hand(n, shares)) for _ in range(size)]
    parts = [0] * n
    for rank, place in enumerate(order):
        parts[place] = part_of[rank]
    return parts


def sequences_of_all_lengths() -> list[list[int]]:
    draw = random.Random(4)
    lengths = [*range(1, 31), *(draw.randint(1, 60) for _ in range(20))]
    return [draw.choices(range(25), k=length) for length in lengths]  # with repeats


@pytest.mark.parametrize("shares", [(8, 1, 1), (1, 1, 1), (1, 30, 50), (70, 10, 20)])
@pytest.mark.parametrize(("by", "seed"), [("random", 0), ("random", 7), ("time", 0)])
@pytest.mark.parametrize("test_history", ["all", "train"])
def test_it_agrees_with_the_rule_user_by_user(
    make_domain: Any, shares: tuple[int, int, int], by: str, seed: int, test_history: str
) -> None:
    sequences = sequences_of_all_lengths()
    split = split_by(make_domain(sequences), shares=shares, by=by, seed=seed, test_history=test_history)
    parts = [parts_by_hand(user, len(seq), shares, by, seed) for user, seq in enumerate(sequences)]
    chosen = [
        [[item for item, part in zip(seq, of_user, strict=True) if part == wanted] for wanted in range(3)]
        for seq, of_user in zip(sequences, parts, strict=True)
    ]
    assert [split.train(user).tolist() for user in range(len(sequences))] == [train for train, _, _ in chosen]
    flat = split.train_items.tolist()
    assert flat == [item for train, _, _ in chosen for item in train]
    assert split.train_counts.tolist() == [flat.count(item) for item in range(split.domain.num_items)]
    for name, wanted in (("validation", 1), ("test", 2)):
        holdout = split.holdout(name)  # type: ignore[arg-type]
        known = 1 if test_history == "train" else wanted
        expected = [
            (user, [i for i, part in zip(seq, of_user, strict=True) if part < known], list(dict.fromkeys(own[wanted])))
            for user, (seq, of_user, own) in enumerate(zip(sequences, parts, chosen, strict=True))
            if own[wanted]
        ]
        found = [
            (int(user), holdout.history(query).tolist(), holdout.targets(query).tolist())
            for query, user in enumerate(holdout.user_index)
        ]
        assert found == expected
        assert len(expected) > 40
        assert not len(holdout.without_history)


def test_a_user_with_fewer_than_ten_items_has_one_of_each_and_an_odd_one_is_for_the_test() -> None:
    expected = {3: (1, 1, 1), 9: (7, 1, 1), 10: (8, 1, 1), 15: (12, 1, 2), 20: (16, 2, 2), 25: (20, 2, 3)}
    assert {n: sizes_by_hand(n, (8, 1, 1)) for n in expected} == expected


def test_everyone_has_something_of_each_part_whatever_the_shares(make_domain: Any) -> None:
    domain = make_domain([list(range(n)) for n in range(3, 12)])
    for shares in ([1, 1, 1000], [1, 1000, 1], [1000, 1, 1]):
        split = split_by(domain, shares=shares)
        sizes = {len(split.train(user)) for user in range(domain.num_users)}
        assert min(sizes) >= 1
        assert split.holdout("validation").num_queries == split.holdout("test").num_queries == domain.num_users


def test_the_random_split_of_a_user_does_not_depend_on_other_users(make_domain: Any) -> None:
    sequences = [list(range(20)), list(range(12)), list(range(15))]
    few, many = make_domain(sequences[:2], name="few"), make_domain([*sequences[:2], *sequences], name="many")
    for user in range(2):
        assert split_by(few).train(user).tolist() == split_by(many).train(user).tolist()
    assert split_by(few).train(0).tolist() != split_by(few, seed=1).train(0).tolist()


def test_some_users_are_ranked_with_all_their_targets(make_domain: Any) -> None:
    split = split_by(make_domain([list(range(30)) for _ in range(12)]))
    some, whole = split.holdout("test", 5), split.holdout("test")
    assert some.num_queries == 5
    for query, user in enumerate(some.user_index.tolist()):
        assert some.targets(query).tolist() == whole.targets(user).tolist()
        assert some.history(query).tolist() == whole.history(user).tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": [8, 1]}, r"data: 1 problem\n  split.shares: \[8, 1\]: give three whole numbers from 1"),
        ({"shares": [8, 0, 1]}, r"data: 1 problem\n  split.shares: \[8, 0, 1\]: give three whole numbers from 1"),
        ({"shares": [8, 2, -1]}, r"data: 1 problem\n  split.shares: \[8, 2, -1\]: give three whole numbers from 1"),
        ({"shares": [0.8, 0.1, 0.1]}, r"data: 1 problem\n  split.shares: \[0.8, .*such as \[8, 1, 1\]"),
        ({"shares": [True, 1, 1]}, r"data: 1 problem\n  split.shares: \[True, 1, 1\]: give three"),
        ({"shares": "811"}, r"data: 1 problem\n  split.shares: '811': give three"),
        ({"by": "moon"}, r"split.by"),
        ({"by": "time", "seed": 3}, r"split: seed: has no effect with by: time; leave one of them out"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validate(DataConfig, {"split": {"type": "ratio", **settings}}, "data")
