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
BERT = (
    "{model_type: bert, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 16, "
    "max_position_embeddings: 32, initializer_range: 0.125, hidden_dropout_prob: 0, attention_probs_dropout_prob: 0}"
)
LIVE = (
    "model.item_encoder.streams.text={type: towers, text: {type: hf_text, vocab_size: 300, max_tokens: 8, "
    f"lowercase: true, pool: mean, trainable_blocks: all, architecture: {BERT}}}}}"
)
END_TO_END = (LIVE, "train.accumulate={parts: 3}", "model.width=8", "train.batch_users=64", "train.epochs=1")
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


def test_losses_reach_an_encoder_below_a_graph_on_two_processes_as_on_one(
    world: Path, tmp_path: Path, pmmrec: Pmmrec
) -> None:
    rest = ("train.log_every=1", "cache=c", "machine.device=cpu", "train.optimizer.learning_rate=1e-2")
    asked = ("zoo/graph/small/slmrec", "--from", "none", "--on", world / "boutique", *END_TO_END, *rest)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with working_in(tmp_path / "one"):
        told = pmmrec("finetune", *asked)
    assert told.code == 0, told.output
    run_group(2, PROGRAM, *asked, folder=tmp_path / "two").well()
    two, one = (losses(tmp_path / name / "runs" / "slmrec") for name in ("two", "one"))
    assert len(one) > 2
    assert two == pytest.approx(one, rel=1e-5)
