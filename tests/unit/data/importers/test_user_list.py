"""User ids are read from text and table files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.data.importers.user_list import read_user_ids
from pmmrec.errors import DataError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("users.csv", "name,user_id\nx,01\ny,u 2\nz,\nw,01\n"),
        ("users.tsv", "user_id\tname\n01\tx\nu 2\ty\n"),
        ("users.txt", "\ufeff01\r\nu 2\n\n01\n"),
    ],
)
def test_ids_are_text_and_occur_once_in_the_order_of_the_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_user_ids(tmp_path / name).to_pylist() == ["01", "u 2"]


def test_whole_numbers_in_parquet_are_ids(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": [7, 5, 7]}), tmp_path / "users.parquet")
    found = read_user_ids(tmp_path / "users.parquet")
    assert (found.to_pylist(), found.type) == (["7", "5"], pa.large_string())


def test_a_file_that_names_nobody_or_lacks_the_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("\n\n")
    with pytest.raises(DataError, match="names no user"):
        read_user_ids(tmp_path / "users.txt")
    (tmp_path / "users.csv").write_text("user\nx\n")
    with pytest.raises(DataError, match="no column 'user_id', found 'user'"):
        read_user_ids(tmp_path / "users.csv")
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        read_user_ids(tmp_path / "none.txt")
    (tmp_path / "users.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8 text at byte 0"):
        read_user_ids(tmp_path / "users.txt")
    for name, words in (
        ("users.json", r"users\.json: unknown type '\.json'; give \.txt"),
        (".", "is a folder; give a file"),
    ):
        (tmp_path / "users.json").write_text("[]")
        with pytest.raises(DataError, match=words):
            read_user_ids(tmp_path / name)


def test_an_id_may_hold_any_letter_but_the_end_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("a\u2028b\nc\x0bd\x85e\n", encoding="utf-8")
    assert read_user_ids(tmp_path / "users.txt").to_pylist() == ["a\u2028b", "c\x0bd\x85e"]
