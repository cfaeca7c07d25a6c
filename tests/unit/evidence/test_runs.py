"""A run has its own process, is stamped when complete, and reports a failure in one line."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pmmrec.errors import MachineError
from pmmrec.processes import ChildProcess
from tests.real.evidence.identity import Identity
from tests.real.evidence.runs import Processes, Run, training_of

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_of(folder: Path, *arguments: str, seed: int = 1) -> Run:
    return Run("a run", folder / "run", arguments, Identity({"seed": seed}, {"seed": seed}))


def stamped(run: Run) -> Run:
    """Stamp a run as if its process had succeeded."""
    machine = {"cpu": "c", "cores": 2, "threads": 1, "device": "cpu", "torch": "2.8"}
    stamp = {"identity": run.identity.tree, "cpu_s": 1.5, "wall_s": 2.5, "hardware": machine}
    run.folder.mkdir(parents=True)
    (run.folder / "evidence.json").write_text(json.dumps(stamp))
    (run.folder / "metrics.json").write_text("{}")
    return run


def test_a_complete_run_of_the_same_identity_is_kept(tmp_path: Path) -> None:
    run = stamped(run_of(tmp_path))
    assert run.stamp() is not None
    assert run_of(tmp_path, seed=2).stamp() is None


def test_a_complete_run_is_kept_unless_its_checkpoint_has_changed(tmp_path: Path) -> None:
    run, checkpoint = stamped(run_of(tmp_path)), tmp_path / "checkpoint"
    run = replace(run, start=checkpoint)
    checkpoint.mkdir()
    (checkpoint / "model_index.json").write_text("{}")
    assert run.stamp() is not None  # a stamp of those that did not tell
    stamp = json.loads((run.folder / "evidence.json").read_text())
    (run.folder / "evidence.json").write_text(json.dumps(stamp | {"checkpoint": run.checkpoint_hash()}))
    assert run.stamp() is not None
    (checkpoint / "model_index.json").write_text('{"format": 1}')
    assert run.stamp() is None
    (checkpoint / "model_index.json").unlink()
    assert run.stamp() is not None


@pytest.mark.parametrize(("resumes", "seed", "is_kept"), [(True, 1, True), (True, 2, False), (False, 1, False)])
def test_what_a_stopped_run_left_is_kept_if_the_same_run_can_go_on_with_it(
    tmp_path: Path, resumes: bool, seed: int, is_kept: bool
) -> None:
    replace(run_of(tmp_path), resumes=resumes).prepare()
    left = tmp_path / "run" / "trials"
    left.mkdir(parents=True)
    replace(run_of(tmp_path, seed=seed), resumes=resumes).prepare()
    assert left.is_dir() is is_kept


@pytest.mark.parametrize("name", ["evidence.json", "metrics.json"])
def test_a_run_that_lacks_a_file_is_incomplete(tmp_path: Path, name: str) -> None:
    run = stamped(run_of(tmp_path))
    (run.folder / name).unlink()
    assert run.stamp() is None


def test_an_unreadable_stamp_counts_as_missing(tmp_path: Path) -> None:
    run = stamped(run_of(tmp_path))
    (run.folder / "evidence.json").write_text('{"cpu_s": ')
    assert run.stamp() is None


def test_the_cost_of_a_training_is_read_from_its_metrics_if_recorded(tmp_path: Path) -> None:
    run = stamped(run_of(tmp_path))
    (run.folder / "events.jsonl").write_text("")
    told = {"name": "run", "kind": "finetune", "domains": [], "training_s": 9.5}
    sizes = {"trainable_parameters": 5, "total_parameters": 20, "peak_memory_bytes": 7, "seconds_per_epoch": 1.5}
    stamp = run.stamp()
    assert stamp is not None
    (run.folder / "metrics.json").write_text(json.dumps(told))
    assert training_of(run, 1, stamp).cost is None
    (run.folder / "metrics.json").write_text(json.dumps(told | sizes))
    cost = training_of(run, 1, stamp).cost
    assert cost is not None
    assert cost.model_dump(exclude_none=True) == sizes
    counted = training_of(run, 1, stamp, multiply_adds=12).cost
    assert counted is not None
    assert counted.multiply_adds == 12
    assert cost.trainable_share == 0.25


def test_a_failed_run_reports_the_reason_and_leaves_no_stamp(tmp_path: Path) -> None:
    run = stamped(run_of(tmp_path, "recipe", "show", "nowhere"))
    with pytest.raises(MachineError, match=r"a run: nowhere: no such recipe file.*run\.log"):
        Processes(ENVIRONMENT).work(run)
    assert not run.folder.exists()


def test_processes_end_on_request_and_none_starts_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes, failures = Processes(ENVIRONMENT), list[str]()
    waiting = run_of(tmp_path, "data", "demo", "--out", str(tmp_path / "demo"))

    def work() -> None:
        try:
            processes.work(waiting)
        except MachineError as error:
            failures.append(str(error))

    is_waited_for, wait = threading.Event(), ChildProcess.wait

    def wait_and_tell(process: ChildProcess) -> int:
        is_waited_for.set()
        return wait(process)

    monkeypatch.setattr(ChildProcess, "wait", wait_and_tell)
    thread = threading.Thread(target=work)
    thread.start()
    is_waited_for.wait()
    processes.end()
    thread.join()
    assert failures[0].startswith("a run: ended by SIGTERM")
    with pytest.raises(MachineError, match="stopped"):
        processes.work(run_of(tmp_path / "later", "recipe", "list"))
