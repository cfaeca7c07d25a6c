"""A quickstart that is killed amid a training goes on when called again, and shows the comparison each time after."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import SMALL

from pmmrec.shipped import shipped_file

pytestmark = pytest.mark.long

COMPARED = "p: paired sign-flip test over users"  # the last line of a comparison
SETTINGS = [word for word in SMALL if not word.startswith("train.log_every")]
SETTINGS += ["cache=c", "train.epochs=2", "train.log_every=1", "train.state.every_steps=1"]


def _started(folder: Path, said: Path, *more: str) -> subprocess.Popen[bytes]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(folder)}
    command = [shipped_file("launch/quickstart.sh"), *SETTINGS, *more]
    with said.open("wb") as output:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_quickstart_that_is_stopped_goes_on_and_a_finished_one_compares_again(
    tmp_path: Path, world: Path, sign: signal.Signals
) -> None:
    shutil.copytree(world, tmp_path / "demo")
    first = _started(tmp_path, tmp_path / "first.txt")
    events = tmp_path / "runs" / "tiny" / "events.jsonl"
    while first.poll() is None and not (events.exists() and '"step": 4,' in events.read_text()):
        time.sleep(0.05)  # until it trains
    os.killpg(first.pid, sign)
    assert first.wait() != 0

    assert _started(tmp_path, tmp_path / "second.txt").wait() == 0, (tmp_path / "second.txt").read_text()
    second = (tmp_path / "second.txt").read_text()
    assert "runs/tiny: begun earlier, goes on" in second
    assert "goes on after step" in second
    assert COMPARED in second

    assert _started(tmp_path, tmp_path / "third.txt").wait() == 0
    third = (tmp_path / "third.txt").read_text()
    for folder in ("runs/tiny", "runs/scratch", "runs/transfer"):
        assert f"{folder}: finished earlier, left as it is" in third
    assert COMPARED in third
    assert "`make clean` takes them away, and the next `make quickstart` begins anew" in third


def test_a_demo_world_that_a_stop_left_unfinished_is_made_anew(tmp_path: Path) -> None:
    for name in ("bazaar", "gallery", "boutique"):
        (tmp_path / "demo" / name).mkdir(parents=True)
        (tmp_path / "demo" / name / "domain.json").touch()
    (tmp_path / "demo.incomplete").touch()  # so it was stopped before it said that all is there
    said = tmp_path / "said.txt"
    assert _started(tmp_path, said, "train.epoch=1").wait() == 2  # at the first training
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["bazaar", "boutique", "files", "gallery"]
    assert all((tmp_path / "demo" / name / "items.arrow").exists() for name in ("bazaar", "gallery", "boutique"))
    assert not (tmp_path / "demo.incomplete").exists()
    assert _started(tmp_path, said, "train.epoch=1").wait() == 2
    assert said.read_text().startswith("demo: made earlier, left as it is\n")
