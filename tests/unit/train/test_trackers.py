"""Trackers mirror a run below its folder; one that is not installed is refused before anything is made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from command_line import Pmmrec

from pmmrec.errors import MachineError
from pmmrec.train.trackers import tracker_openers


def _sasrec(pmmrec: Pmmrec, world: Path, *settings: str) -> None:
    sizes = ("model.width=16", "train.epochs=1", "cache=c", "machine.device=cpu", "name=watched")
    on = ("--from", "none", "--on", world / "boutique")
    result = pmmrec("finetune", "zoo/ids/small/sasrec_in_batch", *on, *sizes, *settings)
    assert result.code == 0, result.output


def _assert_events_are_complete(run: Path) -> None:
    kinds = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kinds == ["parameters", "validation", "gradient_norm", "train", "epoch", "validation", "finished"]


def test_wandb_writes_offline_below_the_run_and_nowhere_else(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    _sasrec(pmmrec, world, "machine.trackers=[wandb]")
    run = home / "runs" / "watched"
    import wandb

    wandb.teardown()  # the process that writes the record has ended
    (record,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train/dap/accuracy" in record.read_bytes()
    assert {path.name for path in home.iterdir()} <= {"runs", "c"}
    _assert_events_are_complete(run)


def test_tensorboard_holds_every_number_below_the_run(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _sasrec(pmmrec, world, "machine.trackers=[tensorboard]")
    run = home / "runs" / "watched"
    written = EventAccumulator(str(run / "tensorboard")).Reload()
    first = next(json.loads(line) for line in (run / "events.jsonl").open() if '"train"' in line)
    (loss,) = written.Scalars("train/loss")
    assert (loss.step, loss.value) == (1, pytest.approx(first["loss"]))
    assert [value.step for value in written.Scalars("validation/mean.ndcg@10")] == [0, 1]
    assert {path.name for path in home.iterdir()} <= {"runs", "c"}
    _assert_events_are_complete(run)


@pytest.mark.parametrize(
    ("variables", "project", "expected"),
    [
        ({}, None, {"project": "pmmrec", "name": "watched", "dir": "runs/watched"}),
        ({}, "mine", {"project": "mine", "name": "watched", "dir": "runs/watched"}),
        ({"WANDB_DIR": "/logs"}, None, {"project": "pmmrec", "name": "watched"}),
        ({"WANDB_DIR": ""}, None, {"project": "pmmrec", "name": "watched", "dir": "runs/watched"}),
        ({"WANDB_PROJECT": "theirs"}, None, {"project": "theirs", "name": "watched", "dir": "runs/watched"}),
        ({"WANDB_PROJECT": "theirs"}, "mine", {"project": "mine", "name": "watched", "dir": "runs/watched"}),
        (
            {"WANDB_NAME": "a", "WANDB_DIR": "b", "WANDB_MODE": "offline"},
            None,
            {"project": "pmmrec"},
        ),
    ],
)
def test_wandb_goes_by_its_own_variables_where_they_are_set(
    variables: dict[str, str], project: str | None, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DIR", "NAME", "PROJECT"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracker = Mock()
    monkeypatch.setattr("accelerate.tracking.WandBTracker", tracker)
    tracker_openers(("wandb",), Path("runs/watched"), project, "watched", "recipe")["wandb"]()
    asked = {key: value for key, value in expected.items() if key != "project"}
    tracker.assert_called_once_with(expected["project"], **asked, config={"recipe": "recipe"})
    tracker.return_value.start.assert_called_once_with()


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_refused_before_a_run_is_made(
    home: Path, world: Path, pmmrec: Pmmrec, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)  # what Python notes of a module that cannot be imported
    told = rf"{tracker} is not installed; pip install -e '\.\[{tracker}\]'"
    with pytest.raises(MachineError, match=told):
        tracker_openers((tracker,), home, "project", "name", "")
    on = ("--from", "none", "--on", world / "boutique")
    result = pmmrec("finetune", "zoo/ids/small/sasrec_in_batch", *on, f"machine.trackers=[{tracker}]", "cache=c")
    assert result.code == 4
    assert not (home / "runs").exists()


def test_an_unknown_tracker_is_refused_by_the_recipe(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    on = ("--from", "none", "--on", world / "boutique")
    result = pmmrec("finetune", "zoo/ids/small/sasrec_in_batch", *on, "machine.trackers=[weights]")
    assert result.code == 2
    assert "machine.trackers[0]: " in result.output
