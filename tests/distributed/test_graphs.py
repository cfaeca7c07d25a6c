"""A graph model trains on two processes what it trains on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Pmmrec, working_in
from worker_group import run_group

from pmmrec.shipped import shipped_file

PROGRAM = shipped_file("finetune/run.py")
QUICK = ("model.width=8", "model.propagation.prune=0.5", "train.batch_users=512", "train.log_every=1", "cache=c")
SETTINGS = (*QUICK, "machine.device=cpu", "train.optimizer.learning_rate=1e-2")


def arguments(world: Path, *settings: str) -> tuple[object, ...]:
    return ("zoo/ids/lightgcn", "--from", "none", "--on", world / "boutique", *SETTINGS, *settings)


def losses(run: Path) -> list[float]:
    events: list[dict[str, Any]] = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "train"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, world: Path, pmmrec: Pmmrec) -> Path:
    home = tmp_path_factory.mktemp("alone")
    with working_in(home):
        told = pmmrec("finetune", *arguments(world, "train.epochs=2"))
    assert told.code == 0, told.output
    return home / "runs" / "lightgcn"


def test_two_processes_train_what_one_does(alone: Path, world: Path, tmp_path: Path) -> None:
    run_group(2, PROGRAM, *arguments(world, "train.epochs=2"), folder=tmp_path).well()
    run = tmp_path / "runs" / "lightgcn"
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    two, one = (json.loads((where / "metrics.json").read_text())["domains"] for where in (run, alone))
    assert two[0]["metrics"]["recall@20"]["mean"] == pytest.approx(one[0]["metrics"]["recall@20"]["mean"], abs=0.01)
