"""Training on the whole catalogue goes the whole way, and says what it read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import SMALL, Pmmrec

from pmmrec.data.domain import Domain

FULL_SOFTMAX = ("objectives.dap=null", "objectives.nicl=null", "objectives.nid=null", "objectives.rcl=null")


@pytest.mark.parametrize("frozen", [True, False])
def test_every_step_sees_every_item_and_the_loss_falls(home: Path, world: Path, pmmrec: Pmmrec, frozen: bool) -> None:
    blocks = tuple(f"model.item_encoder.{encoder}.trainable_blocks=0" for encoder in ("text", "vision"))
    settings = ("objectives.ce.type=catalogue_ce", "train.epochs=6", "train.log_every=1", "name=ce", "cache=c")
    start = ("finetune", "finetune/tiny", "--from", "none", "--on", world / "boutique")
    result = pmmrec(*start, *SMALL, *FULL_SOFTMAX, *settings, *(blocks if frozen else ()))
    assert result.code == 0, result.output
    events = [json.loads(line) for line in (home / "runs/ce/events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    assert {step["items_encoded"] for step in steps} == {Domain.open(world / "boutique").num_items}
    assert sum(step["ce"] for step in steps[-3:]) < sum(step["ce"] for step in steps[:3])
    assert json.loads((home / "runs/ce/metrics.json").read_text())["domains"]
