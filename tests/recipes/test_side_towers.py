"""IISAN: the hidden states of frozen encoders are stored once, and side towers learn above them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Pmmrec, working_in

from pmmrec.data.domain import Domain

SMALL = ("model.width=16", "model.item_encoder.bottleneck=8", "model.user_encoder.num_layers=1")
READS = (
    "model.item_encoder.image=image_layers",
    "model.item_encoder.vectors=2",
    "model.item_encoder.length=16",
)
HERE = ("machine.device=cpu", "cache=c", "train.batch_users=16", "train.log_every=1")
NAME = "zoo/vectors/small/iisan"


@pytest.fixture
def boutique(world: Path, tmp_path: Path) -> Path:
    """A copy of a platform, to store features in."""
    return Path(shutil.copytree(world / "boutique", tmp_path / "boutique"))


def stored(boutique: Path, pmmrec: Pmmrec, name: str, shape: tuple[int, ...], seed: int) -> None:
    """Store random states of the items."""
    draw = np.random.default_rng(seed)
    np.save("states.npy", draw.normal(size=(Domain.open(boutique).num_items, *shape)).astype(np.float16))
    told = pmmrec("data", "features", boutique, "--from", "states.npy", "--name", name)
    assert told.code == 0, told.output


def test_states_of_a_checkpoint_are_stored_as_the_refusal_says(boutique: Path, small_run: Path, pmmrec: Pmmrec) -> None:
    with working_in(boutique.parent):
        quick = ("--from", "none", "--on", boutique, *HERE, *SMALL, *READS, "train.epochs=1")
        told = pmmrec("finetune", NAME, *quick)
        assert told.code == 3
        assert "--vectors text.layers --name image_layers` stores the hidden states" in " ".join(told.output.split())
        for field in ("text", "image"):
            of = ("--vectors", f"{field}.layers", "--name", f"{field}_layers", "--cache", "c")
            told = pmmrec("data", "features", boutique, "--from", small_run / "hub" / "small", *of)
            assert told.code == 0, told.output
        domain = Domain.open(boutique)
        states = domain.feature("text_layers").read(np.arange(domain.num_items))
        assert states.shape == (domain.num_items, 2, 16)  # what enters the one block, and what leaves it
        told = pmmrec("finetune", NAME, *quick)
        assert told.code == 0, told.output


def test_towers_learn_are_ranked_and_make_lists(boutique: Path, pmmrec: Pmmrec) -> None:
    with working_in(boutique.parent):
        stored(boutique, pmmrec, "text_layers", (2, 16), seed=1)
        stored(boutique, pmmrec, "image_layers", (2, 16), seed=2)
        rate = "train.optimizer.learning_rate=1e-2"
        rates = (rate, "train.optimizer.parts.side_towers.learning_rate=1e-2")
        learning = ("train.epochs=15", "validation.patience=15", *rates)
        told = pmmrec("finetune", NAME, "--from", "none", "--on", boutique, *HERE, *SMALL, *READS, *learning)
        assert told.code == 0, told.output
        run = Path("runs/iisan")
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        losses = [event["loss"] for event in events if event["event"] == "train"]
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
        for verb in (("evaluate",), ("score", "--top-k", 3, "--out", "lists.csv"), ("index", "--out", "index")):
            told = pmmrec(verb[0], run / "checkpoint", boutique, *verb[1:], "--cache", "c")
            assert told.code == 0, told.output
        again = ("finetune/full", "--from", run / "checkpoint", "--on", boutique, *HERE, "train.epochs=1")
        told = pmmrec("finetune", *again)
        assert told.code == 0, told.output


def test_a_plan_is_shown_without_training(boutique: Path, pmmrec: Pmmrec) -> None:
    with working_in(boutique.parent):
        stored(boutique, pmmrec, "text_layers", (7, 384), seed=1)
        dry = ("--dry-run", "--launch", "two_cpu")
        told = pmmrec("finetune", NAME, "--from", "none", "--on", boutique, *HERE, *dry)
        assert told.code == 0, told.output
        assert "activations" in told.output
