"""finetune/adapter from a published checkpoint: a small checkpoint of its own, used wherever a checkpoint is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import Pmmrec, Result, working_in
from safetensors.torch import load_file

from pmmrec.zoo.checkpoint import Checkpoint

QUICK = ("train.epochs=2", "train.batch_users=16", "train.log_every=1", "cache=c")
LORA = (
    "adapters={text_encoder: {type: lora, r: 2}, user_encoder: {type: ia3}, train: [fusion, text_encoder.projection]}"
)
NO_VISION = "adapters.vision_encoder=null"


@pytest.fixture(scope="module")
def home(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of our own with the hub of the tiny pretraining."""
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copytree(small_run / "hub", folder / "hub")
    with working_in(folder):
        yield folder


def finetune(pmmrec: Pmmrec, world: Path, name: str, *settings: str, start: str = "small") -> Result:
    where = ("--from", start, "--on", world / "boutique")
    return pmmrec("finetune", "finetune/adapter", *where, *QUICK, f"name={name}", *settings)


def done(result: Result) -> Result:
    assert result.code == 0, result.output
    return result


def events(home: Path, name: str, kind: str) -> list[dict[str, Any]]:
    lines = (home / "runs" / name / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def shipped(home: Path, world: Path, pmmrec: Pmmrec) -> Result:
    """The recipe as it is shipped, run once as `shipped`."""
    return done(finetune(pmmrec, world, "shipped"))


def test_adapters_and_the_fusion_alone_learn_and_are_kept(home: Path, shipped: Result) -> None:
    checkpoint = home / "runs/shipped/checkpoint"
    kept = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*.safetensors")}
    assert kept == {
        "fusion/part.safetensors",
        *(f"adapters/{part}/adapter_model.safetensors" for part in ("text_encoder", "vision_encoder", "user_encoder")),
    }
    numbers = sum(tensor.numel() for path in kept for tensor in load_file(checkpoint / path).values())
    metrics = json.loads((home / "runs/shipped/metrics.json").read_text())
    assert metrics["trainable_parameters"] == numbers
    assert metrics["total_parameters"] > numbers
    assert metrics["peak_memory_bytes"] > 0
    seconds = [event["seconds"] for event in events(home, "shipped", "epoch")]
    assert metrics["seconds_per_epoch"] == pytest.approx(sum(seconds) / 2, abs=1e-3)
    assert f"learning: {numbers:,} of {metrics['total_parameters']:,} parameters" in shipped.output
    assert "text_encoder learns: lora in 2 places" in shipped.output


def test_the_kept_checkpoint_names_its_base(home: Path, shipped: Result) -> None:
    checkpoint = Checkpoint.open(home / "runs/shipped/checkpoint")
    assert checkpoint.verify() == []
    assert checkpoint.index.base is not None
    assert checkpoint.index.base.place == str((home / "hub/small").resolve())
    card = (home / "runs/shipped/checkpoint/README.md").read_text()
    assert "adapters/text\\_encoder | lora" in card
    assert "AutoModel" not in card


def test_it_is_evaluated_scored_shown_and_verified_like_any_other(
    home: Path, world: Path, pmmrec: Pmmrec, shipped: Result
) -> None:
    place = "runs/shipped/checkpoint"
    done(pmmrec("evaluate", place, world / "boutique", "--out", "again", "--cache", "c"))
    once = json.loads((home / "runs/shipped/metrics.json").read_text())["domains"][0]["metrics"]
    assert json.loads((home / "again/metrics.json").read_text())["domains"][0]["metrics"] == once
    done(pmmrec("score", place, world / "boutique", "--out", "top.parquet", "--cache", "c"))
    assert pq.read_metadata(home / "top.parquet").num_rows == 400
    assert "adapters/user_encoder" in done(pmmrec("zoo", "show", place)).output
    done(pmmrec("zoo", "verify", place))


def test_the_base_must_be_there_or_be_said(home: Path, world: Path, pmmrec: Pmmrec, shipped: Result) -> None:
    shutil.copytree(home / "runs/shipped/checkpoint", home / "moved/mine")
    (home / "hub/small").rename(home / "hidden")
    try:
        lost = pmmrec("evaluate", "moved/mine", world / "boutique", "--cache", "c")
        assert lost.code == 3
        assert "say where it is with --base PLACE" in lost.output
        done(pmmrec("evaluate", "moved/mine", world / "boutique", "--base", "hidden", "--cache", "c"))
        other = pmmrec("evaluate", "moved/mine", world / "boutique", "--base", "moved/mine", "--cache", "c")
        assert other.code == 3
        assert "moved/mine is another (sha256 " in other.output
    finally:
        (home / "hidden").rename(home / "hub/small")


def test_kept_states_of_what_lies_below_change_nothing(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    losses = []
    for name, use in (("kept", "on"), ("read", "off")):
        done(finetune(pmmrec, world, name, f"prefix_cache={use}"))
        losses.append([event["loss"] for event in events(home, name, "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_adapters_on_users_alone_let_item_vectors_be_computed_once(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    users = "adapters={text_encoder: null, vision_encoder: null, train: []}"
    result = done(finetune(pmmrec, world, "users", users))
    assert "vectors were computed once" in result.output
    assert Checkpoint.open(home / "runs/users/checkpoint").verify() == []


def test_a_plan_may_leave_parts_behind_and_start_others_fresh(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    plan = "transfer={load: [text_encoder], fresh: [user_encoder], drop: ['*']}"
    users = ("adapters.user_encoder=null", NO_VISION, "adapters.train=[]")
    result = done(finetune(pmmrec, world, "half", plan, *users))
    assert "user_encoder learns: whole" in result.output
    checkpoint = Checkpoint.open(home / "runs/half/checkpoint")
    assert set(checkpoint.parts) == {"text_encoder", "user_encoder"}
    assert set(checkpoint.held) == {"user_encoder", "adapters/text_encoder"}


def test_mergeable_adapters_become_a_whole_checkpoint(home: Path, world: Path, pmmrec: Pmmrec, lora: Result) -> None:
    done(pmmrec("zoo", "merge", "runs/lora/checkpoint", "--out", "hub/merged"))
    figures = []
    for place in ("runs/lora/checkpoint", "merged"):
        out = f"of-{Path(place).parts[-1]}"
        done(pmmrec("evaluate", place, world / "boutique", "--out", out, "--cache", "c"))
        figures.append(json.loads((home / out / "metrics.json").read_text())["domains"][0]["metrics"])
    assert figures[0] == figures[1]
    done(pmmrec("zoo", "verify", "merged"))
    taken = pmmrec("zoo", "merge", "runs/lora/checkpoint", "--out", "hub/merged")
    assert taken.code == 2


@pytest.fixture(scope="module")
def lora(home: Path, world: Path, pmmrec: Pmmrec) -> Result:
    """Adapters that merge, trained once as `lora`."""
    return done(finetune(pmmrec, world, "lora", LORA, NO_VISION))


@pytest.mark.parametrize("recipe", ["adapter", "full"])
def test_a_training_goes_on_from_adapters_whose_base_is_said(
    home: Path, world: Path, pmmrec: Pmmrec, lora: Result, recipe: str
) -> None:
    (home / "hub/small").rename(home / "hidden")
    start = ("--from", "runs/lora/checkpoint", "--on", world / "boutique", *QUICK, f"name=from-lora-{recipe}")
    try:
        lost = pmmrec("finetune", f"finetune/{recipe}", *start)
        assert (lost.code, "say where it is with --base PLACE" in lost.output) == (3, True)
        found = done(pmmrec("finetune", f"finetune/{recipe}", *start, "--base", "hidden"))
        assert "│ text_encoder   │ loaded " in found.output
        there = ("evaluate", f"runs/from-lora-{recipe}/checkpoint", world / "boutique", "--cache", "c")
        done(pmmrec(*there, *(("--base", "hidden") if recipe == "adapter" else ())))  # adapters on adapters on the base
    finally:
        (home / "hidden").rename(home / "hub/small")
    before, after = (events(home, name, "validation") for name in ("lora", f"from-lora-{recipe}"))
    best = max(before, key=lambda event: event["mean"]["ndcg@10"])
    assert after[0]["mean"] == pytest.approx(best["mean"])  # epoch 0: what the adapters had learned, merged


def test_a_training_cannot_go_on_from_bottlenecks(home: Path, world: Path, pmmrec: Pmmrec, shipped: Result) -> None:
    result = finetune(pmmrec, world, "wrong", start="runs/shipped/checkpoint")
    assert result.code == 2
    told = " ".join(result.output.split())
    assert "user_encoder: houlsby adapters of TransformerUserEncoder cannot be merged into weights" in told
    assert "training can start again from that base" in told
    assert not (home / "runs/wrong").exists()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("none", "--base hub/small: has no effect with `--from none`; leave it out"),
        ("small", "--base hub/small: has no effect, hub/small has no adapters; leave it out"),
    ],
)
def test_a_base_without_adapters_to_stand_on_it_is_refused(
    world: Path, pmmrec: Pmmrec, home: Path, start: str, message: str
) -> None:
    result = finetune(pmmrec, world, "wrong", "--base", "hub/small", start=start)
    assert (result.code, message in " ".join(result.output.split())) == (2, True), result.output
    assert not (home / "runs/wrong").exists()


@pytest.fixture(scope="module")
def ids(home: Path, world: Path, pmmrec: Pmmrec) -> Result:
    """An id-only system trained on `boutique`, once as `ids`."""
    where = ("--from", "none", "--on", world / "boutique")
    return done(pmmrec("finetune", "zoo/ids/small/sasrec_in_batch", *where, *QUICK, "model.width=16", "name=ids"))


def test_adapters_of_users_known_by_id_merge_too(home: Path, world: Path, pmmrec: Pmmrec, ids: Result) -> None:
    users = "adapters={text_encoder: null, vision_encoder: null, user_encoder: {type: dora, r: 2}, train: [item_table]}"
    done(finetune(pmmrec, world, "ids-dora", users, start="runs/ids/checkpoint"))
    done(pmmrec("zoo", "merge", "runs/ids-dora/checkpoint", "--out", "hub/ids-merged"))
    figures = []
    for place in ("runs/ids-dora/checkpoint", "ids-merged"):
        out = f"of-{Path(place).parts[-1]}-by-id"
        done(pmmrec("evaluate", place, world / "boutique", "--out", out, "--cache", "c"))
        figures.append(json.loads((home / out / "metrics.json").read_text())["domains"][0]["metrics"])
    assert figures[0] == figures[1]
    assert done(pmmrec("zoo", "verify", "ids-merged")).output == "hub/ids-merged: whole\n"


@pytest.mark.parametrize(
    ("domain", "settings", "message"),
    [
        ("boutique", (), "adapters.text_encoder: the model has no such part; it has item_table, user_encoder"),
        (
            "bazaar",
            ("adapters={text_encoder: null, vision_encoder: null, train: []}",),
            "an id means nothing elsewhere",
        ),
    ],
)
def test_what_adapters_cannot_do_for_ids_is_told(
    home: Path, world: Path, pmmrec: Pmmrec, ids: Result, domain: str, settings: tuple[str, ...], message: str
) -> None:
    where = ("--from", "runs/ids/checkpoint", "--on", world / domain)
    result = pmmrec("finetune", "finetune/adapter", *where, *QUICK, "name=wrong", *settings)
    assert (result.code in (2, 3), message in " ".join(result.output.split())) == (True, True), result.output
    assert not (home / "runs/wrong").exists()


def test_a_checkpoint_without_adapters_has_nothing_to_merge(home: Path, pmmrec: Pmmrec, ids: Result) -> None:
    result = pmmrec("zoo", "merge", "runs/ids/checkpoint", "--out", "hub/never")
    assert (result.code, "has no adapters, so there is nothing to merge" in result.output) == (2, True)
    assert not (home / "hub/never").exists()


def test_bottlenecks_stay_with_their_base(home: Path, shipped: Result, pmmrec: Pmmrec) -> None:
    result = pmmrec("zoo", "merge", "runs/shipped/checkpoint", "--out", "hub/never")
    assert result.code == 2
    assert "cannot be merged into weights" in result.output
    assert not (home / "hub/never").exists()


@pytest.mark.parametrize(
    ("settings", "start", "message"),
    [
        ((), "none", "adapters: stand on a checkpoint, and `--from none` leaves none"),
        (("adapters.text_encoder.targets=[q_proj]",), "small", "has no linear layer 'q_proj'; a block has attention"),
        (
            ("adapters.text_encoder.r=0",),
            "small",
            "adapters.text_encoder.r: input should be greater than or equal to 1",
        ),
        (("adapters.train=[fusoin]",), "small", "the model has no part 'fusoin'"),
        (("transfer.load=['*']", "transfer.train=[fusion]"), "small", "name further parts in adapters.train"),
        (
            ("transfer={load: [text_encoder, user_encoder], drop: ['*']}", "adapters.train=[]"),
            "small",
            "adapters.vision_encoder: the model has no such part",
        ),
        (
            ("transfer={load: [item_encoder], fresh: [user_encoder], drop: [user_encoder]}",),
            "small",
            "adapters.user_encoder: the part starts fresh",
        ),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_wrong_plans_are_refused_before_anything_trains(
    home: Path, world: Path, pmmrec: Pmmrec, settings: tuple[str, ...], start: str, message: str, more: tuple[str, ...]
) -> None:
    result = finetune(pmmrec, world, "wrong", *settings, *more, start=start)
    assert result.code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (home / "runs" / "wrong").exists()


def test_a_dry_run_counts_what_will_learn(home: Path, world: Path, pmmrec: Pmmrec, shipped: Result) -> None:
    lines = done(finetune(pmmrec, world, "dry", "--dry-run")).output.splitlines()
    rows = [line.replace("│", " ").split() for line in lines]
    learning = [int(row[4].replace(",", "")) for row in rows if len(row) == 5 and row[1] == "loaded"]
    metrics = json.loads((home / "runs/shipped/metrics.json").read_text())
    assert sum(learning) == metrics["trainable_parameters"]
    assert f"learning: {sum(learning):,} of {metrics['total_parameters']:,} parameters" in "\n".join(lines)
