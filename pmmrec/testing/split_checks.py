"""The checks that splits inherit."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import get_args

import numpy as np

from pmmrec.data.splits import HELD_OUT, Holdout, HoldoutName, Split, SplitPart, split_of, splits
from pmmrec.data.user_sample import UserSampleConfig
from pmmrec.testing.checks import Inapplicable, check, require
from pmmrec.testing.shop import shop
from pmmrec.testing.subjects import Subject

NAMES: tuple[HoldoutName, ...] = get_args(HoldoutName)
FEW = 6  # users of a small holdout
LEAST = 10  # queries of a holdout: a check of fewer would say little


def _split(subject: Subject) -> Split:
    return split_of(subject.config, shop())


def _parts(split: Split) -> list[list[int]]:
    """The part of each interaction, user by user, as stretches of users say."""
    return [
        split.parts(stretch)[stretch.offset_B[place] : stretch.offset_B[place + 1]].tolist()
        for stretch in split.stretches()
        for place in range(len(stretch.offset_B) - 1)
    ]


def _items(split: Split) -> list[list[int]]:
    return [split.domain.sequence(user).tolist() for user in range(split.domain.num_users)]


def _equal(found: object, expected: object, message: str) -> None:
    require(found == expected, f"{message}: {found} instead of {expected}")


@check("disjoint", splits)
def every_interaction_is_in_one_part(subject: Subject) -> Inapplicable:
    """Training, validation and test share no interaction and leave none out; users are trained on by `parts` alone."""
    split = _split(subject)
    items, parts = _items(split), _parts(split)
    for user, (of_user, part_of) in enumerate(zip(items, parts, strict=True)):
        require(len(of_user) == len(part_of), f"user {user}: {len(of_user)} interactions have {len(part_of)} parts")
        require(set(part_of) <= set(map(int, SplitPart)), f"user {user}: parts {set(part_of)} are no parts of a split")
        trained = [item for item, part in zip(of_user, part_of, strict=True) if part == SplitPart.TRAIN]
        _equal(split.train(user).tolist(), trained, f"user {user}: training items")
        _equal(split.train_length(user), len(trained), f"user {user}: number of training items")
    if split.ranks_lists:
        return None
    for part in SplitPart:
        require(any(part in part_of for part_of in parts), f"no interaction is in {part.name.lower()}")
    return None


@check("held out", splits)
def training_holds_nothing_of_what_is_held_out(subject: Subject) -> Inapplicable:
    """Training items, counts and the flags of what is held out agree, however many users are read at a time."""
    split = _split(subject)
    items, parts = _items(split), _parts(split)
    flat = [pair for of_user in zip(items, parts, strict=True) for pair in zip(*of_user, strict=True)]
    trained = [item for item, part in flat if part == SplitPart.TRAIN]
    _equal(split.train_items.tolist(), trained, "training items of all users")
    _equal(np.diff(split.train_offsets).tolist(), [part_of.count(0) for part_of in parts], "their offsets")
    lengths = np.concatenate([found for _, found in split.train_lengths()])
    _equal(lengths.tolist(), [part_of.count(0) for part_of in parts], "their lengths, in stretches")
    counts, counted = split.train_counts.tolist(), Counter(trained)
    _equal(counts, [counted[item] for item in range(split.domain.num_items)], "how often each item is trained on")
    is_held_out = np.concatenate(list(split.held_out())).tolist()
    _equal(is_held_out, [part != SplitPart.TRAIN for _, part in flat], "what is held out")
    return None


@check("queries", splits)
def a_query_knows_nothing_of_its_own_part(subject: Subject) -> Inapplicable:
    """Targets are the items of the held-out part, each once; the history holds items of earlier parts alone."""
    split = _split(subject)
    for name in NAMES:
        known, holdout = split.knows(name), split.holdout(name)
        require(HELD_OUT[name] not in known and SplitPart.TEST not in known, f"a query of {name} knows {known}")
        require(holdout.num_queries > LEAST, f"{name}: {holdout.num_queries} queries")
        require((np.diff(holdout.user_index) >= 0).all(), f"{name}: users are not in order")
        for query in range(holdout.num_queries):
            targets = holdout.targets(query).tolist()
            require(targets and len(targets) == len(set(targets)), f"{name}: query {query}: targets {targets}")
            require(len(holdout.history(query)) > 0, f"{name}: query {query} has no history")
        if split.ranks_lists:
            _check_lists(holdout)
        else:
            _check_parts(split, holdout)
    return None


def _check_parts(split: Split, holdout: Holdout) -> None:
    """Queries are those users who have a target and a history, and hold what `parts` says."""
    _equal(holdout.candidates, None, f"{holdout.name}: lists of candidates")
    places, without = {int(user): place for place, user in enumerate(holdout.user_index)}, set(holdout.without_history)
    known, held_out = split.knows(holdout.name), HELD_OUT[holdout.name]
    for user, (of_user, part_of) in enumerate(zip(_items(split), _parts(split), strict=True)):
        done, where = list(zip(of_user, part_of, strict=True)), f"{holdout.name}: user {user}"
        targets = list(dict.fromkeys(item for item, part in done if part == held_out))
        history = [item for item, part in done if part in known]
        _equal(user in places, bool(targets and history), f"{where}: whether there is a query")
        _equal(user in without, bool(targets and not history), f"{where}: whether there are targets alone")
        if user in places:
            _equal(holdout.targets(places[user]).tolist(), targets, f"{where}: targets")
            _equal(holdout.history(places[user]).tolist(), history, f"{where}: history")


def _check_lists(holdout: Holdout) -> None:
    """Each query has candidates, and its targets are some of them."""
    if holdout.candidates is None or holdout.candidate_offsets is None:
        raise AssertionError(f"{holdout.name}: there are no lists of candidates")
    for query in range(holdout.num_queries):
        some = slice(*holdout.candidate_offsets[query : query + 2])
        candidates = set(holdout.candidates[some].tolist())
        require(set(holdout.targets(query).tolist()) < candidates, f"{holdout.name}: query {query}: targets not shown")


@check("repeatable", splits)
def it_is_a_function_of_domain_and_settings(subject: Subject) -> Inapplicable:
    """Built again, or sent to another process, it splits alike; some users are always the same, and as among all."""
    split, other = _split(subject), _split(subject)
    sent = pickle.loads(pickle.dumps(split))  # noqa: S301 - as worker processes get it
    for name, again in (("built again", other), ("in another process", sent)):
        require(_parts(again) == _parts(split), f"{name}, it splits otherwise")
    for name in NAMES:
        some, again, whole = split.holdout(name, FEW), other.holdout(name, FEW), split.holdout(name)
        _equal(again.user_index.tolist(), some.user_index.tolist(), f"{name}: {FEW} users, asked twice")
        _equal(len(set(some.user_index.tolist())), FEW, f"{name}: number of users")
        for user in set(some.user_index.tolist()):
            _equal(_of_user(some, user), _of_user(whole, user), f"{name}: user {user} among a few, and among all")
    return None


@check("sample", splits)
def a_sample_of_users_trains_alone(subject: Subject) -> Inapplicable:
    """With `data.users` the users of the sample train on what they would, others on nothing, and all stay queries."""
    whole = _split(subject)
    trained = [whole.train(user).tolist() for user in range(whole.domain.num_users)]
    num_users = sum(map(bool, trained)) // 2
    some = split_of(subject.config, shop(), UserSampleConfig(sample=num_users))
    alone = split_of(subject.config, shop(), UserSampleConfig(sample=num_users, held_out="sample"))
    found = [some.train(user).tolist() for user in range(whole.domain.num_users)]
    users = [user for user, items in enumerate(found) if items]
    _equal(len(users), num_users, "number of users who train")
    for user in users:
        _equal(found[user], trained[user], f"user {user} of the sample: training items")
    lengths = [*map(len, found)]
    _equal([some.train_length(user) for user in range(len(found))], lengths, "numbers of training items")
    _equal(np.concatenate([one for _, one in some.train_lengths()]).tolist(), lengths, "the same in stretches")
    _equal(some.train_items.tolist(), [item for items in found for item in items], "training items of all users")
    for name in NAMES:
        queries, others, own = whole.holdout(name), some.holdout(name), alone.holdout(name)
        _equal(others.user_index.tolist(), queries.user_index.tolist(), f"{name}: users who are ranked")
        for user in set(queries.user_index.tolist()):
            _equal(_of_user(others, user), _of_user(queries, user), f"{name}: user {user} with a sample")
        asked = [user for user in queries.user_index.tolist() if user in users]
        _equal(own.user_index.tolist(), asked, f"{name}: users with held_out: sample")
    return None


def _of_user(holdout: Holdout, user: int) -> list[tuple[list[int], list[int]]]:
    """Targets and history of each query of a user."""
    queries = np.flatnonzero(holdout.user_index == user).tolist()
    return [(holdout.targets(query).tolist(), holdout.history(query).tolist()) for query in queries]
