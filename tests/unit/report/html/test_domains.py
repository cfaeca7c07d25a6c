"""A domain is read from the first recorded path that still holds it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pmmrec.report.comparison import read_systems
from pmmrec.report.html.domains import domains_read


def test_a_domain_missing_at_the_path_of_one_run_is_found_at_that_of_another(
    evaluated: Path, hostile: Path, tmp_path: Path
) -> None:
    lost = Path(shutil.copytree(evaluated, tmp_path / "lost"))
    (lost / "domains.json").write_text(json.dumps({"hostile": str(tmp_path / "gone"), "never_measured": "nowhere"}))
    found = domains_read(read_systems([f"lost={lost}", f"found={evaluated}"]))
    assert [domain.folder for domain in found] == [hostile]


def test_runs_without_recorded_paths_have_no_domains(evaluated: Path, tmp_path: Path) -> None:
    silent = Path(shutil.copytree(evaluated, tmp_path / "silent"))
    (silent / "domains.json").unlink()
    assert domains_read(read_systems([str(silent)])) == []
