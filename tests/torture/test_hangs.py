"""Processes that hang, fall silent or are gone: the watchdog names them and ends the run, in real time."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import train_stopped
from forked import in_child
from heartbeats import sending_heartbeats
from ports import free_port
from torch.distributed import HashStore
from worker_group import run_group

from pmmrec.train.heartbeat import Activity, StepPhase
from pmmrec.train.watchdog import Watchdog

pytestmark = pytest.mark.long

HANGS = """
import sys, time
from pmmrec.train.heartbeat import StepPhase
from pmmrec.train.watchdog import Watchdog
watchdog = Watchdog(0, 1)
watchdog.set_limits(0.5, float(sys.argv[1]))
with watchdog.open():
    for step in (1, 2, 3):
        watchdog.step(step, StepPhase.READING)
        time.sleep(0.2)
    watchdog.between_steps()
    time.sleep(1.5)
    watchdog.step(4, StepPhase.COMPUTING)
    def stuck(): time.sleep(60)
    watchdog.step(4, StepPhase.READING)
    stuck()
"""

# Process 1 says that it computes in step 3, and then, after argv[1], nothing more. Process 0 is in no step.
FALLS_SILENT = """
import sys, time
from torch.distributed import HashStore
from pmmrec.train.heartbeat import Activity, HeartbeatMonitor, StepPhase
from pmmrec.train.watchdog import Watchdog
store = HashStore()
other = HeartbeatMonitor(store, 1, 2, 1000, lambda: Activity(3, StepPhase.COMPUTING))
other.start()
watchdog = Watchdog(0, 2, store)
watchdog.set_limits(0.5)
with watchdog.open():
    if sys.argv[1] == "leaving":
        other.stop("", 5)
    time.sleep(3)
"""

# Two processes; the second ends as argv[1] says while the first waits for it.
LOSES = """
import os, sys, time
import torch
import torch.distributed as dist
from pmmrec.errors import DataError, PMMRecError
from pmmrec.train.heartbeat import StepPhase
from pmmrec.train.watchdog import Watchdog
rank = 0 if os.fork() else 1
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
store = dist.TCPStore("127.0.0.1", int(sys.argv[3]), is_master=rank == 0, wait_for_workers=False)
try:
    with Watchdog(rank, 2, store).open():
        dist.barrier()
        if rank == 1 and sys.argv[1] == "raises":
            raise DataError("row 7 is not what it seems")
        if rank == 1:
            os._exit(9)
        dist.all_reduce(torch.ones(1))
except PMMRecError as error:
    if rank == 0:
        print(f"told: {error}")
"""


PREPARES = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from pmmrec.train.processes import MachineConfig
from pmmrec.train.run import Run
recipe = SimpleNamespace(
    folder=Path(sys.argv[1]), machine=MachineConfig(device="cpu"), name="one",
    reread=str, to_yaml=lambda: "name: one\\n"
)
with Run.start(recipe) as run:
    run.limit_time(step_minutes=0.01, phase_hours=1 / 3600)
    time.sleep(60)
"""


def _run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def test_a_step_that_never_ends_ends_the_process_and_shows_where_it_is() -> None:
    done = _run(HANGS, 60)
    assert done.returncode == 4
    assert "error: step 4: process 0 of 1: reading in step 4 for more than 0.5 s; --resume goes on" in done.stderr
    assert "in stuck" in done.stderr


def test_the_time_between_steps_has_its_own_limit() -> None:
    done = _run(HANGS, 1)
    assert done.returncode == 4
    told = "error: after step 2: process 0 of 1: busy after step 2 for more than 1 s; --resume goes on"
    assert f"{told} from the last state (train.phase_hours)" in done.stderr


def test_a_run_that_hangs_before_its_first_step_is_ended_as_well(tmp_path: object) -> None:
    done = _run(PREPARES, f"{tmp_path}/one")
    assert done.returncode == 4
    told = "error: preparation: process 0 of 1: preparing for more than 1 s; --resume goes on from the last state"
    assert f"{told} (train.phase_hours)" in done.stderr


def test_steps_and_pauses_within_their_limits_end_nothing() -> None:
    def work() -> None:
        watchdog = Watchdog(0, 1)
        watchdog.set_limits(0.3)
        with watchdog.open():
            for step in range(5):
                watchdog.step(step, StepPhase.READING)
                watchdog.step(step, StepPhase.COMPUTING)
                time.sleep(0.1)
            watchdog.between_steps()
            time.sleep(0.8)

    in_child(work)  # which the watchdog would end


def test_a_silent_process_is_named_and_ends_the_others_even_between_steps() -> None:
    done = _run(FALLS_SILENT, "without a word")
    assert done.returncode == 4
    told = f"error: preparation: process 1 of 2 (on {socket.gethostname()}): not heard of for 1 s, last computing in "
    assert f"{told}step 3: the process, its machine or the network is gone; --resume goes on" in done.stderr


def test_a_process_that_ended_normally_may_be_silent() -> None:
    done = _run(FALLS_SILENT, "leaving")
    assert (done.returncode, done.stderr) == (0, "")


# Two processes whose gradients DDP collectives in C++; the second never comes to that, and the first waits.
HANGS_ON_THE_WAY_BACK = """
import os, sys, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from pmmrec.train.heartbeat import StepPhase
from pmmrec.train.watchdog import Watchdog
rank = 0 if os.fork() else 1
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=rank, world_size=2)
store = dist.TCPStore("127.0.0.1", int(sys.argv[2]), is_master=rank == 0, wait_for_workers=False)
model, watchdog = DistributedDataParallel(torch.nn.Linear(3, 3)), Watchdog(rank, 2, store)
watchdog.set_limits(4.0)
with watchdog.open():
    if rank == 1:
        time.sleep(3)  # so that its own watchdog does not end it first
    watchdog.step(3, StepPhase.READING)
    watchdog.step(3, StepPhase.COMPUTING)
    out = model(torch.ones(2, 3, requires_grad=True))
    if rank == 1:
        out.register_hook(lambda _: time.sleep(60))
    out.sum().backward()
"""

# Process 1 ends by an error that no connection tells of; process 0 waits for it, or has work of its own.
LEFT_BEHIND = """
import sys, time
from torch.distributed import HashStore
from pmmrec.train import watchdog as watching
from pmmrec.train.heartbeat import Activity, HeartbeatMonitor, StepPhase
from pmmrec.train.watchdog import Watchdog
store = HashStore()
other = HeartbeatMonitor(store, 1, 2, 0.05, lambda: Activity(0, StepPhase.BETWEEN))
other.start()
watchdog = Watchdog(0, 2, store)
watchdog.set_limits(0.5)
with watchdog.open():
    other.stop("runs/x: no space left on the device", 5)
    if sys.argv[1] == "waits":
        exec(compile("time.sleep(60)", next(iter(watching._COLLECTIVE_FILES)), "exec"))
    time.sleep(2)
"""


def test_a_process_that_hangs_in_backward_is_told_from_those_that_wait_for_its_gradients(tmp_path: object) -> None:
    done = _run(HANGS_ON_THE_WAY_BACK, f"{tmp_path}/store", free_port())
    assert done.returncode == 4
    told = "error: step 3: process 1 of 2: computing in step 3 for more than 4 s; process 0 is waiting in step 3; "
    assert told in done.stderr
    assert "process 0 of 2" not in done.stderr
    assert "processes 0, 1" not in done.stderr


def test_a_process_that_waits_for_one_that_failed_ends_with_its_error() -> None:
    done = _run(LEFT_BEHIND, "waits")
    assert done.returncode == 4
    told = f"error: preparation: process 1 of 2 (on {socket.gethostname()}) ended: runs/x: no space left on the device"
    assert told in done.stderr


def test_a_process_with_work_of_its_own_is_not_ended_by_the_end_of_another() -> None:
    done = _run(LEFT_BEHIND, "works")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_step_waits_for_a_process_that_is_between_two_steps() -> None:
    def work() -> None:
        store = HashStore()
        watchdog = Watchdog(1, 4, store)
        watchdog.set_limits(0.3)
        computing = Activity(7, StepPhase.COMPUTING)
        with (
            sending_heartbeats(store, {0: Activity(6, StepPhase.BETWEEN), 2: computing, 3: computing}),
            watchdog.open(),
        ):
            watchdog.step(7, StepPhase.READING)
            watchdog.step(7, StepPhase.COMPUTING)
            time.sleep(1.5)
            watchdog.between_steps()

    in_child(work)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("raises", f"preparation: process 1 of 2 (on {socket.gethostname()}) ended: row 7 is not what it seems"),
        ("exits", "preparation: process 1 of 2 is gone, process 0 lost the connection to it: "),
    ],
)
def test_a_process_that_waits_for_one_that_ended_says_so_at_once(end: str, told: str, tmp_path: object) -> None:
    done = _run(LOSES, end, f"{tmp_path}/store", free_port())
    assert f"told: {told}" in done.stdout, done.stdout + done.stderr
    assert "--resume goes on from the last state" in done.stdout


def test_processes_that_do_not_connect_in_time_end_and_say_what_to_check() -> None:
    done = _run("import time\nfrom pmmrec.train.watchdog import joining\nwith joining(0.3): time.sleep(60)")
    assert done.returncode == 4
    assert "error: launch: process 0 of 1 cannot reach the others for 0.3 s; they talk over ports" in done.stderr


def test_a_process_that_hangs_is_named_with_its_step_and_the_run_ends(tmp_path: Path, world: Path) -> None:
    done = run_group(2, train_stopped.__file__, world / "boutique", tmp_path, "--at", 3, "--comes", "", "--rank", 1)
    assert done.code != 0
    told = "error: step 3: process 1 of 2: computing in step 3 for more than 6 s"
    assert told in done.said, done.said
    assert "in to_device" in done.said  # the line it hangs in
