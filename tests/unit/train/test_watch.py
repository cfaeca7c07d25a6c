"""A step or a silence that never ends is told with its process, and ends the process; what is no step may last."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch.distributed import HashStore

from pmmrec.errors import MachineError
from pmmrec.train.voices import Doing, Place, Voices
from pmmrec.train.watch import Watch, joining

HANGS = """
import sys, time
from pmmrec.train.watch import Doing, Watch
watch = Watch(0, 1)
watch.limit(0.5, float(sys.argv[1]))
with watch.open():
    for step in (1, 2, 3):
        watch.step(step, Doing.READING)
        time.sleep(0.2)
    watch.rest()
    time.sleep(1.5)
    watch.step(4, Doing.COMPUTING)
    def stuck(): time.sleep(60)
    watch.step(4, Doing.READING)
    stuck()
"""

# Process 1 says that it computes in step 3, and then, after argv[1], nothing more. Process 0 is in no step.
FALLS_SILENT = """
import sys, time
from torch.distributed import HashStore
from pmmrec.train.voices import Doing, Place, Voices
from pmmrec.train.watch import Watch
store = HashStore()
other = Voices(store, 1, 2, 1000, lambda: Place(3, Doing.COMPUTING))
other.open()
watch = Watch(0, 2, store)
watch.limit(0.5)
with watch.open():
    if sys.argv[1] == "leaving":
        other.leave("", 5)
    time.sleep(3)
"""

# Two processes; the second ends as argv[1] says while the first waits for it.
LOSES = """
import os, sys, time
import torch
import torch.distributed as dist
from pmmrec.errors import DataError, PMMRecError
from pmmrec.train.watch import Doing, Watch
rank = 0 if os.fork() else 1
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
store = dist.TCPStore("127.0.0.1", int(sys.argv[3]), is_master=rank == 0, wait_for_workers=False)
try:
    with Watch(rank, 2, store).open():
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
    folder=Path(sys.argv[1]), machine=MachineConfig(device="cpu"), name="one", to_yaml=lambda: "name: one\\n"
)
with Run.start(recipe) as run:
    run.watch(step_minutes=0.01, phase_hours=1 / 3600)
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


def test_what_lies_between_steps_has_a_limit_of_its_own() -> None:
    done = _run(HANGS, 1)
    assert done.returncode == 4
    told = "error: after step 2: process 0 of 1: busy after step 2 for more than 1 s; --resume goes on"
    assert f"{told} from the last state (train.phase_hours)" in done.stderr


def test_a_run_that_hangs_before_its_first_step_is_ended_as_well(tmp_path: object) -> None:
    done = _run(PREPARES, f"{tmp_path}/one")
    assert done.returncode == 4
    told = "error: preparation: process 0 of 1: preparing for more than 1 s; --resume goes on from the last state"
    assert f"{told} (train.phase_hours)" in done.stderr


def test_steps_and_rests_that_end_in_time_end_nothing() -> None:
    watch = Watch(0, 1)
    watch.limit(0.3)
    with watch.open():
        for step in range(5):
            watch.step(step, Doing.READING)
            watch.step(step, Doing.COMPUTING)
            time.sleep(0.1)
        watch.rest()
        time.sleep(0.8)


def test_a_process_that_falls_silent_is_named_and_ends_the_others_also_between_steps() -> None:
    done = _run(FALLS_SILENT, "without a word")
    assert done.returncode == 4
    told = f"error: preparation: process 1 of 2 (on {socket.gethostname()}): not heard of for 1 s, last computing in "
    assert f"{told}step 3: the process, its machine or the network is gone; --resume goes on" in done.stderr


def test_a_process_that_came_to_its_end_may_be_silent() -> None:
    done = _run(FALLS_SILENT, "leaving")
    assert (done.returncode, done.stderr) == (0, "")


def test_who_ended_between_two_openings_is_silent_in_the_second() -> None:
    store = HashStore()
    here, other = (Voices(store, rank, 2, 0.05, lambda: Place(0, Doing.BETWEEN)) for rank in (0, 1))
    for voices in (here, other):
        voices.open()
    for voices in (here, other):
        voices.leave("", 10)
    here.open()
    here.ask(10)
    time.sleep(0.2)
    heard = here.others[1]
    here.leave("", 10)
    assert heard.gone is None
    assert heard.silent_s > 0.1


@contextmanager
def _speaking(store: HashStore, places: dict[int, Place]) -> Iterator[None]:
    """Other processes, of four, that are there."""
    others = [Voices(store, rank, 4, 0.05, lambda place=place: place) for rank, place in places.items()]
    for other in others:
        other.open()
    yield
    for other in others:
        other.leave("", 10)


def _verdict(here: Place, others: dict[int, Place]) -> str:
    """What process 1 says of itself and the others."""
    store = HashStore()
    watch = Watch(1, 4, store)
    watch.limit(60)
    with _speaking(store, others), watch.open():
        until_s = time.monotonic() + 10
        while any(voice.place is None for voice in watch._voices.others.values()) and time.monotonic() < until_s:
            watch._voices.ask(1)
        return watch.verdict(here)


def test_the_one_that_is_behind_is_named_by_those_that_wait() -> None:
    waiting, behind = Place(7, Doing.WAITING), Place(7, Doing.READING)
    told = _verdict(waiting, {0: waiting, 2: behind, 3: waiting})
    assert told.startswith("step 7: process 2 of 4: reading in step 7 for more than 60 s; process 1 is waiting")
    several = _verdict(waiting, {0: waiting, 2: Place(6, Doing.WAITING), 3: Place(6, Doing.WAITING)})
    assert several.startswith("step 6: processes 2, 3 of 4: waiting in step 6")


def test_the_one_that_entered_fewer_exchanges_is_named_wherever_the_others_wait() -> None:
    ahead, behind = Place(7, Doing.COMPUTING, 90), Place(7, Doing.COMPUTING, 89)  # in C++, which no frame tells
    told = _verdict(ahead, {0: ahead, 2: behind, 3: ahead})
    assert told.startswith("step 7: process 2 of 4: computing in step 7 for more than 60 s; process 1 is waiting in")
    between = Place(7, Doing.BETWEEN, 88)
    told = _verdict(behind, {0: behind, 2: between, 3: behind})
    assert told.startswith("after step 7: process 2 of 4: busy after step 7 for more than 86400 s; process 1 is waitin")


# Two processes whose gradients DDP exchanges in C++; the second never comes to that, and the first waits.
HANGS_ON_THE_WAY_BACK = """
import os, sys, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from pmmrec.train.watch import Doing, Watch
rank = 0 if os.fork() else 1
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=rank, world_size=2)
store = dist.TCPStore("127.0.0.1", int(sys.argv[2]), is_master=rank == 0, wait_for_workers=False)
model, watch = DistributedDataParallel(torch.nn.Linear(3, 3)), Watch(rank, 2, store)
watch.limit(2.0)
with watch.open():
    watch.step(3, Doing.READING)
    watch.step(3, Doing.COMPUTING)
    out = model(torch.ones(2, 3, requires_grad=True))
    if rank == 1:
        out.register_hook(lambda _: time.sleep(60))
    out.sum().backward()
"""

# Process 1 ends by an error that no connection tells of; process 0 waits for it, or has work of its own.
LEFT_BEHIND = """
import sys, time
from torch.distributed import HashStore
from pmmrec.train import watch as watching
from pmmrec.train.voices import Doing, Place, Voices
from pmmrec.train.watch import Watch
store = HashStore()
other = Voices(store, 1, 2, 0.05, lambda: Place(0, Doing.BETWEEN))
other.open()
watch = Watch(0, 2, store)
watch.limit(0.5)
with watch.open():
    other.leave("runs/x: no space left on the device", 5)
    if sys.argv[1] == "waits":
        exec(compile("time.sleep(60)", next(iter(watching._EXCHANGES)), "exec"))
    time.sleep(2)
"""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def test_a_process_that_hangs_on_the_way_back_is_told_from_those_that_wait_for_its_gradients(tmp_path: object) -> None:
    done = _run(HANGS_ON_THE_WAY_BACK, f"{tmp_path}/store", _free_port())
    assert done.returncode == 4
    told = "error: step 3: process 1 of 2: computing in step 3 for more than 2 s; process 0 is waiting in step 3; "
    assert told in done.stderr
    assert "process 0 of 2" not in done.stderr
    assert "processes 0, 1" not in done.stderr


def test_whoever_waits_for_a_process_that_ended_by_an_error_ends_with_its_words() -> None:
    done = _run(LEFT_BEHIND, "waits")
    assert done.returncode == 4
    told = f"error: preparation: process 1 of 2 (on {socket.gethostname()}) ended: runs/x: no space left on the device"
    assert told in done.stderr


def test_whoever_has_work_of_its_own_is_not_ended_by_the_end_of_another() -> None:
    done = _run(LEFT_BEHIND, "works")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_step_waits_for_a_process_that_is_between_two_steps() -> None:
    store = HashStore()
    watch = Watch(1, 4, store)
    watch.limit(0.3)
    computing = Place(7, Doing.COMPUTING)
    with _speaking(store, {0: Place(6, Doing.BETWEEN), 2: computing, 3: computing}), watch.open():
        watch.step(7, Doing.READING)
        watch.step(7, Doing.COMPUTING)
        time.sleep(1.5)
        watch.rest()


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("raises", f"preparation: process 1 of 2 (on {socket.gethostname()}) ended: row 7 is not what it seems"),
        ("exits", "preparation: process 1 of 2 is gone, process 0 lost the connection to it: "),
    ],
)
def test_a_process_that_waits_for_one_that_ended_says_so_at_once(end: str, told: str, tmp_path: object) -> None:
    done = _run(LOSES, end, f"{tmp_path}/store", _free_port())
    assert f"told: {told}" in done.stdout, done.stdout + done.stderr
    assert "--resume goes on from the last state" in done.stdout


def test_an_error_that_is_no_exchange_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"), Watch(0, 1).open():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_processes_that_do_not_meet_in_time_end_and_say_what_may_be_in_the_way() -> None:
    done = _run("import time\nfrom pmmrec.train.watch import joining\nwith joining(0.3): time.sleep(60)")
    assert done.returncode == 4
    assert "error: launch: process 0 of 1 cannot reach the others for 0.3 s; they talk over ports" in done.stderr


def test_processes_that_cannot_meet_say_what_may_be_in_the_way() -> None:
    with pytest.raises(MachineError, match=r"cannot reach the others: Gloo .*refused; .*GLOO_SOCKET_IFNAME"), joining():
        raise RuntimeError("Gloo connectFullMesh failed with timed out connecting: Connection refused")
