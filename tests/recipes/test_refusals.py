"""Settings of a system that cannot work are refused in one line, by the plan and by the run, before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Pmmrec, working_in

from pmmrec.errors import RecipeError
from pmmrec.system import load

IDS = "zoo/ids/small"
STREAM = "model.item_encoder={type: with_ids, join: stream, content: {type: towers, text: {type: hf_text, %s}}}"
TEXT = "trainable_blocks: all, architecture: {model_type: bert, hidden_size: 24, num_hidden_layers: 1}"


@pytest.mark.parametrize("plan", [(), ("--dry-run",)], ids=["run", "plan"])
@pytest.mark.parametrize(
    ("recipe", "setting", "message"),
    [
        (
            f"{IDS}/bert4rec",
            "objectives={masked: null, dap: {type: next_item}}",
            "objectives.dap: predicts the next item, which a user encoder with attends: all has already seen",
        ),
        (
            f"{IDS}/bert4rec",
            "objectives={masked: null, bce: {type: bce, targets: last}}",
            "objectives.bce: predicts the next item, which a user encoder with attends: all has already seen",
        ),
        (
            f"{IDS}/bert4rec",
            "objectives.pair={type: sequence_contrast}",
            "objectives.pair: predicts the next item, which a user encoder with attends: all has already seen",
        ),
        (f"{IDS}/bert4rec", "objectives.masked.targets=each", "mask_share: has no effect without targets: masked"),
        (f"{IDS}/sasrec", "objectives.bce.targets=masked", "objectives.bce: predicts masked items, which needs a user"),
        (f"{IDS}/gru4rec", "objectives.bce.targets=each", "objectives.bce: predicts each item from the others"),
        (
            f"{IDS}/dssm_variant_each",
            "objectives.bce.targets=next",
            "objectives.bce: predicts the next item, which a user encoder with attends: others has already seen",
        ),
        (
            f"{IDS}/sasrec",
            "objectives.nicl={type: alignment}",
            "compares text with image, but the model reads ids only",
        ),
        (f"{IDS}/sasrec", "model.propagation={type: lightgcn}", "lightgcn passes on vectors of users, and model.user_"),
        (f"{IDS}/sasrec", STREAM % TEXT, "with_ids gives the stream content, which model.user_encoder: transformer"),
        (f"{IDS}/sasrec", "model.user_encoder={type: two_stream}", "two_stream reads the stream content, which model"),
        (
            f"{IDS}/dssm",
            "model.scorer={type: attention}",
            "model.scorer: attention attends to the states of a history, and model.user_encoder: user_table reads none",
        ),
        (
            f"{IDS}/bert4rec",
            "model.user_encoder.mask_text=a hidden item",
            "model.item_encoder: ids encodes no text alone; take towers that read one text and no image",
        ),
        (
            f"{IDS}/sasrec",
            "model.user_encoder.mask_text=it",
            "mask_text: has no effect with attends: past, which hides",
        ),
        (f"{IDS}/bert4rec", "model.user_encoder.mask_text='  '", "mask_text: string should match pattern"),
        (f"{IDS}/sasrec_attention", "model.scorer.popularity=1", "model.scorer.popularity: unknown key"),
        (
            f"{IDS}/sasrec",
            "train.stages=[{frozen: [user_encoder.blocks]}]",
            "weights of user_encoder learn in no stage, and no checkpoint gives them: they would stay random",
        ),
        (
            f"{IDS}/dssm_variant_each",
            "objectives.nid={type: noise_detection}",
            "objectives.nid: tells of each input whether it is noise, by a state that does not read it",
        ),
        (
            f"{IDS}/sasrec",
            "objectives.rcl={type: robustness, noise: {shuffle: 0, replace: 0}}",
            "which changes no input",
        ),
        (
            "finetune/unisrec_small",
            "seed=1",
            "weights of user_encoder learn in no stage, and no checkpoint gives them: they would stay random",
        ),
        (
            "zoo/vectors/small/unisrec",
            "model.item_encoder.reworded=dropped",
            "model.item_encoder.reworded: has no effect, no objective asks for reworded vectors of items; leave it out",
        ),
        (
            "zoo/vectors/small/vqrec",
            "model.item_encoder.synthetic_share=0.5",
            "model.item_encoder.synthetic_share: has no effect, no objective asks for synthetic vectors of items",
        ),
        (
            f"{IDS}/sasrec",
            "train.accumulate.parts=99",
            "train.accumulate.parts: 99 parts of at most 36 items leave some",
        ),
        (
            f"{IDS}/peterrec",
            "seed=1",
            "leaves none; train a model of the same parts without adapters first, and name its",
        ),
        ("zoo/vectors/small/ts", "seed=1", "items have no feature 'content'; they have: none; `pmmrec data features"),
        ("zoo/content/small/adapter4rec", "seed=1", "adapters: stand on a checkpoint, and `--from none` leaves none"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    world: Path, tmp_path: Path, pmmrec: Pmmrec, recipe: str, setting: str, message: str, plan: tuple[str, ...]
) -> None:
    with working_in(tmp_path):
        where = ("--from", "none", "--on", world / "boutique", "machine.device=cpu", "cache=c", "name=run")
        told = pmmrec("finetune", recipe, *where, setting, *plan)
    assert told.code in (2, 3), told.output
    assert message in " ".join(told.output.split())
    assert '"event": "train"' not in "".join(path.read_text() for path in tmp_path.rglob("events.jsonl"))


def test_an_index_of_scores_that_are_no_inner_product_is_refused_before_items_are_encoded(
    world: Path, tmp_path: Path, pmmrec: Pmmrec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working_in(tmp_path):
        where = ("--from", "none", "--on", world / "boutique", "machine.device=cpu", "train.epochs=1", "name=run")
        told = pmmrec("finetune", f"{IDS}/sasrec_attention", *where)
        assert told.code == 0, told.output
        system = load("runs/run/checkpoint", cache="c", device="cpu")
        monkeypatch.setattr(type(system), "_encode", lambda *_, **__: pytest.fail("items were encoded"))
        with pytest.raises(RecipeError, match="scorer 'attention': its scores are not inner products"):
            system.index(world / "boutique", "index")


def test_a_platform_whose_users_have_no_row_is_refused_with_how_many_it_has(
    world: Path, tmp_path: Path, pmmrec: Pmmrec
) -> None:
    with working_in(tmp_path):
        where = ("--from", "none", "--on", world / "boutique", "machine.device=cpu", "train.epochs=1", "name=run")
        told = pmmrec("finetune", "zoo/content/small/dssm_vision", *where)
        assert told.code == 0, told.output
        for verb in (("evaluate",), ("score", "--out", "lists.csv")):
            told = pmmrec(verb[0], "runs/run/checkpoint", world / "bazaar", *verb[1:], "--cache", "c")
            assert told.code == 3
            assert "was learned for the users of boutique (40 users), but this run has those of bazaar (60 users)" in (
                " ".join(told.output.split())
            )
