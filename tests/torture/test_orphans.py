"""What a killed program leaves behind: nothing that goes on working."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATIENCE_S = 60.0
OWNER = """
import sys, time
from pathlib import Path
from pmmrec.processes import ChildProcess
ChildProcess(["/bin/sh", "-c", sys.argv[1]], Path(sys.argv[2]), kept_open=int(sys.argv[3]))
print("started", flush=True)
time.sleep(600)
"""


def ended(pipe: int) -> bool:
    """Whether everybody who held the other end of a pipe has ended."""
    ready, _, _ = select.select([pipe], [], [], PATIENCE_S)
    return bool(ready) and os.read(pipe, 1) == b""


@pytest.mark.long
@pytest.mark.parametrize(
    "work",
    ["exec sleep 600", "sleep 600 & sleep 600", "trap '' TERM; while :; do sleep 1; done"],
    ids=["listens", "started another", "does not listen"],
)
def test_a_process_whose_owner_is_killed_ends_with_all_it_started(tmp_path: Path, work: str) -> None:
    held, kept_open = os.pipe()
    command = [sys.executable, "-c", OWNER, work, str(tmp_path / "log"), str(kept_open)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(kept_open,))
    os.close(kept_open)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"started\n"
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert ended(held)
    os.close(held)
    owner.stdout.close()


def is_free(lock: Path) -> bool:
    with lock.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.long
def test_trials_end_with_a_search_that_is_killed(tmp_path: Path, world: Path) -> None:
    """The lock of the search, which its trials keep open, is free soon after."""
    (tmp_path / "space.yaml").write_text("train.optimizer.weight_decay: {choice: [0, 0.1]}")
    small = ["model.width=16", "machine.device=cpu", "cache=c"]
    command = [
        sys.executable,
        "-m",
        "pmmrec",
        "tune",
        "zoo/ids/small/sasrec_in_batch",
        *small,
        "--space",
        "space.yaml",
        "--trials",
    ]
    options = ["--from", "none", "--on", str(world / "boutique"), "--name", "s"]
    long = ["train.epochs=5000", "validation.patience=5000"]
    until_s = time.monotonic() + PATIENCE_S
    with subprocess.Popen([*command, "2", *options, *long], cwd=tmp_path) as search:
        while not any(b'"validation"' in path.read_bytes() for path in tmp_path.glob("runs/s/trials/*/events.jsonl")):
            if search.poll() is not None or time.monotonic() > until_s:
                break
            time.sleep(0.1)
        search.send_signal(signal.SIGKILL)
    assert search.returncode == -signal.SIGKILL
    until_s = time.monotonic() + PATIENCE_S
    while not is_free(tmp_path / "runs" / "s" / "lock"):
        assert time.monotonic() < until_s
        time.sleep(0.1)
