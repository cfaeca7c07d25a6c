"""Validation targets as examples: what each holds, and what may not be drawn beside it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from pmmrec.data.domain import Domain
from pmmrec.data.importers.impressions import store_impressions
from pmmrec.data.splits import Split, split_of, splits
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.data.validation_examples import ValidationExamples
from pmmrec.errors import DataError

SEQUENCES = [[0, 1, 2, 3, 4, 5], [3, 0], [2, 4, 0, 1]]
SHOWN = [("a", 0, 5, 1), ("a", 0, 1, 0), ("b", 0, 2, 1), ("b", 0, 4, 1), ("b", 0, 3, 0), ("c", 1, 4, 1), ("c", 1, 5, 0)]


def items_of(examples: ValidationExamples) -> list[list[int]]:
    items = [examples.items(number).tolist() for number in range(examples.num_examples)]
    assert [len(one) for one in items] == [examples.length(number) for number in range(examples.num_examples)]
    return items


def on_impressions(domain: Domain, folder: Path) -> Split:
    with (folder / "shown.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(("impression_id", "user_id", "item_id", "clicked", "split"))
        for name, user, item, clicked in SHOWN:
            csv.writer(file).writerow((name, f"u{user:02d}", f"i{item:02d}", clicked, "validation"))
    store_impressions(domain.folder, folder / "shown.csv", "mind")
    return split_of(splits.config({"type": "impressions", "name": "mind"}), Domain.open(domain.folder))


@pytest.mark.parametrize(
    ("num_inputs", "expected"),
    [(9, [[0, 1, 2, 3, 4], [2, 4, 0]]), (2, [[2, 3, 4], [2, 4, 0]]), (1, [[3, 4], [4, 0]]), (0, [[4], [0]])],
)
def test_a_target_stands_behind_the_latest_items_before_it(
    make_domain: Any, num_inputs: int, expected: list[list[int]]
) -> None:
    examples = ValidationExamples(leave_one_out(make_domain(SEQUENCES)), num_inputs)
    assert items_of(examples) == expected
    assert [examples.user(number) for number in range(2)] == [0, 2]
    flat = [item for items in expected for item in items]
    assert examples.expected_slots().tolist() == [flat.count(item) for item in range(6)]
    assert examples.touched(0).tolist() == [0, 1, 2, 3, 4]
    assert examples.touched(1).tolist() == []


def test_each_clicked_item_of_an_impression_is_an_example(make_domain: Any, tmp_path: Path) -> None:
    examples = ValidationExamples(on_impressions(make_domain(SEQUENCES), tmp_path), 2)
    assert items_of(examples) == [[4, 5, 5], [4, 5, 2], [4, 5, 4], [3, 0, 4]]
    assert [examples.user(number) for number in range(4)] == [0, 0, 0, 1]
    assert set(examples.touched(1).tolist()) == {0, 3, 4}


def test_a_domain_without_validation_targets_is_refused(make_domain: Any) -> None:
    with pytest.raises(DataError, match="no validation target to read, for no user has three interactions"):
        ValidationExamples(leave_one_out(make_domain([[0, 1], [1]])), 20)
