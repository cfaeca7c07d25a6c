"""The global time split against a rule written out interaction by interaction."""

from __future__ import annotations

import random
from datetime import date, datetime
from typing import Any, Literal

import pytest

from pmmrec.data.batches import DataConfig
from pmmrec.data.domain import Domain
from pmmrec.data.splits import Split, split_of, splits
from pmmrec.errors import DataError, RecipeError
from pmmrec.settings import validate


def split_at(domain: Domain, **settings: Any) -> Split:
    return split_of(splits.config({"type": "global_time", **settings}), domain)


def busy_domain(make_domain: Any) -> Domain:
    """Thirty users, each active for a while somewhere between time 1000 and 1100; times repeat."""
    draw = random.Random(6)
    sequences, times = [], []
    for _ in range(30):
        first, length = draw.randint(1000, 1097), draw.randint(1, 15)
        sequences.append(draw.choices(range(20), k=length))
        times.append(sorted(draw.randint(first, first + 20) for _ in range(length)))
    domain: Domain = make_domain(sequences, times=times)
    return domain


def cuts_by_hand(domain: Domain, validation: float, test: float) -> tuple[float, float]:
    if validation >= 1:
        return validation, test
    times = sorted(int(time) for user in range(domain.num_users) for time in times_of(domain, user))
    return times[len(times) - int(len(times) * (validation + test))], times[len(times) - int(len(times) * test)]


def times_of(domain: Domain, user: int) -> list[int]:
    times = domain.times(user)
    assert times is not None
    return [int(time) for time in times]


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.2, 0.3), (1040, 1070), (1040.5, 1060)])
@pytest.mark.parametrize("name", ["validation", "test"])
def test_it_agrees_with_the_rule_interaction_by_interaction(
    make_domain: Any, validation: float, test: float, name: Literal["validation", "test"]
) -> None:
    domain = busy_domain(make_domain)
    split = split_at(domain, validation=validation, test=test)
    first, second = cuts_by_hand(domain, validation, test)
    begin, end = (first, second) if name == "validation" else (second, float("inf"))
    expected, alone = [], []
    for user in range(domain.num_users):
        done = list(zip(domain.sequence(user).tolist(), times_of(domain, user), strict=True))
        assert split.train(user).tolist() == [item for item, time in done if time < first]
        targets = list(dict.fromkeys(item for item, time in done if begin <= time < end))
        history = [item for item, time in done if time < begin]
        if targets and history:
            expected.append((user, history, targets))
        elif targets:
            alone.append(user)
    holdout = split.holdout(name)
    found = [
        (int(user), holdout.history(query).tolist(), holdout.targets(query).tolist())
        for query, user in enumerate(holdout.user_index)
    ]
    assert found == expected != []
    assert holdout.without_history.tolist() == alone != []


def test_users_with_nothing_before_the_cut_are_named(make_domain: Any) -> None:
    domain = make_domain([[0, 1, 2], [1, 2], [2, 0]], times=[[1, 2, 6], [5, 6], [1, 2]])
    split = split_at(domain, validation=2, test=5)
    assert split.left_out(split.holdout("test")) == (
        "shop: 1 of 2 users with test targets have nothing known before them and are not ranked, such as 'u01'"
    )
    assert split.left_out(split.holdout("validation")) is None


def test_a_domain_without_times_is_refused(make_domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = make_domain([[0, 1, 2]])
    monkeypatch.setattr(domain, "info", domain.info.model_copy(update={"time_unit": None}))
    with pytest.raises(DataError, match=r"data\.split: global_time needs the time of each interaction, and the domain"):
        split_at(domain)


@pytest.mark.parametrize(
    ("settings", "empty"),
    [({"validation": 500, "test": 1005}, "training"), ({"validation": 1001, "test": 2000}, "test"),
     ({"validation": 1001.5, "test": 1001.7}, "validation")],
)  # fmt: skip
def test_cuts_that_leave_a_part_empty_are_refused(make_domain: Any, settings: dict[str, Any], empty: str) -> None:
    split = split_at(make_domain([list(range(8))]), **settings)
    with pytest.raises(DataError, match=f"leaves nothing for {empty}: .* times of the domain are from 1000 to 1007"):
        split.train(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 0.5, "test": 0.5}, "0.5 and 0.5 leave nothing for training"),
        ({"validation": 0.5, "test": 1700000000}, "give two shares .below 1. or two times"),
        ({"validation": 20, "test": 10}, "20 and 10 are not in order; the test comes after validation"),
        ({"validation": 20, "test": 20}, "20 and 20 are not in order; the test comes after validation"),
        ({"validation": date(2020, 1, 1)}, "2020-01-01 is a date; .*, such as 1577836800000 for milliseconds"),
        ({"test": "2020-01-01"}, "2020-01-01 is a date; .*, such as 1577836800000 for milliseconds"),
        ({"test": "2020-01-01T02:00:00+02:00"}, "is a date; .*, such as 1577836800000 for milliseconds"),
        ({"test": datetime(2020, 1, 1)}, "is a date; .*, such as 1577836800000 for milliseconds"),
        ({"validation": 0}, "split.validation"),
        ({"test": float("inf"), "validation": 1}, "split.test"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validate(DataConfig, {"split": {"type": "global_time", **settings}}, "data")
