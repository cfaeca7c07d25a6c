"""A run over a graph goes on bit for bit with the views that it would have drawn, and over its own graph alone."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Pmmrec, working_in

from pmmrec.data.domain import Domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.train.loop import Loop
from pmmrec.train.state import State

QUICK = ("model.width=8", "train.batch_users=128", "train.log_every=1", "train.state.every_steps=2", "train.epochs=2")
ON = ("zoo/graph/small/mmgcl", "--from", "none", "--on", "shop", *QUICK, "cache=cache", "machine.device=cpu")


def make_shop(world: Path, platform: str = "boutique", seed: int = 0) -> None:
    shutil.rmtree("shop", ignore_errors=True)
    domain = Domain.open(Path(shutil.copytree(world / platform, "shop")))
    vectors_NF = np.random.default_rng(seed).normal(size=(domain.num_items, 384)).astype(np.float32)
    store_vectors(domain, vectors_NF, "content", "random")


def losses(run: str) -> list[float]:
    lines = Path(f"runs/{run}/events.jsonl").read_text().splitlines()
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [event["loss"] for event in events if event["event"] == "train"]


def test_a_stopped_run_goes_on_over_its_own_graph_alone(
    world: Path, tmp_path: Path, pmmrec: Pmmrec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working_in(tmp_path):
        make_shop(world)
        told = pmmrec("finetune", *ON, "name=whole")
        assert told.code == 0, told.output
        snapshot = Loop.snapshot

        def stopped(loop: Loop) -> State:
            signal.raise_signal(signal.SIGTERM)
            return snapshot(loop)

        with monkeypatch.context() as change:
            change.setattr(Loop, "snapshot", stopped)
            told = pmmrec("finetune", *ON, "name=cut")
        assert "step 3: ended by SIGTERM; its state is kept" in told.output
        for shop, refused in (
            ({"seed": 1}, "feature content of domain boutique is not what the run began with; store it as it was"),
            ({"platform": "gallery"}, "is not what the run began with; give it the domain as it was"),
        ):
            make_shop(world, **shop)
            told = pmmrec("finetune", *ON, "name=cut", "--resume")
            assert (told.code, refused in told.output) == (2, True), told.output
        make_shop(world)
        told = pmmrec("finetune", *ON, "name=cut", "data.split.seed=3", "--resume")
        assert (told.code, "data.split.seed was 0, is 3" in told.output) == (2, True), told.output
        told = pmmrec("finetune", *ON, "name=cut", "--resume")
        assert told.code == 0, told.output
        assert losses("cut") == losses("whole")
        assert len(losses("cut")) == 6
