"""A stage that tunes encoders on items alone, judged by its loss, and a training that starts from what it left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import SMALL, Pmmrec, sources, working_in
from stop_recipe import assert_goes_on

from pmmrec.shipped import shipped_file

ONLY_CONTRAST = "objectives={dap: null, nicl: null, nid: null, rcl: null, itc: {type: item_contrast}}"
STAGE = ("name=stage", "rank_test=false", "validation.judge=loss", "data.examples=items", "cache=c", ONLY_CONTRAST)


def test_encoders_tuned_on_items_are_a_start_for_a_recommender(world: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    with working_in(tmp_path):
        said = pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), *STAGE, "train.epochs=4")
        assert said.code == 0, said.output
        events = [json.loads(line) for line in Path("runs/stage/events.jsonl").read_text().splitlines()]
        losses = [event["mean"]["loss"] for event in events if event["event"] == "validation"]
        assert len(losses) == 5
        assert min(losses[1:]) < losses[0]
        (sizes,) = [event for event in events if event["event"] == "parameters"]
        assert 0 < sizes["trainable"] < sizes["total"]  # fusion and user encoder do not learn
        quick = ("train.epochs=1", "name=after", "cache=c", "machine.device=cpu", "train.batch_users=16")
        said = pmmrec(
            "finetune", "finetune/full", "--from", "runs/stage/checkpoint", "--on", world / "boutique", *quick
        )
        assert said.code == 0, said.output
        assert json.loads(Path("runs/after/metrics.json").read_text())["domains"]


def test_a_stage_on_items_that_is_stopped_goes_on_to_the_same_bits(world: Path, tmp_path: Path) -> None:
    recipe = (shipped_file("pretrain/run.py"), "pretrain/tiny", *SMALL, *sources(world), *STAGE)
    assert_goes_on(tmp_path, "stage", *recipe, "train.epochs=2", "train.log_every=1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("objectives.dap={type: next_item}",), "items have no target, but objectives.dap reads NextItems windows"),
        (("data.examples={type: items, held_out: 0}",), "data.examples.held_out: 0 holds none of 40 items out"),
        (("data.window.size=9",), "window: has no effect with examples: items, which have no history"),
    ],
)
def test_what_items_cannot_serve_is_refused(
    world: Path, tmp_path: Path, pmmrec: Pmmrec, settings: tuple[str, ...], message: str
) -> None:
    with working_in(tmp_path):
        said = pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), *STAGE, *settings)
    assert said.code in (2, 3)
    assert message in " ".join(said.output.split())


def test_a_validation_loss_of_fewer_items_than_parts_is_refused_by_the_plan_and_by_the_run(
    world: Path, tmp_path: Path, pmmrec: Pmmrec
) -> None:
    asked = ("pretrain", "pretrain/tiny", *SMALL, *sources(world), *STAGE, "train.accumulate={parts: 5, mode: plain}")
    for more in (("--dry-run",), ()):
        with working_in(tmp_path):
            said = pmmrec(*asked, *more)
            assert said.code == 2, said.output
            assert (
                "validation.judge: loss: the smallest of 5 parts of 0 users leaves some of 1 processes" in said.output
            )
            assert not Path("runs/stage").exists()
