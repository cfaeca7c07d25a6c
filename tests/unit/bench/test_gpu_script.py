"""The script for a GPU runs on a CPU in its small form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "launch" / "bench_gpu.sh"


def test_the_script_for_a_gpu_measures_all_three_rows(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    done = subprocess.run([SCRIPT, "--tiny"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert found["full"]["useful_flops"] > found["top_2"]["useful_flops"] > 0
    assert 0 < found["encode"]["utilisation"] < 1
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert all(row in page for row in ("full fine-tuning", "top 2 blocks", "encoding a catalogue"))
