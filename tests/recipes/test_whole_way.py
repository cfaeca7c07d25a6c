"""From pretraining to recommendation through the command line, on a world of a few dozen users."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from command_line import SMALL, Pmmrec, sources, working_in
from transformers import AutoModel, AutoTokenizer

import pmmrec as api
from pmmrec.data.domain import Domain
from pmmrec.recipe import FinetuneRecipe, read_recipe
from pmmrec.shipped import find_recipe
from pmmrec.zoo.checkpoint import Checkpoint


@pytest.fixture
def at_run(small_run: Path):
    with working_in(small_run):
        yield small_run


def test_a_pretraining_leaves_everything_that_a_run_folder_holds(small_run: Path) -> None:
    run = small_run / "runs" / "small"
    for name in ("recipe.yaml", "events.jsonl", "metrics.json", "environment.json", "checkpoint/model_index.json"):
        assert (run / name).is_file(), name
    ranks = pq.read_table(run / "ranks-bazaar.parquet")
    baselines = [f"baseline:{name}" for name in ("random", "popularity", "last-item Markov", "item-kNN")]
    assert ranks.column_names == ["user_id", "item_id", "rank", "seen_target", *baselines]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    first = next(event for event in events if event["event"] == "train")
    for objective in ("dap", "nicl", "nid", "rcl"):
        assert first[objective] > 0
        assert first[f"{objective}/chance"] > 0
    assert {"dap", "nicl", "nid", "rcl"} <= next(e for e in events if e["event"] == "gradient_norm").keys()
    assert [event["epoch"] for event in events if event["event"] == "validation"] == [0, 1, 2]


def test_the_tiny_world_teaches_something(small_run: Path) -> None:
    """Else the many tests that use this checkpoint would compare weights that nobody trained."""
    assert json.loads((small_run / "runs/small/metrics.json").read_text())["best_epoch"] > 0


def test_distinct_items_are_fewer_than_slots(small_run: Path) -> None:
    events = [json.loads(line) for line in (small_run / "runs/small/events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    assert 0 < sum(step["items_encoded"] for step in steps) < sum(step["slots"] for step in steps)


def test_the_published_parts_open_alone(small_run: Path) -> None:
    folder = small_run / "hub" / "small" / "text_encoder"
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    states = model(**tokenizer(["a red thing"], return_tensors="pt")).last_hidden_state
    assert states.shape[-1] == 16
    assert torch.isfinite(states).all()


def test_zero_shot_on_an_unseen_platform_prints_baselines_and_figures(
    at_run: Path, world: Path, pmmrec: Pmmrec
) -> None:
    result = pmmrec("evaluate", "small", world / "boutique", "--out", "zero", "--cache", "c")
    assert result.code == 0, result.output
    for word in ("random", "popularity", "item-kNN", "small", "HR@10", "NDCG@10"):
        assert word in result.output
    outcome = json.loads((at_run / "zero" / "metrics.json").read_text())
    figures = outcome["domains"][0]["metrics"]["hr@10"]
    assert figures["low"] <= figures["mean"] <= figures["high"]
    again = pmmrec("evaluate", "small", world / "boutique", "--out", "zero", "--cache", "c")
    assert again.code == 2
    assert "exists" in again.output


def test_full_transfer_accounts_for_every_part_and_is_compared_with_scratch(
    at_run: Path, world: Path, pmmrec: Pmmrec
) -> None:
    on = ("--on", world / "boutique")
    common = ("train.epochs=1", "train.batch_users=16", "cache=c")
    full = pmmrec("finetune", "finetune/full", "--from", "small", *on, *common, "name=full")
    assert full.code == 0, full.output
    for part in ("text_encoder", "vision_encoder", "fusion", "user_encoder"):
        assert any(line.startswith(f"│ {part} ") and "loaded" in line for line in full.output.splitlines()), full.output
    assert any(line.startswith("│ objectives/") and "dropped" in line for line in full.output.splitlines())
    scratch = pmmrec("finetune", "finetune/tiny", "--from", "none", *on, *SMALL, *common, "name=scratch")
    assert scratch.code == 0, scratch.output
    table = pmmrec("compare", "runs/full", "runs/scratch")
    assert table.code == 0, table.output
    assert "full" in table.output
    assert "scratch" in table.output
    other = pmmrec("compare", "runs/full", "runs/small")
    assert other.code == 3
    assert "only figures on the same users and rules compare" in other.output


def test_scores_are_written_best_first_for_every_user(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("score", "small", world / "boutique", "--top-k", 5, "--out", "topk.parquet", "--cache", "c")
    assert result.code == 0, result.output
    table = pq.read_table("topk.parquet")
    domain = Domain.open(world / "boutique")
    assert table.column_names == ["user_id", "rank", "item_id", "score"]
    assert table.num_rows == 5 * domain.num_users
    one = table.slice(0, 5).to_pydict()
    assert one["rank"] == [1, 2, 3, 4, 5]
    assert one["score"] == sorted(one["score"], reverse=True)
    seen = {domain.item_ids[int(row)].as_py() for row in domain.sequence(0)}
    assert not seen & set(one["item_id"])


def test_k_larger_than_the_catalogue_is_refused_and_writes_nothing(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("score", "small", world / "boutique", "--top-k", 1000, "--out", "large.parquet", "--cache", "c")
    assert result.code == 2
    assert "has only 36 items" in result.output
    assert not Path("large.parquet").exists()


def test_the_python_api_recommends_what_score_wrote(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    pmmrec("score", "small", world / "boutique", "--top-k", 4, "--out", "api.parquet", "--cache", "c")
    system = api.load("small", cache=Path("c"))
    items = system.encode_items(world / "boutique")
    assert items.vectors_ND.shape == (36, 16)
    domain = items.domain
    history = [domain.item_ids[int(row)].as_py() for row in domain.sequence(0)]
    best = system.recommend(history, k=4)
    assert [item for item, _ in best] == pq.read_table("api.parquet").slice(0, 4)["item_id"].to_pylist()


def test_an_id_only_model_trains_and_refuses_another_catalogue(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    ids = ("train.epochs=1", "train.batch_users=16", "model.width=16", "name=ids", "cache=c", "machine.device=cpu")
    result = pmmrec("finetune", "zoo/ids/small/sasrec_in_batch", "--from", "none", "--on", world / "boutique", *ids)
    assert result.code == 0, result.output
    elsewhere = pmmrec("evaluate", "runs/ids/checkpoint", world / "bazaar", "--cache", "c")
    assert elsewhere.code == 3
    assert "an id means nothing elsewhere" in elsewhere.output


def test_a_dry_run_prints_the_plan_and_leaves_nothing(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), "--dry-run")
    assert result.code == 0, result.output
    assert "learning: " in result.output
    assert "windows ┃ of each epoch, % ┃" in result.output
    assert "8 steps an epoch, at most" in result.output
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("launch", "told"), [("two_cpu", "DDP over 6 processes"), ("fsdp2", "FSDP2 over 24 processes")]
)
def test_a_dry_run_of_a_launch_tells_the_memory_of_each_process(
    home: Path, world: Path, pmmrec: Pmmrec, launch: str, told: str
) -> None:
    plan = ("--dry-run", "--launch", launch, "--nodes", "3", "train.batch_users=48")
    result = pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), *plan)
    assert result.code == 0, result.output
    assert f"memory of each process ({launch}: {told}, fp32, on the CPU):" in result.output
    for part in ("weights", "gradients", "optimiser", "exchange", "batch", "activations", "at the fullest"):
        assert f"\n{part} " in result.output
    assert list(home.iterdir()) == []


def test_a_dry_run_checks_shapes(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), "data.window.size=40", "--dry-run")
    assert result.code == 2
    assert "max_inputs" in result.output


def test_a_run_that_exists_is_refused(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), "name=small", "cache=c")
    assert result.code == 2
    assert "choose another name" in result.output


def test_recipe_typos_come_with_the_nearest_key(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("pretrain", "pretrain/tiny", "train.epoch=3", "objectives.dap.temprature=1")
    assert result.code == 2
    assert "train.epoch: unknown key; did you mean 'epochs'?" in result.output
    assert "objectives.dap.temprature: unknown key; did you mean 'temperature'?" in result.output
    assert list(home.iterdir()) == []


def test_from_none_without_a_model_says_what_to_do(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("finetune", "finetune/full", "--from", "none", "--on", world / "boutique")
    assert result.code == 2
    assert "finetune/scratch" in result.output


def test_training_twice_gives_the_same_weights(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    for name in ("one", "two"):
        arguments = (*SMALL, *sources(world), f"name={name}", "train.epochs=1", "cache=c")
        assert pmmrec("pretrain", "pretrain/tiny", *arguments).code == 0
    first, second = (json.loads(Path(f"hub/{name}/model_index.json").read_text())["parts"] for name in ("one", "two"))
    assert first == second


def test_a_setting_that_the_checkpoint_would_overrule_is_refused(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    other = (*SMALL, "model.item_encoder.text.architecture.num_hidden_layers=2", "name=other", "cache=c")
    result = pmmrec("finetune", "finetune/tiny", "--from", "small", "--on", world / "boutique", *other)
    assert result.code == 2
    assert "text_encoder: architecture is" in result.output
    assert not (at_run / "runs" / "other").exists()


def test_a_plan_with_everything_else_fresh_takes_no_backbone_from_the_checkpoint(small_run: Path) -> None:
    checkpoint = Checkpoint.open(small_run / "hub" / "small")
    users_only = ["transfer={load: [user_encoder], fresh: ['*'], drop: ['*']}"]
    recipe = read_recipe(FinetuneRecipe, find_recipe("finetune/full"), users_only)
    assert recipe.backbones_from(checkpoint) == {}
    whole = read_recipe(FinetuneRecipe, find_recipe("finetune/full"))
    assert whole.backbones_from(checkpoint).keys() == {"text_encoder", "vision_encoder"}


def test_a_taken_name_in_the_hub_is_told_before_training(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    again = (*SMALL, *sources(world), "name=again", "publish_as=small", "cache=c")
    for dry_run in ((), ("--dry-run",)):
        result = pmmrec("pretrain", "pretrain/tiny", *again, *dry_run)
        assert result.code == 2
        assert "exists already" in result.output
    assert not (at_run / "runs" / "again").exists()


def test_an_objective_that_the_model_cannot_serve_is_told_before_training(
    home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    settings = ("objectives.nicl={type: alignment}", "cache=c", "machine.device=cpu")
    result = pmmrec(
        "finetune", "zoo/ids/small/sasrec_in_batch", "--from", "none", "--on", world / "boutique", *settings
    )
    assert result.code == 2
    assert "objectives.nicl: compares text with image, but the model reads ids only" in result.output
    assert not (home / "runs" / "sasrec").exists()


def test_a_dry_run_of_a_transfer_accounts_for_every_tensor(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    on = ("--on", world / "boutique")
    fits = pmmrec("finetune", "finetune/full", "--from", "small", *on, "name=dry", "--dry-run")
    assert fits.code == 0, fits.output
    assert any(line.startswith("│ fusion ") and "loaded" in line for line in fits.output.splitlines())
    wider = (*SMALL, "model.width=32", "model.item_encoder.fusion.num_heads=2", "name=dry", "--dry-run")
    misfit = pmmrec("finetune", "finetune/tiny", "--from", "small", *on, *wider)
    assert misfit.code == 3
    assert "of another shape in the checkpoint" in misfit.output


def test_heads_of_pretraining_can_be_taken_over_and_are_accounted_for(
    at_run: Path, world: Path, pmmrec: Pmmrec
) -> None:
    on, run = ("--on", world / "boutique"), (*SMALL, "train.epochs=0", "cache=c")
    kept = pmmrec(
        "finetune", "finetune/tiny", "--from", "small", *on, *run, "name=kept", "transfer={load: ['*', objectives]}"
    )
    assert kept.code == 0, kept.output
    assert any(line.startswith("│ objectives/nid ") and "loaded" in line for line in kept.output.splitlines())
    fresh = pmmrec("finetune", "finetune/tiny", "--from", "small", *on, *run, "name=fresh")
    rows = [line.split()[1:4:2] for line in fresh.output.splitlines() if line.startswith("│ objectives/nid ")]
    assert sorted(rows) == [["objectives/nid", "dropped"], ["objectives/nid", "fresh"]]


def test_a_recipe_of_the_other_verb_is_told(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("finetune", "pretrain/tiny", "--from", "none", "--on", world / "boutique")
    assert result.code == 2
    assert "not a recipe for `pmmrec finetune`" in result.output


def test_windows_longer_than_the_user_encoder_reads_are_refused_and_shorter_ones_warned_of(
    home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    common = ("--from", "none", "--on", world / "boutique", "cache=c", "machine.device=cpu", "train.epochs=0")
    longer = pmmrec("finetune", "zoo/ids/small/sasrec_in_batch", *common, "data.window.size=22")
    assert longer.code == 2
    assert "gives 21 inputs, but the user encoder reads 20" in longer.output
    shorter = pmmrec("finetune", "zoo/ids/small/sasrec_in_batch", *common, "data.window.size=5")
    assert shorter.code == 0
    assert "positions that this run never trains" in shorter.output


def test_the_python_of_a_card_runs_where_the_hub_is(at_run: Path) -> None:
    code = Path("hub/small/README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 - the card is ours, and running it is what is tested
    assert names["text_encoder"].config.hidden_size == 16  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", ["missing column", "unknown type", "empty", "twice", "not text"])
def test_an_import_of_bad_data_ends_with_one_message_and_nothing_written(
    home: Path, pmmrec: Pmmrec, fault: str
) -> None:
    items, interactions = home / "items.csv", home / "interactions.csv"
    items.write_text("item_id,text\na,one\nb,two\n")
    interactions.write_text("user_id,item_id\nu,a\nu,b\n")
    if fault == "missing column":
        items.write_text("item,text\na,one\n")
    elif fault == "unknown type":
        items = items.rename(home / "items.xlsx")
    elif fault == "empty":
        interactions.write_text("")
    elif fault == "twice":
        items.write_text("item_id,text\na,one\na,two\n")
    else:
        items.write_bytes(b"item_id,text\na,caf\xe9\n")
    tables = ("--items", items, "--interactions", interactions)
    result = pmmrec("data", "import", "table", *tables, "--name", "shop", "--out", "shop", "--k-core", "none")
    assert result.code == 3, result.output
    assert result.output.startswith("error: ")
    assert len(result.output.strip().splitlines()) == 1
    assert not list(home.glob("shop*"))
