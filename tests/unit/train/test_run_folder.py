"""A run's folder is new, written whole, and says on what machine it was made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from pmmrec.errors import MachineError, RecipeError
from pmmrec.train.run_folder import environment, make_run_folder, refuse_taken, write_json


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    assert make_run_folder(tmp_path / "runs" / "one").is_dir()


def test_a_folder_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "kept").write_text("x")
    for refuse in (refuse_taken, make_run_folder):
        with pytest.raises(RecipeError, match=r"one: this run exists; choose another name="):
            refuse(tmp_path / "one")
    assert (tmp_path / "one" / "kept").read_text() == "x"


def test_of_two_runs_that_start_at_once_the_second_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([False, True])  # the other run makes its folder between our look and our making
    monkeypatch.setattr(Path, "exists", lambda _: next(taken))
    (tmp_path / "one").mkdir()
    with pytest.raises(RecipeError, match="this run exists"):
        make_run_folder(tmp_path / "one")


def test_a_folder_that_cannot_be_made_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"file/one: cannot be made: "):
        make_run_folder(tmp_path / "file" / "one")


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"ä": 1})
    with pytest.raises(TypeError):
        write_json(path, {"ä": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_environment_names_versions_commit_and_processes() -> None:
    found = environment(2, torch.device("cpu"))
    assert (found["processes"], found["device"]) == (2, "cpu")
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["versions"]["pmmrec"]
    here = Path(__file__).parent
    commit = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert found["commit"] == (commit.stdout.strip() or None)
    assert json.loads(json.dumps(found)) == found
