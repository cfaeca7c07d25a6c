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


def _run_with(pmmrec: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the quickstart with a program in the place of `pmmrec`, given as lines of shell."""
    program = folder / "bin" / "pmmrec"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{pmmrec}\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    return subprocess.run([SCRIPT], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_folder_called_demo_that_somebody_else_made_is_kept(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").touch()
    done = _run_with("exit 0", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: demo: exists and was not made by the quickstart; move it elsewhere, or remove it\n")
    assert (tmp_path / "demo" / "mine.txt").exists()


def test_a_demo_world_that_a_stop_left_unfinished_is_made_anew(tmp_path: Path) -> None:
    makes = "mkdir demo && for name in bazaar gallery boutique; do mkdir demo/$name; touch demo/$name/domain.json; done"
    first = _run_with(f'[ "$2" = demo ] && {makes} && exit 9', tmp_path)  # ends when all is there but not yet said
    assert first.returncode == 9
    (tmp_path / "demo" / "rest").touch()
    second = _run_with(f'[ "$2" = demo ] && {{ {makes}; exit; }}; [ "$1" = data ] || exit 8', tmp_path)
    assert second.returncode == 8  # at the first training
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["bazaar", "boutique", "gallery"]
    third = _run_with("exit 7", tmp_path)
    assert (third.returncode, third.stdout) == (7, "demo: made earlier, left as it is\n")
