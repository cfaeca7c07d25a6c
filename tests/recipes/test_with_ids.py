"""Systems that know items by id and read them too run by the ordinary verbs, and leave their ids behind elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import Pmmrec, working_in

from pmmrec.data.domain import Domain
from pmmrec.system import load

CONTENT = {"features": {"content": 12}}
QUICK = ("train.epochs=15", "validation.patience=15", "train.log_every=1", "train.optimizer.learning_rate=1e-2")
BEHIND = "transfer={load: ['*'], fresh: [item_table], drop: [item_table]}"


@pytest.fixture
def platforms(world: Path, tmp_path: Path, pmmrec: Pmmrec) -> Path:
    """Copies of two platforms with stored vectors; item 3 of `boutique` has none, and items 5 and 6 have the same."""
    for name, seed in (("boutique", 1), ("bazaar", 2)):
        folder = shutil.copytree(world / name, tmp_path / name)
        vectors = np.random.default_rng(seed).normal(size=(Domain.open(folder).num_items, 12)).astype(np.float32)
        vectors[3], vectors[6] = np.nan, vectors[5]
        np.save(tmp_path / f"{name}.npy", vectors)
        told = pmmrec("data", "features", folder, "--from", tmp_path / f"{name}.npy", "--name", "content")
        assert told.code == 0, told.output
    return tmp_path


def write_recipe(join: str) -> None:
    """The two-stage system of the zoo, smaller; the stream is read as FDSA reads it."""
    kind = {"add": "id_and_modality_ts", "concat": "id_and_modality_concat_ts", "stream": "id_and_modality_ts"}[join]
    model: dict[str, Any] = {"width": 16, "item_encoder": {"content": CONTENT}, "user_encoder": {"num_layers": 1}}
    if join == "stream":
        model["item_encoder"]["join"] = join
        model["user_encoder"] = {"type": "two_stream", "num_layers": 1, "num_heads": 2}
    tree = {"extends": f"zoo/ids_and_content/small/{kind}.yaml", "name": "both", "model": model}
    Path("both.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("join", ["add", "concat", "stream"])
def test_it_learns_is_ranked_and_makes_lists(platforms: Path, pmmrec: Pmmrec, join: str) -> None:
    boutique, where = platforms / "boutique", ("machine.device=cpu", "train.batch_users=16", "cache=c")
    with working_in(platforms):
        write_recipe(join)
        told = pmmrec("finetune", "both.yaml", "--from", "none", "--on", boutique, *where, *QUICK)
        assert told.code == 0, told.output
        run, kept = Path("runs/both"), Path("runs/both/checkpoint")
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        losses = [event["loss"] for event in events if event["event"] == "train"]
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
        told = pmmrec("evaluate", kept, boutique, "--out", "again", "--cache", "c")
        assert told.code == 0, told.output
        ranks = [pq.read_table(place / "ranks.parquet") for place in (run, Path("again"))]
        assert ranks[0]["rank"].to_pylist() == ranks[1]["rank"].to_pylist()
        for out in ("lists.csv", "again.csv"):
            told = pmmrec("score", kept, boutique, "--top-k", 30, "--out", out, "--cache", "c")
            assert told.code == 0, told.output
        assert Path("lists.csv").read_text() == Path("again.csv").read_text()
        domain, lists = Domain.open(boutique), Path("lists.csv").read_text().splitlines()
        assert domain.item_ids[3].as_py() in {
            line.split(",")[2].strip('"') for line in lists
        }  # without content: ranked by its id
        vectors_ND = load(kept, cache="c", device="cpu").encode_items(domain).vectors_ND
        assert not vectors_ND[5].equal(vectors_ND[6])
        told = pmmrec("index", kept, boutique, "--out", "index", "--kind", "flat", "--cache", "c")
        assert (told.code, "1.0000 of exact search" in told.output) == (0, True), told.output
        told = pmmrec("report", run, "--out", "report.html")
        assert told.code == 0, told.output
        assert pmmrec("zoo", "verify", kept).code == 0
        assert "serves only the catalogue it was trained on" in (kept / "README.md").read_text()


def test_ids_are_left_behind_when_it_moves_and_refused_where_they_are_not(platforms: Path, pmmrec: Pmmrec) -> None:
    where = ("machine.device=cpu", "train.batch_users=16", "cache=c", "train.epochs=1")
    with working_in(platforms):
        write_recipe("concat")
        told = pmmrec("finetune", "both.yaml", "--from", "none", "--on", "boutique", *where, "name=first")
        assert told.code == 0, told.output
        kept = "runs/first/checkpoint"
        told = pmmrec("evaluate", kept, "bazaar", "--cache", "c")
        assert (told.code, "was learned for the items of boutique" in told.output) == (3, True), told.output
        told = pmmrec("score", kept, "boutique", "--top-k", 3, "--out", "n.csv", "--new-items", "n.csv")
        assert (told.code, "this model knows items by id" in told.output) == (2, True), told.output
        told = pmmrec("finetune", "finetune/full", "--from", kept, "--on", "bazaar", *where)
        assert (told.code, "start item_table fresh" in " ".join(told.output.split())) == (3, True), told.output
        told = pmmrec("finetune", "finetune/full", "--from", kept, "--on", "bazaar", *where, BEHIND, "name=moved")
        assert told.code == 0, told.output
        actions = {tuple(line.replace("│", " ").split()[:2]) for line in told.output.splitlines()}
        assert {("item_table", "fresh"), ("feature_encoder", "loaded"), ("join", "loaded")} <= actions
        alone = "transfer={load: ['*'], drop: [item_table, join]}"
        told = pmmrec("finetune", "finetune/full", "--from", kept, "--on", "bazaar", *where, alone, "name=content")
        assert told.code == 0, told.output
        told = pmmrec("finetune", "finetune/frozen", "--from", kept, "--on", "boutique", *where, "name=frozen")
        assert told.code == 0, told.output
        assert "none of their parts learns, so their 36 vectors were computed once" in " ".join(told.output.split())


@pytest.mark.parametrize("join", ["add", "stream"])
@pytest.mark.parametrize("start", ["none", "runs/first/checkpoint"])
def test_a_plan_is_shown_without_training(platforms: Path, pmmrec: Pmmrec, join: str, start: str) -> None:
    where = ("machine.device=cpu", "train.batch_users=16", "cache=c", "train.epochs=1")
    with working_in(platforms):
        write_recipe(join)
        if start != "none":
            told = pmmrec("finetune", "both.yaml", "--from", "none", "--on", "boutique", *where, "name=first")
            assert told.code == 0, told.output
        recipe = "both.yaml" if start == "none" else "finetune/frozen"
        dry = ("--dry-run", "--launch", "two_cpu")
        told = pmmrec("finetune", recipe, "--from", start, "--on", "boutique", *dry, *where)
        assert told.code == 0, told.output
        assert "activations" in told.output


@pytest.mark.parametrize("name", ["id_and_modality", "id_and_modality_concat"])
def test_it_learns_end_to_end_on_a_pretrained_text_encoder(world: Path, home: Path, pmmrec: Pmmrec, name: str) -> None:
    where = ("--from", "none", "--on", world / "boutique", "train.epochs=2", "train.log_every=1", "cache=c")
    told = pmmrec("finetune", f"zoo/ids_and_content/small/{name}", *where)
    assert told.code == 0, told.output
    events = [json.loads(line) for line in (home / "runs" / name / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert losses[-1] < losses[0]
    told = pmmrec("evaluate", f"runs/{name}/checkpoint", world / "boutique", "--cache", "c", "--out", "again")
    assert told.code == 0, told.output
