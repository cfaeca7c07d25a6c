"""Lists are written in the format of the suffix, with the same rows in every format."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.recommend import TopItems
from pmmrec.serving import lists as serving_lists
from pmmrec.serving.lists import SUFFIXES, Written, write_lists
from pmmrec.serving.score import check_lists_out

USERS = ["u0", "01", 'a "quoted", user', "日本\nline", "u4"]
ITEMS = ["i0", "1,5", "0x1", '"']
SCORES = [0.1, 1.0, -2.5e-08, 3.0e12]  # in float32


def chunks(sizes: tuple[int, ...] = (2, 2, 1)) -> Iterator[tuple[pa.Array, TopItems]]:
    """Lists of two items for each user; the last user has only one."""
    first = 0
    for size in sizes:
        user = torch.arange(first, first + size)
        item_BK = torch.stack([user % 4, (user + 1) % 4], dim=1)
        is_filled_BK = torch.ones(size, 2, dtype=torch.bool)
        is_filled_BK[user == 4, 1] = False
        yield (
            pa.array(USERS[first : first + size], pa.large_string()),
            TopItems(user, item_BK, torch.tensor(SCORES)[item_BK], is_filled_BK),
        )
        first += size


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of any format, read by the usual library."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [{**row, "rank": int(row["rank"]), "score": float(row["score"])} for row in csv.DictReader(file)]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return list(pq.read_table(path).to_pylist())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rows_at_once", [3, 100])
def test_every_format_holds_the_same_rows(
    tmp_path: Path, suffix: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_lists, "ROWS_OF_GROUP", rows_at_once)
    path = tmp_path / "out" / f"lists{suffix}"
    assert write_lists(path, chunks(), pa.array(ITEMS, pa.large_string())) == Written(9)
    rows = rows_of(path)
    expected = [(user, rank, (place + rank - 1) % 4) for place, user in enumerate(USERS) for rank in (1, 2)][:-1]
    assert [list(row) for row in rows] == [["user_id", "rank", "item_id", "score"]] * 9
    assert [(row["user_id"], row["rank"], row["item_id"]) for row in rows] == [
        (user, rank, ITEMS[item]) for user, rank, item in expected
    ]
    told = torch.tensor([row["score"] for row in rows], dtype=torch.float64).float()
    assert torch.equal(told, torch.tensor([SCORES[item] for *_, item in expected]))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if suffix == ".parquet":
        assert pq.ParquetFile(path).num_row_groups == (1 if rows_at_once == 100 else 3)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("escapes", [False, True])
def test_ids_in_a_csv_that_a_spreadsheet_would_compute_are_counted_and_escaped_where_asked(
    tmp_path: Path, suffix: str, escapes: bool
) -> None:
    path, items = tmp_path / f"lists{suffix}", ["=1+1", "b\n-2", "'=", "\t@x"]
    written = write_lists(path, chunks(), pa.array(items, pa.large_string()), escapes=escapes)
    assert written == Written(9, 5 if suffix == ".csv" else 0)
    found = {row["item_id"] for row in rows_of(path)}
    sign = "'" if escapes and suffix == ".csv" else ""
    assert found == {f"{sign}=1+1", "b\n-2", "'=", f"{sign}\t@x"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_users_make_a_file_without_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"lists{suffix}"
    assert write_lists(path, iter([]), pa.array(["i"])) == Written(0)
    assert rows_of(path) == []


def test_a_file_that_exists_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "lists.parquet"
    path.write_text("mine")
    with pytest.raises(RecipeError, match=r"lists\.parquet: exists"):
        write_lists(path, iter([]), pa.array(["i"]))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_run_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    def broken() -> Iterator[tuple[pa.Array, TopItems]]:
        yield from chunks((2,))
        raise DataError("broken off")

    with pytest.raises(DataError, match="broken off"):
        write_lists(tmp_path / f"lists{suffix}", broken(), pa.array(ITEMS, pa.large_string()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["lists", "lists.tsv", "lists.json", "lists.csv.gz", "lists.xlsx", ".csv"])
def test_another_suffix_is_refused_by_one_process(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=r"^--out .*; end the name in \.csv or \.jsonl or \.parquet$"):
        check_lists_out(tmp_path / name, 1)


@pytest.mark.parametrize("name", ["lists.csv", "lists.CSV", "lists.Parquet", "a.b/lists.jsonl"])
def test_a_suffix_counts_in_any_case(tmp_path: Path, name: str) -> None:
    check_lists_out(tmp_path / name, 1)


def test_escaped_formulas_are_refused_where_no_csv_is_written(tmp_path: Path) -> None:
    check_lists_out(tmp_path / "lists.csv", 1, escapes=True)
    for name, num_processes in (("lists.parquet", 1), ("lists", 2)):
        with pytest.raises(RecipeError, match=r"^--escape-formulas: has no effect on .*, which is not a \.csv"):
            check_lists_out(tmp_path / name, num_processes, escapes=True)


def test_several_processes_write_a_folder_of_parquet(tmp_path: Path) -> None:
    for name in ("lists", "lists.v2", "lists.parquet"):
        check_lists_out(tmp_path / name, 2)
    for name in ("lists.csv", "lists.JSONL"):
        with pytest.raises(RecipeError, match=r"2 processes write a folder of \.parquet files; name a folder"):
            check_lists_out(tmp_path / name, 2)
