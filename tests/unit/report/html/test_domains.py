"""A domain told of by several runs is taken from the first place that still holds it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pmmrec.report.comparison import read_systems
from pmmrec.report.html.domains import domains_read


def test_a_domain_that_one_run_lost_is_found_through_another(evaluated: Path, hostile: Path, tmp_path: Path) -> None:
    lost = Path(shutil.copytree(evaluated, tmp_path / "lost"))
    (lost / "domains.json").write_text(json.dumps({"hostile": str(tmp_path / "gone"), "never_measured": "nowhere"}))
    found = domains_read(read_systems([f"lost={lost}", f"found={evaluated}"]))
    assert [domain.folder for domain in found] == [hostile]


def test_runs_that_do_not_tell_of_places_have_none(evaluated: Path, tmp_path: Path) -> None:
    silent = Path(shutil.copytree(evaluated, tmp_path / "silent"))
    (silent / "domains.json").unlink()
    assert domains_read(read_systems([str(silent)])) == []
