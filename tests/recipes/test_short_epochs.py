"""Settings of platforms too large to see or to rank whole, on small ones."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import SMALL, Pmmrec, sources, working_in

SHORT = ("data.mixing.epoch_users=40", "validation.users=6", "train.epochs=2", "train.log_every=1")


@pytest.fixture
def at_home(tmp_path: Path):
    with working_in(tmp_path):
        yield tmp_path


def test_short_epochs_end_and_are_judged_on_the_users_asked_for(at_home: Path, world: Path, pmmrec: Pmmrec) -> None:
    done = pmmrec("pretrain", "pretrain/tiny", *SMALL, *SHORT, *sources(world), "name=short", "cache=cache")
    assert done.code == 0, done.output
    assert "step 3/6" in done.output
    events = [json.loads(line) for line in (at_home / "runs/short/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "validation"] == [0, 3, 6]
    outcome = json.loads((at_home / "runs/short/metrics.json").read_text())
    assert [domain["num_users"] for domain in outcome["domains"]] == [6, 6]
    for name in ("bazaar", "gallery"):
        assert len(pq.read_table(at_home / f"runs/short/ranks-{name}.parquet")) == 6


def test_no_users_and_no_epoch_are_refused(at_home: Path, world: Path, pmmrec: Pmmrec) -> None:
    for setting in ("data.mixing.epoch_users=0", "validation.users=0"):
        refused = pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), "name=none", setting)
        assert refused.code == 2
        assert setting.split("=")[0] in refused.output


def test_a_training_that_leaves_the_finite_numbers_ends_with_1_and_names_the_item(
    at_home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    wild = ("train.optimizer.learning_rate=1e30", "train.on_nonfinite.skip=1000", "train.epochs=1")
    ended = pmmrec(
        "pretrain", "pretrain/tiny", *SMALL, *wild, *sources(world), "data.mixing.epoch_users=40", "name=wild"
    )
    assert ended.code == 1, ended.output
    assert "not finite" in ended.output or "is finite" in ended.output
