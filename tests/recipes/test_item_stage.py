"""A stage that tunes encoders on items alone, judged by its loss, and a training that starts from what it left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import SMALL, Pmmrec, sources, working_in
from safetensors.torch import load_file
from stop_recipe import assert_goes_on

from pmmrec.shipped import shipped_file

ONLY_CONTRAST = "objectives={dap: null, nicl: null, nid: null, rcl: null, itc: {type: item_contrast}}"
ALL_AT_ONCE = (
    ONLY_CONTRAST,
    "objectives={itm: {type: itm}, mlm: {type: mlm}, mae: {type: mae, share: 0.5}}",
    "model.item_encoder.vision.architecture={model_type: vit_mae, decoder_num_hidden_layers: 1}",
    "model.item_encoder.vision.architecture={decoder_hidden_size: 16, decoder_num_attention_heads: 2}",
    "model.item_encoder.vision.architecture.decoder_intermediate_size=32",
)
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
    assert_goes_on(tmp_path, "stage", *recipe, *ALL_AT_ONCE, "train.epochs=2", "train.log_every=1")


def test_a_text_encoder_that_guessed_words_is_a_folder_of_weights(world: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    words = ("model.item_encoder={fusion: null, vision: null}", "objectives={itc: null, mlm: {type: mlm}}")
    with working_in(tmp_path):
        stage = tuple(one for one in (*SMALL, *STAGE) if ".vision." not in one)
        said = pmmrec("pretrain", "pretrain/tiny", *sources(world), *stage, *words, "train.epochs=4")
        assert said.code == 0, said.output
        events = [json.loads(line) for line in Path("runs/stage/events.jsonl").read_text().splitlines()]
        losses = [event["mean"]["loss/mlm"] for event in events if event["event"] == "validation"]
        assert min(losses[1:]) < losses[0]
        (sizes,) = [event for event in events if event["event"] == "parameters"]
        assert 0 < sizes["trainable"] < sizes["total"]  # the projection and the user encoder do not learn
        folder = Path("runs/stage/checkpoint/text_encoder")
        assert not any(name.startswith("cls") for name in load_file(folder / "model.safetensors"))
        tuned = f"model.item_encoder.text={{weights: {folder}, trainable_blocks: 0, pool: cls, lowercase: true}}"
        quick = ("train.epochs=1", "name=ts", "cache=c", "machine.device=cpu", "rank_test=false")
        on = ("--from", "none", "--on", world / "boutique")
        said = pmmrec("finetune", "zoo/content/small/sasrec_text", *on, tuned, *quick)
        assert said.code == 0, said.output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("objectives.dap={type: next_item}",), "items have no target, but objectives.dap reads NextItems windows"),
        (("data.examples={type: items, held_out: 0}",), "data.examples.held_out: 0 holds none of 40 items out"),
        (("train.batch_users=1",), "train.batch_users: 1 leaves one pair, and objectives.itc compare pairs with one"),
        (
            ("data.examples=windows", "objectives={itc: null, mlm: {type: mlm}}"),
            "data.examples: windows, but objectives.mlm learns from items alone",
        ),
        (("objectives={itc: null, mae: {type: mae}}",), "objectives.mae: vit is no masked autoencoder, so no patch"),
        (
            ("model.item_encoder={fusion: null, vision: null}",),
            "objectives.itc: compares text with image, but the model",
        ),
        (
            ("model.item_encoder={fusion: null, vision: null}", "objectives={itc: null, mae: {type: mae}}"),
            "objectives.mae: model.item_encoder: Towers has no encoder from which patches could be hidden",
        ),
        (
            ("model.item_encoder={fusion: null, vision: null}", "objectives={itc: null, itm: {type: itm}}"),
            "objectives.itm: compares text with image, but the model reads text only",
        ),
        (
            ("objectives={itc: null, one: {type: mlm}, two: {type: mlm, share: 0.5}}",),
            "objectives: one and two both hide words; keep one of them",
        ),
        (
            ("objectives={itc: null, mlm: {type: mlm}}", "model.item_encoder.text.trainable_blocks=0"),
            "objectives.mlm: with trainable_blocks: 0 its head alone would learn, and that is left behind",
        ),
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
