"""The watchdog names the process that is late or silent; the time between steps has its own limit."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch.distributed as dist
from heartbeats import sending_heartbeats
from torch.distributed import HashStore

from pmmrec.errors import DataError, MachineError
from pmmrec.train import heartbeat as heartbeat_file
from pmmrec.train import watchdog as watchdog_file
from pmmrec.train.heartbeat import Activity, HeartbeatMonitor, StepPhase
from pmmrec.train.watchdog import Watchdog, joining


@dataclass
class _Clock:
    """Stands for the module `time`."""

    now_s: float = 0.0

    def monotonic(self) -> float:
        return self.now_s


def test_steps_and_the_time_between_them_have_separate_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(watchdog_file, "time", clock)
    watchdog = Watchdog(0, 1)
    watchdog.set_limits(10, 100)
    watchdog.step(3, StepPhase.READING)
    clock.now_s += 9
    watchdog.step(3, StepPhase.COMPUTING)
    assert not watchdog._is_over_limit()
    clock.now_s += 2  # of one step, read and computed
    assert watchdog._is_over_limit()
    told = watchdog.diagnosis(watchdog._activity())
    assert told.startswith("step 3: process 0 of 1: computing in step 3 for more than 10 s; --resume goes on")
    watchdog.between_steps()
    clock.now_s += 99
    assert not watchdog._is_over_limit()
    clock.now_s += 2
    assert watchdog._is_over_limit()
    told = watchdog.diagnosis(watchdog._activity())
    assert told.startswith("after step 3: process 0 of 1: busy after step 3 for more than 100 s; --resume goes on")


def test_a_heartbeat_from_before_a_restart_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    here, other = (HeartbeatMonitor(store, rank, 2, 0.05, lambda: Activity(0, StepPhase.BETWEEN)) for rank in (0, 1))
    for heartbeats in (here, other):
        heartbeats.start()
    for heartbeats in (here, other):
        heartbeats.stop("", 10)
    here.start()
    here.refresh(10)
    heard = here.others[1]
    here.stop("", 10)
    assert heard.end_reason is None
    monkeypatch.setattr(heartbeat_file, "time", _Clock(time.monotonic() + 100))
    assert heard.silent_s > 99


def _verdict(here: Activity, others: dict[int, Activity]) -> str:
    """What process 1 says of itself and the others."""
    store = HashStore()
    watchdog = Watchdog(1, 4, store)
    watchdog.set_limits(60)
    with sending_heartbeats(store, others), watchdog.open():
        while any(heartbeat.activity is None for heartbeat in watchdog._monitor.others.values()):
            watchdog._monitor.refresh(1)
        return watchdog.diagnosis(here)


def test_the_process_that_is_behind_is_named_by_those_that_wait() -> None:
    waiting, behind = Activity(7, StepPhase.WAITING), Activity(7, StepPhase.READING)
    told = _verdict(waiting, {0: waiting, 2: behind, 3: waiting})
    assert told.startswith("step 7: process 2 of 4: reading in step 7 for more than 60 s; process 1 is waiting")
    several = _verdict(waiting, {0: waiting, 2: Activity(6, StepPhase.WAITING), 3: Activity(6, StepPhase.WAITING)})
    assert several.startswith("step 6: processes 2, 3 of 4: waiting in step 6")


def test_the_process_that_entered_fewer_collectives_is_named_wherever_the_others_wait() -> None:
    ahead, behind = (
        Activity(7, StepPhase.COMPUTING, 90),
        Activity(7, StepPhase.COMPUTING, 89),
    )  # in C++, which no frame tells
    told = _verdict(ahead, {0: ahead, 2: behind, 3: ahead})
    assert told.startswith("step 7: process 2 of 4: computing in step 7 for more than 60 s; process 1 is waiting in")
    between = Activity(7, StepPhase.BETWEEN, 88)
    told = _verdict(behind, {0: behind, 2: between, 3: behind})
    assert told.startswith("after step 7: process 2 of 4: busy after step 7 for more than 86400 s; process 1 is waitin")


def test_an_error_outside_collectives_is_not_changed() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"), Watchdog(0, 1).open():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_processes_that_cannot_connect_say_what_to_check() -> None:
    with pytest.raises(MachineError, match=r"cannot reach the others: Gloo .*refused; .*GLOO_SOCKET_IFNAME"), joining():
        raise RuntimeError("Gloo connectFullMesh failed with timed out connecting: Connection refused")


@pytest.mark.parametrize(
    ("others", "met_by"),
    [
        ({0: "row 7 is bad", 2: "row 7 is bad"}, ""),
        ({0: "row 7 is bad", 2: "lost the connection"}, "process 1 of 3"),
        ({0: "row 7 is bad", 2: ""}, "process 1 of 3"),
    ],
)
def test_an_error_names_its_process_unless_all_processes_raised_it(others: dict[int, str], met_by: str) -> None:
    store = HashStore()
    for rank, why in others.items():
        heartbeat = HeartbeatMonitor(store, rank, 3, 0.05, lambda: Activity(0, StepPhase.BETWEEN))
        heartbeat.start()
        heartbeat.stop(why, 10)
    with pytest.raises(DataError) as raised, Watchdog(1, 3, store).open():
        raise DataError("row 7 is bad")
    assert (str(raised.value), raised.value.met_by) == ("row 7 is bad", met_by)


def test_an_error_of_one_process_names_it_while_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    monkeypatch.setattr(watchdog_file, "_READ_TIMEOUT_S", 0.2)
    with sending_heartbeats(store, {0: Activity(6, StepPhase.BETWEEN)}), pytest.raises(DataError) as raised:  # noqa: SIM117
        with Watchdog(1, 4, store).open():
            raise DataError("row 7 is bad")
    assert raised.value.met_by == "process 1 of 4"


def test_an_unknown_network_interface_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nope0")
    told = r"^launch: GLOO_SOCKET_IFNAME is 'nope0', and no .* is called so; this machine has (.*, )?lo(, .*)?; name"
    with pytest.raises(MachineError, match=told), joining():
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
