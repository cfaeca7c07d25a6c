"""A pretraining that is killed a few times at random moments; `make torture` kills it more often."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_a_pretraining_killed_three_times_ends_as_one_that_was_left_alone() -> None:
    program = Path(__file__).with_name("kill_nine.py")
    done = subprocess.run(
        [sys.executable, str(program), "--kills", "3"], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills, no difference" in done.stdout
