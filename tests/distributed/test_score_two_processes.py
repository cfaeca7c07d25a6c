"""Two processes score one platform: each encodes and scores its share, and together they write what one would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from command_line import Pmmrec

COLUMNS = ["user_id", "rank", "item_id"]


def test_two_processes_write_what_one_does(small_run: Path, world: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    asked = ("score", "small", world / "boutique", "--hub", small_run / "hub", "--top-k", "5")
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python")
    command = (Path(sys.executable).with_name("pmmrec"), *asked, "--cache", "c", "--out", "lists")
    words = [str(word) for word in (*launch, *command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "lists"]
    assert done.stdout.count(" rows for 20 users") == 2
    alone = pmmrec(*asked, "--cache", tmp_path / "c2", "--out", tmp_path / "alone.parquet")
    assert alone.code == 0, alone.output
    joined, whole = pq.read_table(tmp_path / "lists"), pq.read_table(tmp_path / "alone.parquet")
    assert joined.select(COLUMNS).equals(whole.select(COLUMNS))
