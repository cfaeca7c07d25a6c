"""A joint encoder that a plugin registers reads texts and images with one backbone, below the item encoder `joint`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

TESTS = """import joint
from pmmrec.encoders import joint_encoders
from pmmrec.testing import conformance

test_one_stream = conformance(joint_encoders, "one_stream")
"""
CHECKOUT = Path(__file__).resolve().parents[2]
APP = ("-c", "from pmmrec.cli import app; app()")
RECIPE = {
    "name": "joint",
    "model": {
        "width": 16,
        "item_encoder": {"type": "joint", "encoder": {"type": "one_stream"}},
        "user_encoder": {"type": "transformer", "num_layers": 1, "num_heads": 2, "max_inputs": 20},
    },
    "objectives": {"dap": {"type": "next_item"}},
    "train": {"epochs": 2, "batch_users": 16, "log_every": 1, "optimizer": {"learning_rate": 1e-3}},
    "machine": {"device": "cpu"},
    "cache": "c",
}


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A folder with the plugin, the metadata that installing it writes, and a recipe."""
    shutil.copy(CHECKOUT / "tests" / "support" / "plugins" / "joint.py", tmp_path)
    metadata = tmp_path / "joint-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: joint\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("[pmmrec.parts]\njoint = joint\n")
    (tmp_path / "joint.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def run(folder: Path, *words: object) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(CHECKOUT))), "HOME": str(folder)}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_passes_the_checks_that_it_inherits(plugin: Path) -> None:
    (plugin / "test_joint.py").write_text(TESTS)
    said = run(plugin, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_joint.py")
    assert re.search(r"\d\d passed", said)
    assert "failed" not in said


def test_it_trains_is_saved_and_transferred(plugin: Path, world: Path) -> None:
    run(plugin, *APP, "finetune", "joint.yaml", "--from", "none", "--on", world / "boutique")
    checkpoint = plugin / "runs/joint/checkpoint"
    events = [json.loads(line) for line in (plugin / "runs/joint/events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert sum(losses[-3:]) < sum(losses[:3])
    parts = json.loads((checkpoint / "model_index.json").read_text())["parts"]
    assert {name: (part["family"], part["type"]) for name, part in parts.items()} == {
        "joint_encoder": ("joint encoder", "one_stream"),
        "user_encoder": ("user encoder", "transformer"),
    }
    run(plugin, *APP, "evaluate", checkpoint, world / "gallery", "--out", "zero", "--cache", "c")

    plan = ("name=moved", "transfer={load: [item_encoder], fresh: [user_encoder], drop: [user_encoder]}")
    rate = "train.optimizer.learning_rate=1e-12"  # moves nothing, so that what was loaded is still there
    run(plugin, *APP, "finetune", "joint.yaml", "--from", checkpoint, "--on", world / "gallery", *plan, rate)
    before, after = (
        load_file(folder / "joint_encoder" / "backbone.safetensors")
        for folder in (checkpoint, plugin / "runs/moved/checkpoint")
    )
    assert set(before) == set(after)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-7)  # a step moves it by 1e-12
