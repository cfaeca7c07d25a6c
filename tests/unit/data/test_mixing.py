"""Every window is seen as often as its domain's weight says, whatever the batch size, epoch or process."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pmmrec.data.mixing import MixingConfig, StepSampler, share
from pmmrec.errors import DataError, RecipeError


def sampler(num_examples: list[int], batch_users: int = 4, seed: int = 0, **config: Any) -> StepSampler:
    names = [f"d{place}" for place in range(len(num_examples))]
    return StepSampler(num_examples, names, batch_users, seed, MixingConfig(**config))


def visits(steps: StepSampler, epoch: int) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    for step in range(steps.steps_per_epoch):
        draw = steps.step(epoch, step)
        seen += zip(draw.domain_B.tolist(), draw.number_B.tolist(), strict=True)
    return seen


@pytest.mark.parametrize("batches", ["mixed", "one_domain"])
@pytest.mark.parametrize("batch_users", [1, 3, 4, 100])
def test_every_window_is_seen_exactly_once_an_epoch(batches: str, batch_users: int) -> None:
    steps = sampler([7, 13, 1], batch_users, batches=batches)
    expected = [(domain, window) for domain, count in enumerate([7, 13, 1]) for window in range(count)]
    for epoch in range(3):
        assert sorted(visits(steps, epoch)) == expected


def test_batches_of_an_epoch_differ_by_one_user_at_most() -> None:
    steps = sampler([7, 14], batch_users=5)
    sizes = [len(steps.step(0, step).domain_B) for step in range(steps.steps_per_epoch)]
    assert sizes == [5, 4, 4, 4, 4]
    assert steps.smallest_batch == 4


def test_a_step_does_not_depend_on_what_was_asked_before() -> None:
    forwards, backwards = sampler([9, 5], 3, by="equal"), sampler([9, 5], 3, by="equal")
    places = [(epoch, step) for epoch in (0, 1, 4) for step in range(forwards.steps_per_epoch)]
    first = {place: forwards.step(*place) for place in places}
    for place in reversed(places):
        for left, right in zip(first[place], backwards.step(*place), strict=True):
            np.testing.assert_array_equal(left, right)


def test_seeds_and_epochs_have_their_own_order() -> None:
    orders = [visits(sampler([40], seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_users_of_domains_mix_within_a_batch() -> None:
    steps = sampler([50, 50], batch_users=20)
    assert all(len(set(steps.step(0, step).domain_B.tolist())) == 2 for step in range(steps.steps_per_epoch))


def test_one_domain_batches_hold_one_domain_and_share_steps_by_weight() -> None:
    steps = sampler([12, 24], batch_users=4, batches="one_domain")
    domains = [set(steps.step(0, step).domain_B.tolist()) for step in range(steps.steps_per_epoch)]
    assert Counter(map(tuple, domains)) == {(0,): 3, (1,): 6}
    assert domains[:3] != [{0}] * 3  # their order is drawn, too


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [0.2, 0.8]),
        ({"temperature": 2}, [1 / 3, 2 / 3]),
        ({"by": "equal"}, [0.5, 0.5]),
        ({"weights": {"d0": 3, "d1": 1}}, [0.75, 0.25]),
    ],
)
def test_weights_follow_the_rule_that_was_chosen(config: dict[str, Any], expected: list[float]) -> None:
    steps = sampler([100, 400], batch_users=10, **config)
    np.testing.assert_allclose(steps.weights, expected, rtol=1e-12)
    shares = np.bincount([domain for domain, _ in visits(steps, 0)]) / 500
    np.testing.assert_allclose(shares, expected, rtol=0, atol=1 / 500)  # whole users


def test_a_domain_seen_less_than_once_an_epoch_goes_on_where_it_stopped() -> None:
    steps = sampler([10, 10], weights={"d0": 3, "d1": 1})
    seen = Counter(visit for epoch in range(4) for visit in visits(steps, epoch))
    assert all(seen[0, window] == 6 and seen[1, window] == 2 for window in range(10))


def test_the_pass_tells_visits_of_one_window_apart() -> None:
    steps = sampler([2, 10], by="equal")
    draws = [steps.step(epoch, step) for epoch in range(2) for step in range(steps.steps_per_epoch)]
    seen = [visit for draw in draws for visit in zip(*(column.tolist() for column in draw), strict=True)]
    assert len(set(seen)) == len(seen) == 24
    assert {number for domain, _, number in seen if domain == 0} == set(range(6))


def test_under_natural_weights_the_pass_is_the_epoch() -> None:
    steps = sampler([3, 10])
    assert all((steps.step(5, step).pass_B == 5).all() for step in range(steps.steps_per_epoch))


def test_quotas_sum_to_the_epoch_with_the_largest_remainders_served_first() -> None:
    steps = sampler([4, 3, 3], batch_users=10, by="equal")
    assert Counter(domain for domain, _ in visits(steps, 0)) == {0: 4, 1: 3, 2: 3}


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_of_all_processes_make_up_the_batch(world: int) -> None:
    batch = np.arange(7)
    parts = [share(batch, rank, world) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), batch)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"weights": {"d0": 1, "shop": 1}}, "no domain shop; there are: d0, d1"),
        ({"weights": {"d0": 1}}, "no weight for d1"),
        ({"weights": {"d0": 1, "d1": 1e-9}}, "d1: its weight gives it none of 10 users"),
    ],
)
def test_weights_that_fit_no_domain_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        sampler([5, 5], **config)


@pytest.mark.parametrize(
    "config",
    [
        {"by": "equal", "temperature": 2},
        {"by": "equal", "weights": {"d0": 1}},
        {"temperature": 2, "weights": {"d0": 1}},
        {"weights": {"d0": 0}},
        {"temperature": 0},
    ],
)
def test_settings_that_contradict_one_another_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MixingConfig(**config)


def test_a_domain_without_windows_is_named() -> None:
    with pytest.raises(DataError, match="d1: has no example to train on"):
        sampler([5, 0])


def test_two_domains_of_one_name_are_refused() -> None:
    with pytest.raises(RecipeError, match="share a name"):
        StepSampler([5, 5], ["shop", "shop"], 2, 0, MixingConfig())


def test_a_step_beyond_the_epoch_is_refused() -> None:
    with pytest.raises(IndexError, match="step 3 of 3"):
        sampler([12]).step(0, 3)


@pytest.mark.parametrize("batches", ["mixed", "one_domain"])
@pytest.mark.parametrize("epoch_users", [1, 7, 20, 64])
def test_short_epochs_see_every_window_before_any_comes_again(epoch_users: int, batches: str) -> None:
    sampler = StepSampler([20], ["shop"], 4, 0, MixingConfig(epoch_users=epoch_users, batches=batches))
    seen: list[tuple[int, int]] = []
    for epoch in range(-(-60 // epoch_users)):
        draws = [sampler.step(epoch, step) for step in range(sampler.steps_per_epoch)]
        assert sum(len(draw.number_B) for draw in draws) == epoch_users
        seen += [pair for draw in draws for pair in zip(draw.pass_B.tolist(), draw.number_B.tolist(), strict=True)]
    assert {(number, window) for number in range(3) for window in range(20)} <= set(seen)
    assert len(set(seen)) == len(seen)


def test_an_epoch_too_short_for_a_domain_is_refused() -> None:
    with pytest.raises(RecipeError, match="its weight gives it none of 1 users"):
        StepSampler([10, 10], ["a", "b"], 4, 0, MixingConfig(epoch_users=1))


def test_steps_can_be_asked_for_in_any_order() -> None:
    config = MixingConfig(by="equal")
    fresh = StepSampler([7, 30], ["a", "b"], 5, 3, config)
    forth = {(epoch, step): fresh.step(epoch, step) for epoch in range(4) for step in range(fresh.steps_per_epoch)}
    other = StepSampler([7, 30], ["a", "b"], 5, 3, config)
    for (epoch, step), draw in reversed(forth.items()):
        assert all((ours == theirs).all() for ours, theirs in zip(draw, other.step(epoch, step), strict=True))
