"""Two processes train adapters: what one process would have learned, kept once, standing on the same base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import Pmmrec, working_in
from safetensors.torch import load_file
from torch import Tensor
from worker_group import run_group

from pmmrec.shipped import shipped_file
from pmmrec.zoo.checkpoint import Checkpoint

# Nothing is drawn at random while these train: all but adapters and the projection is in eval mode. Negatives are the
# whole catalogue: those of DAP are the items of a process, so that two would learn something else than one.
SETTINGS = (
    *("train.epochs=2", "train.batch_users=16", "train.log_every=1", "cache=c", "machine.device=cpu"),
    *("objectives.dap=null", "objectives.ce.type=catalogue_ce"),
)
ALL = ("text_encoder", "vision_encoder", "user_encoder")
PROGRAM = shipped_file("finetune/run.py")
KINDS = {"lora": {"type": "lora", "r": 2}, "houlsby": {"type": "houlsby", "width": 3}}


@pytest.fixture(scope="module")
def home(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of our own with the hub of the tiny pretraining."""
    folder = tmp_path_factory.mktemp("two-adapters")
    shutil.copytree(small_run / "hub", folder / "hub")
    return folder


def arguments(world: Path, kind: str, name: str) -> list[object]:
    plan: dict[str, Any] = {**dict.fromkeys(ALL, KINDS[kind]), "train": ["text_encoder.projection"]}
    where = ("--from", "small", "--on", world / "boutique")
    return ["finetune/adapter", *where, *SETTINGS, f"adapters={json.dumps(plan)}", f"name={name}"]


def events(home: Path, name: str, kind: str) -> list[dict[str, Any]]:
    lines = (home / "runs" / name / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def learned(home: Path, name: str) -> dict[str, Tensor]:
    folder = home / "runs" / name / "checkpoint"
    return {
        f"{path.relative_to(folder).as_posix()}: {key}": tensor
        for path in sorted(folder.glob("adapters/*/*.safetensors"))
        for key, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_the_adapters_that_one_learns(home: Path, world: Path, pmmrec: Pmmrec, kind: str) -> None:
    said = run_group(2, PROGRAM, *arguments(world, kind, f"two-{kind}"), folder=home).well()
    assert said.count(f"user_encoder learns: {kind} in") == 1
    with working_in(home):
        alone = pmmrec("finetune", *arguments(world, kind, f"one-{kind}"))
    assert alone.code == 0, alone.output
    two, one = (events(home, f"{count}-{kind}", "train") for count in ("two", "one"))
    assert [event["users"] for event in two] == [event["users"] for event in one]
    assert [event["loss"] for event in two] == pytest.approx([event["loss"] for event in one], rel=1e-5)
    tensors, others = learned(home, f"two-{kind}"), learned(home, f"one-{kind}")
    assert tensors.keys() == others.keys()
    widest = max((tensor - others[name]).abs().max().item() for name, tensor in tensors.items())
    assert widest < 1e-6  # float32; measured 5e-8
    checkpoint = Checkpoint.open(home / "runs" / f"two-{kind}" / "checkpoint")
    assert checkpoint.verify() == []
    metrics = [json.loads((home / f"runs/{count}-{kind}/metrics.json").read_text()) for count in ("two", "one")]
    assert metrics[0]["trainable_parameters"] == metrics[1]["trainable_parameters"]
    assert metrics[0]["domains"] == metrics[1]["domains"]
