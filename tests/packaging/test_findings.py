"""Each finding says what one would guess and what is seen, pins what it installs, and is listed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))


def _header(script: Path) -> list[str]:
    """The lines of the comment at the top, below the first."""
    lines = script.read_text(encoding="utf-8").splitlines()[1:]
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return lines[:end]


def test_there_are_findings_and_the_page_lists_each_in_a_line() -> None:
    listed = re.findall(r"^\| `(\w+\.sh)` \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(SCRIPTS) >= 5
    assert listed == [script.name for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_finding_says_guess_sight_version_and_reason_and_runs_without_pmmrec(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)
    assert 3 <= len(_header(script)) <= 6
    assert [line[2:].split(":")[0] for line in _header(script) if not line.startswith("#  ")] == [
        "guess",
        "seen",
        "version",
        "why here",
    ]
    assert "set -euo pipefail" in text
    assert "mktemp -d" in text
    assert "import pmmrec" not in text
    for line in text.splitlines():
        if "pip install" in line.replace('pip" install', "pip install"):
            assert "==" in line, line
