"""The given split: a file of parts is stored in a domain, and read as it says."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.data.domain import Domain
from pmmrec.data.importers.given_split import store_split, store_split_by
from pmmrec.data.splits import Split, split_of, splits
from pmmrec.data.splits.given import SEQUENCES_KEY
from pmmrec.data.verify import verify_domain
from pmmrec.errors import DataError, RecipeError

SEQUENCES = [[0, 1, 2, 1], [3, 0], [2, 2, 2], [1, 3]]
PARTS = [
    ["train", "test", "validation", "train"],
    ["train", "train"],
    ["test", "train", "validation"],
    ["test", "test"],
]


def rows_of(sequences: list[list[int]], parts: list[list[str]]) -> list[tuple[str, str, str]]:
    return [
        (f"u{user:02d}", f"i{item:02d}", part)
        for user, (items, of_user) in enumerate(zip(sequences, parts, strict=True))
        for item, part in zip(items, of_user, strict=True)
    ]


def written(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("user_id", "item_id", "split"), *rows])
    return path


def given(domain: Domain, name: str = "paper") -> Split:
    return split_of(splits.config({"type": "given", "name": name}), domain)


def test_each_interaction_is_in_the_part_that_the_file_says(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES)
    rows = [("u99", "i00", "train"), *rows_of(SEQUENCES, PARTS)]
    stored = store_split(domain.folder, written(tmp_path / "parts.csv", rows), "paper")
    assert stored.counts == {"train": 5, "validation": 2, "test": 4}
    assert stored.lines()[1:] == ["left out, rows (user/item) of no interaction of the domain: 1: 'u99/i00'"]
    split = given(Domain.open(domain.folder))
    for one in (split, pickle.loads(pickle.dumps(split))):  # noqa: S301 - as worker processes get it
        assert [one.train(user).tolist() for user in range(4)] == [[0, 1], [3, 0], [2], []]
        test = one.holdout("test")
        assert test.user_index.tolist() == [0, 2]
        assert [test.history(query).tolist() for query in range(2)] == [[0, 2, 1], [2, 2]]
        assert [test.targets(query).tolist() for query in range(2)] == [[1], [2]]
        assert test.without_history.tolist() == [3]
        validation = one.holdout("validation")
        assert [validation.targets(query).tolist() for query in range(2)] == [[2], [2]]
        assert one.train_counts.tolist() == [2, 1, 1, 1]
    assert verify_domain(domain.folder) == []


def test_more_rows_of_a_pair_than_interactions_are_refused_where_their_parts_differ(
    make_domain: Any, tmp_path: Path
) -> None:
    domain = make_domain(SEQUENCES)
    rows = rows_of(SEQUENCES, PARTS)
    source = written(tmp_path / "parts.csv", [*rows, ("u00", "i00", "test"), ("u01", "i03", "train")])
    with pytest.raises(DataError, match=r"unknown which are left \(user/item\): 1: 'u00/i00'; keep the rows"):
        store_split(domain.folder, source, "paper")
    written(source, [*rows, ("u01", "i03", "train")])
    assert store_split(domain.folder, source, "paper").counts["train"] == 5


def test_a_parquet_file_in_any_order_gives_the_same(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain([[0, 1, 2, 3], [3, 0, 1]])
    rows = rows_of([[0, 1, 2, 3], [3, 0, 1]], [["train", "validation", "test", "test"], ["train", "test", "train"]])
    users, items, parts = zip(*rows[::-1], strict=True)
    pq.write_table(pa.table({"split": parts, "item_id": items, "user_id": users}), tmp_path / "parts.parquet")
    store_split(domain.folder, tmp_path / "parts.parquet", "paper")
    split = given(domain)
    assert [split.train(user).tolist() for user in range(2)] == [[0], [3, 1]]
    assert split.holdout("test").target.tolist() == [2, 3, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: [(*rows[0][:2], "holdout"), *rows[1:]],
            "split is 'holdout'; write train, validation",
        ),
        (lambda rows: rows[2:], r"interaction of shop needs a row; \(user/item\) without one: 2: 'u00/i00', 'u00/i01'"),
        (lambda rows: [(*row[:2], "train") for row in rows], "says train of every interaction of shop; a split holds"),
        (lambda rows: [(*row[:2], "test") for row in rows], "says test of every interaction of shop; a split holds"),
    ],
)
def test_files_that_do_not_give_every_interaction_a_part_are_refused(
    make_domain: Any, tmp_path: Path, change: Any, message: str
) -> None:
    domain = make_domain([[0, 1, 2], [2, 1]])
    rows = change(rows_of([[0, 1, 2], [2, 1]], [["train"] * 3, ["test"] * 2]))
    with pytest.raises(DataError, match=message):
        store_split(domain.folder, written(tmp_path / "parts.csv", rows), "paper")
    assert not (domain.folder / "splits").exists()


def test_a_split_that_is_not_there_or_of_other_sequences_is_refused(make_domain: Any, tmp_path: Path) -> None:
    domain, other = make_domain([[0, 1, 2]]), make_domain([[2, 1, 0]], name="other")
    with pytest.raises(DataError, match=r"has no split 'paper'; there are: none; `pmmrec data split .* stores some"):
        given(domain)
    rows = rows_of([[0, 1, 2]], [["train", "validation", "test"]])
    stored = store_split(domain.folder, written(tmp_path / "parts.csv", rows), "paper")
    with pytest.raises(RecipeError, match=r"--name paper: .* exists; choose another name, or remove it"):
        store_split(domain.folder, tmp_path / "parts.csv", "paper")
    (other.folder / "splits").mkdir()
    (other.folder / "splits" / "paper.arrow").write_bytes(stored.path.read_bytes())
    with pytest.raises(DataError, match="for other items or sequences than the domain's; store the split again"):
        given(other)


def test_verify_finds_a_part_that_was_changed_to_another_one(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES)
    stored = store_split(domain.folder, written(tmp_path / "parts.csv", rows_of(SEQUENCES, PARTS)), "paper")
    table = pa.ipc.open_file(stored.path).read_all()
    changed = table["parts"].to_pylist()
    changed[1] = [2, 2]
    _replace(stored.path, changed, table.schema)
    assert verify_domain(domain.folder) == [f"{stored.path}: changed after it was stored; store it again"]
    _replace(stored.path, changed, table.schema.with_metadata({SEQUENCES_KEY: table.schema.metadata[SEQUENCES_KEY]}))
    assert verify_domain(domain.folder) == []  # as earlier versions stored it


def _replace(path: Path, parts: list[Any], schema: pa.Schema) -> None:
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(parts, schema.field(0).type)], schema=schema))


def test_a_split_without_validation_is_stored_with_a_word(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain([[0, 1, 2]])
    rows = rows_of([[0, 1, 2]], [["train", "train", "test"]])
    stored = store_split(domain.folder, written(tmp_path / "parts.csv", rows), "paper")
    (told,) = stored.lines()[1:]
    assert told.startswith("no interaction is for validation: runs on this split are refused")


@pytest.mark.parametrize("damage", [b"", b"not arrow at all", None], ids=["empty", "other bytes", "cut short"])
def test_a_damaged_file_is_named(make_domain: Any, tmp_path: Path, damage: bytes | None) -> None:
    domain = make_domain(SEQUENCES)
    stored = store_split(domain.folder, written(tmp_path / "parts.csv", rows_of(SEQUENCES, PARTS)), "paper")
    stored.path.write_bytes(stored.path.read_bytes()[:100] if damage is None else damage)
    with pytest.raises(DataError, match=r"paper\.arrow: cannot be read as an Arrow file: .*; store the split again"):
        given(Domain.open(domain.folder))


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([[0, 1, 2, 0], [0, 0], [0, 1, 2]], "does not fit the sequences of the domain"),
        ([[0, 1, 2, 0], [0], [0, 1, 2], [2, 2]], "does not fit the sequences of the domain"),
        ([[0, 1, 2, 0], [0, 0], None, [2, 2]], "does not fit the sequences of the domain"),
        ([[0, 1, None, 0], [0, 0], [0, 1, 2], [2, 2]], "does not fit the sequences of the domain"),
        ([[0, 1, 2, 0], [0, 0], [0, 1, 2], [2, 7]], "7 is not a part of a split"),
    ],
    ids=["a user short", "an interaction short", "no list", "no part", "an unknown part"],
)
def test_parts_that_do_not_fit_the_domain_are_refused_at_once_and_found_by_verify(
    make_domain: Any, tmp_path: Path, parts: list[Any], problem: str
) -> None:
    domain = make_domain(SEQUENCES)
    stored = store_split(domain.folder, written(tmp_path / "parts.csv", rows_of(SEQUENCES, PARTS)), "paper")
    _replace(stored.path, parts, pa.ipc.open_file(stored.path).schema)
    with pytest.raises(DataError, match=rf"paper\.arrow: {problem}; store the split again"):
        given(domain)
    (found,) = verify_domain(domain.folder)
    assert f"paper.arrow: {problem}" in found


RULES = [
    {"type": "leave_one_out"},
    {"type": "ratio", "seed": 4},
    {"type": "ratio", "by": "time", "shares": [1, 1, 1]},
    {"type": "global_time", "validation": 0.2, "test": 0.2},
]


@pytest.mark.parametrize("rule", RULES, ids=["leave_one_out", "ratio", "ratio_by_time", "global_time"])
def test_a_rule_is_stored_as_what_it_gives(make_domain: Any, rule: dict) -> None:
    domain = make_domain([[0, 1, 2, 1, 3], [3, 0, 2, 1], [2, 2, 2], [1, 3]])
    asked = split_of(splits.config(rule), domain)
    store_split_by(domain.folder, splits.config(rule), "paper")
    found = given(Domain.open(domain.folder))
    assert [found.train(user).tolist() for user in range(4)] == [asked.train(user).tolist() for user in range(4)]
    for name in ("validation", "test"):
        ours, theirs = found.holdout(name), asked.holdout(name)
        assert ours.user_index.tolist() == theirs.user_index.tolist()
        assert [ours.targets(q).tolist() for q in range(ours.num_queries)] == [
            theirs.targets(q).tolist() for q in range(theirs.num_queries)
        ]
        assert ours.history_items.tolist() == theirs.history_items.tolist()
    assert verify_domain(domain.folder) == []


def test_a_rule_that_says_more_than_parts_is_refused(make_domain: Any) -> None:
    domain = make_domain([[0, 1, 2, 1]])
    with pytest.raises(RecipeError, match="test_history is no part of a stored split"):
        store_split_by(domain.folder, splits.config({"type": "ratio", "test_history": "train"}), "paper")
    store_split_by(domain.folder, splits.config({"type": "leave_one_out"}), "paper")
    with pytest.raises(RecipeError, match="exists; choose another name"):
        store_split_by(domain.folder, splits.config({"type": "leave_one_out"}), "paper")
