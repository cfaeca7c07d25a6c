"""The quickstart leaves alone what is finished, and says how to go on where it ends early."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pmmrec.shipped import shipped_file

SCRIPT = shipped_file("launch/quickstart.sh")


def test_what_is_finished_is_left_alone_and_a_stop_tells_how_to_go_on(
    tmp_path: Path, world: Path, small_run: Path
) -> None:
    shutil.copytree(world, tmp_path / "demo")
    shutil.copytree(small_run / "runs" / "small", tmp_path / "runs" / "tiny")
    (tmp_path / "runs" / "zero-shot").mkdir()
    (tmp_path / "runs" / "zero-shot" / "metrics.json").touch()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [SCRIPT, "train.epoch=1"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        "demo: made earlier, left as it is",
        "runs/tiny: finished earlier, left as it is",
        "runs/zero-shot: ranked earlier, left as it is",
    ]
    problem, *_, hint = done.stderr.splitlines()
    assert problem.startswith("error: ")
    assert hint.startswith("stopped: `make quickstart` goes on from here; `make clean` takes away what it made")


def test_clean_takes_away_what_the_quickstart_made_and_nothing_else(tmp_path: Path) -> None:
    for name in ("demo", "demo.incomplete", "runs/tiny", "runs/mine", "hub/tiny", "hub/mine"):
        (tmp_path / name).mkdir(parents=True)
    subprocess.run([SCRIPT, "clean"], cwd=tmp_path, check=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"runs", "runs/mine", "hub", "hub/mine"}


def test_a_folder_called_demo_that_somebody_else_made_is_kept(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").touch()
    done = subprocess.run([SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: demo: exists and was not made by the quickstart; move it elsewhere, or remove it\n"
    assert (tmp_path / "demo" / "mine.txt").exists()
