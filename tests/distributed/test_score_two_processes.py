"""Two processes score one platform: each encodes and scores its share, and together they write what one would."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
from command_line import Pmmrec
from worker_group import run_group

COLUMNS = ["user_id", "rank", "item_id"]


def test_two_processes_write_what_one_does(small_run: Path, world: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    asked = ("score", "small", world / "boutique", "--hub", small_run / "hub", "--top-k", "5")
    program = Path(sys.executable).with_name("pmmrec")
    said = run_group(2, program, *asked, "--cache", "c", "--out", "lists", folder=tmp_path, spread={}).well()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "lists"]
    assert said.count(" rows for 20 users") == 2
    alone = pmmrec(*asked, "--cache", tmp_path / "c2", "--out", tmp_path / "alone.parquet")
    assert alone.code == 0, alone.output
    joined, whole = pq.read_table(tmp_path / "lists"), pq.read_table(tmp_path / "alone.parquet")
    assert joined.select(COLUMNS).equals(whole.select(COLUMNS))
