"""Impressions: what a file lists is stored in a domain, and each list is a query."""

from __future__ import annotations

import csv
import pickle
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.data.domain import Domain
from pmmrec.data.importers.impressions import store_impressions
from pmmrec.data.splits import Split, SplitPart, split_of, splits
from pmmrec.data.splits.impressions import Impressions
from pmmrec.data.verify import verify_domain
from pmmrec.errors import DataError, RecipeError

SEQUENCES = [[0, 1, 2], [3, 0], [2]]
HEADER = ("impression_id", "user_id", "item_id", "clicked", "split")
ROWS = [
    ("7", "u01", "i02", "1", "test"),
    ("7", "u01", "i01", "0", "test"),
    ("7", "u01", "i00", "true", "test"),
    ("5", "u00", "i03", "1", "validation"),
    ("5", "u00", "i01", "0", "validation"),
    ("9", "u01", "i03", "1", "test"),
    ("9", "u01", "i77", "0", "test"),  # no such item
    ("9", "u01", "i01", "false", "test"),
    ("4", "u00", "i00", "0", "test"),
    ("4", "u00", "i02", "1", "test"),
    ("3", "u02", "i00", "0", "test"),  # nothing is clicked
    ("2", "u99", "i00", "1", "test"),  # no such user
    ("2", "u99", "i01", "0", "test"),
    ("1", "u02", "i00", "1", "test"),  # all is clicked
]


def written(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    with (folder / "shown.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return folder / "shown.csv"


def impressions(domain: Domain, name: str = "mind") -> Split:
    return split_of(splits.config({"type": "impressions", "name": name}), domain)


def test_each_list_is_a_query_after_the_whole_sequence_of_its_user(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES)
    stored = store_impressions(domain.folder, written(tmp_path, ROWS), "mind")
    assert stored.counts == {"validation": 1, "test": 3}
    assert stored.lines()[1:] == [
        "left out, rows of items that the domain lacks: 1: 'i77'",
        "left out, rows of users that the domain lacks: 2: 'u99', 'u99'",
        "left out, impressions without a clicked item, or without another one: 2: '3', '1'",
    ]
    split = impressions(Domain.open(domain.folder))
    for one in (split, pickle.loads(pickle.dumps(split))):  # noqa: S301 - as worker processes get it
        assert [one.train(user).tolist() for user in range(3)] == SEQUENCES
        test, validation = one.holdout("test"), one.holdout("validation")
        assert test.user_index.tolist() == [0, 1, 1]
        assert [test.targets(query).tolist() for query in range(3)] == [[2], [2, 0], [3]]
        assert [test.history(query).tolist() for query in range(3)] == [[0, 1, 2], [3, 0], [3, 0]]
        assert test.candidates is not None
        assert test.candidate_offsets is not None
        assert test.candidates.tolist() == [0, 2, 2, 1, 0, 3, 1]
        assert test.candidate_offsets.tolist() == [0, 2, 5, 7]
        assert (validation.user_index.tolist(), validation.target.tolist()) == ([0], [3])
    assert split.holdout("test", 1).num_queries in (1, 2)
    assert verify_domain(domain.folder) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [*ROWS, ("7", "u00", "i03", "0", "test")],
            "row 15: impression '7' has another user or split",
        ),
        ([*ROWS, ("7", "u01", "i03", "0", "validation")], "row 15: impression '7' has another user or split"),
        ([*ROWS, ("7", "u01", "i02", "0", "test")], "row 15: impression '7' shows item 'i02' twice"),
        ([("7", "u01", "i02", "yes", "test")], "row 1: clicked is 'yes'; write 1, 0, true, false"),
        ([("7", "u01", "i02", "0.5", "test")], "row 1: clicked is '0.5'; write 1, 0, true, false"),
        ([("7", "u01", "i02", "", "test")], "row 1: clicked is missing; write 1, 0, true, false"),
        ([("7", "u01", "i02", "1", "dev")], "row 1: split is 'dev'; write train, validation, test"),
        ([*ROWS, ("", "u01", "i02", "1", "test")], "row 15: has no impression_id"),
        (ROWS[10:], "holds no impression of shop with a clicked item and another one"),
    ],
)
def test_files_that_do_not_say_what_was_shown_are_refused(
    make_domain: Any, tmp_path: Path, rows: list[tuple[str, ...]], message: str
) -> None:
    domain = make_domain(SEQUENCES)
    with pytest.raises(DataError, match=message):
        store_impressions(domain.folder, written(tmp_path, rows), "mind")
    assert not (domain.folder / "impressions").exists()


def test_impressions_that_are_not_there_or_of_another_domain_are_refused(make_domain: Any, tmp_path: Path) -> None:
    domain, other = make_domain(SEQUENCES), make_domain(SEQUENCES[::-1], name="other")
    with pytest.raises(DataError, match=r"has no impressions 'mind'; there are: none; `pmmrec data impressions"):
        impressions(domain)
    stored = store_impressions(domain.folder, written(tmp_path, ROWS), "mind")
    with pytest.raises(RecipeError, match=r"--name mind: .* exists; choose another name, or remove it"):
        store_impressions(domain.folder, tmp_path / "shown.csv", "mind")
    (other.folder / "impressions").mkdir()
    (other.folder / "impressions" / "mind.arrow").write_bytes(stored.path.read_bytes())
    with pytest.raises(DataError, match="for other items or sequences than the domain's; store the impressions"):
        impressions(other)


@pytest.mark.parametrize(
    "clicked", [[1.0, 0.0], [True, False], [1, 0], ["True", "False"], ["1.0", "0.0"], [" 1", "0 "]]
)
def test_clicks_may_be_numbers_truth_values_or_text(make_domain: Any, tmp_path: Path, clicked: list[Any]) -> None:
    domain = make_domain(SEQUENCES)
    table = {
        "impression_id": [7, 7],
        "user_id": ["u01", "u01"],
        "item_id": ["i01", "i02"],
        "clicked": clicked,
        "split": ["test", "test"],
    }
    pq.write_table(pa.table(table), tmp_path / "shown.parquet")
    stored = store_impressions(domain.folder, tmp_path / "shown.parquet", "mind")
    (told,) = stored.lines()[1:]
    assert told.startswith("no impression is for validation: runs on this split are refused")
    test = impressions(domain).holdout("test")
    assert test.target.tolist() == [1]
    assert test.candidates is not None
    assert test.candidates.tolist() == [1, 2]


@pytest.mark.parametrize("damage", [b"", b"not arrow at all", None], ids=["empty", "other bytes", "cut short"])
def test_a_damaged_file_is_named_at_once(make_domain: Any, tmp_path: Path, damage: bytes | None) -> None:
    domain = make_domain(SEQUENCES)
    stored = store_impressions(domain.folder, written(tmp_path, ROWS), "mind")
    stored.path.write_bytes(stored.path.read_bytes()[:100] if damage is None else damage)
    problem = r"mind\.arrow: cannot be read as an Arrow file: .*; store the impressions again"
    with pytest.raises(DataError, match=problem):
        impressions(Domain.open(domain.folder))
    (found,) = verify_domain(domain.folder)
    assert re.search(problem, found)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"items": [[0, 9], [1, 2]]}, r"an item row is outside 0\.\.3"),
        ({"items": [[0, -1], [1, 2]]}, r"an item row is outside 0\.\.3"),
        ({"items": [[0, 0], [1, 2]]}, "a list shows an item twice"),
        ({"items": [[0], [1, 2]]}, "a list has other numbers of items and of clicks"),
        ({"items": [[0, None], [1, 2]]}, "an entry is missing"),
        ({"clicked": [None, [True, False]]}, "an entry is missing"),
        ({"clicked": [[True, True], [True, False]]}, "a list has no clicked item, or none but clicked ones"),
        ({"clicked": [[False, False], [True, False]]}, "a list has no clicked item, or none but clicked ones"),
        ({"user": [0, 3]}, r"a user row is outside 0\.\.2"),
        ({"user": [1, 0]}, "its users are not in order"),
        ({"part": [3, 2]}, "a part is not one of train, validation and test"),
        (
            {"user": [1, 0], "part": [1, 7]},
            "its users are not in order; a part is not one of train, validation and test",
        ),
    ],
)
def test_impressions_that_do_not_fit_the_domain_are_refused_at_once_and_found_by_verify(
    make_domain: Any, tmp_path: Path, changed: dict[str, Any], problem: str
) -> None:
    domain = make_domain(SEQUENCES)
    stored = store_impressions(domain.folder, written(tmp_path, ROWS), "mind")
    schema = pa.ipc.open_file(stored.path).schema
    table = {"items": [[0, 1], [1, 2]], "clicked": [[True, False]] * 2, "user": [0, 1], "part": [1, 2], **changed}
    columns = [pa.array(table[field.name], field.type) for field in schema]
    with pa.ipc.new_file(stored.path, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    with pytest.raises(DataError, match=rf"mind\.arrow: {problem}; store the impressions again"):
        impressions(domain)
    (found,) = verify_domain(domain.folder)
    assert re.search(problem, found)


KNOWN = [
    ("5", "u00", "i03", "1", "train", "1"),
    ("5", "u00", "i01", "0", "train", "1"),
    ("6", "u00", "i01", "1", "validation", "2"),
    ("6", "u00", "i02", "0", "validation", "2"),
    ("7", "u01", "i01", "1", "test", "2.0"),
    ("7", "u01", "i02", "0", "test", "2.0"),
    ("8", "u02", "i01", "1", "train", "0"),
    ("8", "u02", "i02", "0", "train", "0"),
    ("9", "u00", "i03", "1", "train", "3"),
    ("9", "u00", "i01", "0", "train", "3"),
]


def with_known(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    with (folder / "shown.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([(*HEADER, "known"), *rows])
    return folder / "shown.csv"


def test_what_is_known_before_an_impression_is_its_history_and_nothing_later_trains(
    make_domain: Any, tmp_path: Path
) -> None:
    domain = make_domain(SEQUENCES)
    stored = store_impressions(domain.folder, with_known(tmp_path, KNOWN), "mind")
    assert stored.counts == {"train": 1, "validation": 1, "test": 1}
    assert stored.lines()[1:] == [
        "left out, rows of impressions before which nothing is known: 2: '8', '8'",
        "left out, rows of training that know items behind a held-out impression: 2: '9', '9'",
    ]
    split = impressions(Domain.open(domain.folder))
    assert isinstance(split, Impressions)
    for one in (split, pickle.loads(pickle.dumps(split))):  # noqa: S301 - as worker processes get it
        assert one.holdout("validation").history(0).tolist() == [0, 1]
        assert one.holdout("test").history(0).tolist() == [3, 0]
        assert [one.train(user).tolist() for user in range(3)] == [[0, 1], [3, 0], [2]]
        assert [stretch.item_H.tolist() for stretch in one.train_stretches()] == [[0, 1, 3, 0, 2]]
        trained = one.lists(SplitPart.TRAIN)
        assert (trained.user_M.tolist(), trained.known_M.tolist()) == ([0], [1])
        assert (trained.item_C.tolist(), trained.is_clicked_C.tolist()) == ([3, 1], [True, False])
    assert verify_domain(domain.folder) == []


@pytest.mark.parametrize("known", ["4", "-1", "two", ""])
def test_another_number_of_known_items_is_refused(make_domain: Any, tmp_path: Path, known: str) -> None:
    rows = [(*row[:5], known) for row in KNOWN[:2]]
    with pytest.raises(DataError, match=f"row 1: known is {known or None!r}; write how many of the 3 items"):
        store_impressions(make_domain(SEQUENCES).folder, with_known(tmp_path, rows), "mind")


def test_an_impression_with_two_numbers_of_known_items_is_refused(make_domain: Any, tmp_path: Path) -> None:
    rows = [KNOWN[0], (*KNOWN[1][:5], "2")]
    with pytest.raises(DataError, match="row 2: impression '5' has another user or split, or other known items"):
        store_impressions(make_domain(SEQUENCES).folder, with_known(tmp_path, rows), "mind")


def test_verify_finds_a_click_that_was_changed(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES)
    stored = store_impressions(domain.folder, written(tmp_path, ROWS), "mind")
    table = pa.ipc.open_file(stored.path).read_all()
    clicked = [[not one for one in shown] for shown in table["clicked"].to_pylist()]
    changed = table.set_column(1, table.schema.field(1), pa.array(clicked, table.schema.field(1).type))
    with pa.ipc.new_file(stored.path, table.schema) as writer:
        writer.write_table(changed)
    assert verify_domain(domain.folder) == [f"{stored.path}: changed after it was stored; store it again"]
