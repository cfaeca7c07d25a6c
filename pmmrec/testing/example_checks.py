"""The checks that kinds of examples inherit."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator

import numpy as np

from pmmrec.data.examples import NOBODY, ExampleKind, Examples, example_kinds, kind_of
from pmmrec.data.examples.windows import WindowConfig
from pmmrec.data.splits import Split, split_of, splits
from pmmrec.errors import DataError, RecipeError
from pmmrec.testing.checks import Inapplicable, check, require
from pmmrec.testing.shop import IMPRESSIONS, shop
from pmmrec.testing.subjects import Subject

SPLITS = ({"type": "leave_one_out"}, {"type": "impressions", "name": IMPRESSIONS})
SIZES = (4, 21)  # of windows: shorter than most histories, and longer
NUM_USERS = 20
NUM_DRAWS = 3


def _kinds(subject: Subject) -> Iterator[tuple[ExampleKind, Split]]:
    """The kind with short and with long windows, and the first split that has examples of it."""
    for size in SIZES:
        kind = kind_of(subject.config, WindowConfig(size=size))
        yield kind, _split_for(kind)


def _split_for(kind: ExampleKind) -> Split:
    refusals = []
    for tree in SPLITS:
        split = split_of(splits.config(tree), shop())
        try:
            kind.training(split)
        except (DataError, RecipeError) as error:
            refusals.append(str(error))
        else:
            return split
    raise AssertionError(f"no split has examples of this kind: {'; '.join(refusals)}")


def _drawn(examples: Examples, number: int, seed: int) -> list[int]:
    drawn: list[int] = examples.items(number, np.random.default_rng(seed)).tolist()
    return drawn


@check("training alone", example_kinds)
def examples_hold_training_items_alone(subject: Subject) -> Inapplicable:
    """The items of an example were touched by its user in training, in this order; where it has no user, they exist.

    What a user touched in training may not be drawn as a negative of the user.
    """
    for kind, split in _kinds(subject):
        examples = kind.training(split)
        require(examples.num_examples > 0, "the domain has no example")
        for number in range(examples.num_examples):
            user, items = examples.user(number), _drawn(examples, number, seed=number)
            if user == NOBODY:
                require(set(items) <= set(range(split.domain.num_items)), f"example {number}: items {items}")
                continue
            trained = split.train(user).tolist()
            left = iter(trained)
            require(all(item in left for item in items), f"example {number}: {items} are not training items in order")
            may_be_drawn = set(trained) - set(examples.touched(user).tolist())
            require(not may_be_drawn, f"training items {may_be_drawn} of user {user} may be drawn as negatives")
    return None


@check("lengths", example_kinds)
def lengths_are_known_before_drawing(subject: Subject) -> Inapplicable:
    """`length` is the number of items that are drawn, at most `longest`."""
    for kind, split in _kinds(subject):
        examples = kind.training(split)
        for number in range(examples.num_examples):
            length, drawn = examples.length(number), len(_drawn(examples, number, seed=0))
            require(length == drawn <= kind.longest, f"example {number}: length {length}, {drawn} items drawn")
    return None


@check("repeatable", example_kinds)
def an_example_is_a_function_of_its_draw(subject: Subject) -> Inapplicable:
    """Equal generators draw equal items, in another process too."""
    for kind, split in _kinds(subject):
        examples, other = kind.training(split), kind.training(split)
        sent = pickle.loads(pickle.dumps(examples))  # noqa: S301 - as worker processes get it
        for number in range(examples.num_examples):
            first = _drawn(examples, number, seed=number)
            for again in (other, sent):
                require(again.user(number) == examples.user(number), f"example {number} has another user")
                require(_drawn(again, number, seed=number) == first, f"example {number} is drawn otherwise")
    return None


@check("slots", example_kinds)
def expected_slots_are_the_mean_of_the_draws(subject: Subject) -> Inapplicable:
    """`expected_slots` says how often an epoch shows each item: in all as often as drawn, and never one that is not."""
    for kind, split in _kinds(subject):
        examples, counted = kind.training(split), Counter[int]()
        for seed in range(NUM_DRAWS):
            for number in range(examples.num_examples):
                counted.update(_drawn(examples, number, seed))
        slots = examples.expected_slots()
        require(slots.shape == (split.domain.num_items,), f"gives slots of shape {slots.shape}")
        total, drawn = float(slots.sum()), counted.total() / NUM_DRAWS
        require(abs(total - drawn) < 1e-6 * drawn, f"expects {total:g} slots in an epoch, and draws {drawn:g}")
        unexpected = [item for item in counted if not slots[item] > 0]
        require(not unexpected, f"draws items {unexpected}, which it does not expect")
    return None


@check("validation", example_kinds)
def validation_ends_with_what_is_held_out(subject: Subject) -> Inapplicable:
    """A validation example ends with a validation target of its user, or shows some, and holds no item of the test."""
    for kind, split in _kinds(subject):
        try:
            examples = kind.validation(split, NUM_USERS)
        except (DataError, RecipeError) as error:
            return f"has no validation loss: {error}"
        holdout, users = split.holdout("validation"), set()
        targets: dict[int, set[int]] = {}
        for query, user in enumerate(holdout.user_index.tolist()):
            targets.setdefault(user, set()).update(holdout.targets(query).tolist())
        require(examples.num_examples > 0, "there is no validation example")
        for number in range(examples.num_examples):
            user, items = examples.user(number), _drawn(examples, number, seed=0)
            users.add(user)
            if user == NOBODY:
                continue
            shown = examples.impression(number)
            history, found = (items[:-1], items[-1:]) if shown is None else (items, shown.item_C[shown.is_clicked_C])
            require(set(found) <= targets[user], f"example {number}: {found} are not targets of its user")
            known = set(examples.touched(user).tolist()) | set(split.train(user).tolist())
            require(set(history) <= known, f"example {number}: {history} holds items behind its target")
        require(len(users) <= NUM_USERS, f"{len(users)} users, {NUM_USERS} asked for")
    return None
