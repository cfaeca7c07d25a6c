"""Every system of the zoo that knows items by id trains, ranks and is compared like any other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from command_line import Pmmrec, working_in

from pmmrec import load
from pmmrec.context import Catalogue, InteractionGraph
from pmmrec.contracts import ItemVectors, Nodes
from pmmrec.data.domain import Domain
from pmmrec.data.splits import split_of
from pmmrec.errors import RecipeError
from pmmrec.recipe import FinetuneRecipe, read_recipe
from pmmrec.shipped import shipped_recipes
from pmmrec.testing.twins.graphs import lightgcn_by_loops
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender

WIDTH, BLOCK = "model.width=16", "model.user_encoder.num_layers=1"
SYSTEMS = {
    "bert4rec": ("zoo/ids/small/bert4rec", WIDTH, BLOCK),
    "dssm": ("zoo/ids/small/dssm", WIDTH),
    "dssm_variant": ("zoo/ids/small/dssm_variant_each", WIDTH),
    "gru4rec": ("zoo/ids/small/gru4rec", WIDTH),
    "lightgcn": ("zoo/ids/lightgcn", WIDTH),
    "nextitnet": ("zoo/ids/small/nextitnet", WIDTH),
    "sasrec": ("zoo/ids/small/sasrec_in_batch", WIDTH, BLOCK),
    "sasrec_attention": ("zoo/ids/small/sasrec_attention", WIDTH, BLOCK),
}
QUICK = (
    "train.epochs=25",
    "validation.patience=25",
    "train.batch_users=16",
    "train.log_every=1",
    "train.optimizer.learning_rate=1e-2",
)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_learns_and_is_ranked(world: Path, tmp_path: Path, pmmrec: Pmmrec, name: str) -> None:
    with working_in(tmp_path):
        where = ("--from", "none", "--on", world / "boutique", "machine.device=cpu")
        told = pmmrec("finetune", *SYSTEMS[name], *where, *QUICK)
        assert told.code == 0, told.output
        run = Path("runs") / name
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        losses = [event["loss"] for event in events if event["event"] == "train"]
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
        (domain,) = json.loads((run / "metrics.json").read_text())["domains"]
        assert 0 <= domain["metrics"]["ndcg@10"]["mean"] <= 1
        compared = pmmrec("compare", run)
        assert compared.code == 0, compared.output
        assert name in compared.output


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_plan_of_a_system_is_shown_without_training(world: Path, tmp_path: Path, pmmrec: Pmmrec, name: str) -> None:
    with working_in(tmp_path):
        where = ("--from", "none", "--on", world / "boutique", "machine.device=cpu", "--dry-run")
        told = pmmrec("finetune", *SYSTEMS[name], *where, "--launch", "two_cpu")
    assert told.code == 0, told.output
    assert "activations" in told.output


FROM_SCRATCH = [
    name
    for name, path in shipped_recipes().items()
    if re.fullmatch("zoo/ids/[^/]+", name) and read_recipe(FinetuneRecipe, path).adapters is None
]


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_a_system_of_the_papers_size_is_planned(world: Path, tmp_path: Path, pmmrec: Pmmrec, name: str) -> None:
    with working_in(tmp_path):
        told = pmmrec("finetune", name, "--from", "none", "--on", world / "boutique", "--dry-run")
    assert told.code == 0, told.output


@pytest.mark.parametrize("name", ["dssm", "lightgcn"])
def test_users_known_by_id_are_ranked_by_their_own_rows_and_by_no_history(
    world: Path, tmp_path: Path, pmmrec: Pmmrec, name: str
) -> None:
    with working_in(tmp_path):
        quick = ("train.epochs=2", "train.batch_users=64", "machine.device=cpu")
        told = pmmrec("finetune", *SYSTEMS[name], "--from", "none", "--on", world / "boutique", *quick)
        assert told.code == 0, told.output
        kept = Path(f"runs/{name}/checkpoint")
        system = load(kept)
        lists, domain = {}, Domain.open(world / "boutique")
        for whose, more in (("all", ()), ("some", ("--users", "users.txt"))):
            Path("users.txt").write_text("\n".join(domain.sequences.user_id(row) for row in (7, 3)) + "\n")
            told = pmmrec(
                "score", kept, world / "boutique", "--top-k", 5, "--out", f"{whose}.csv", "--cache", "cache", *more
            )
            assert told.code == 0, told.output
            rows = Path(f"{whose}.csv").read_text().splitlines()[1:]
            lists[whose] = [row.rpartition(",")[0] for row in rows]  # scores may differ in their last digit
        assert set(lists["some"]) <= set(lists["all"])
        assert len(lists["some"]) == 10
        told = pmmrec("report", f"runs/{name}", "--out", "report.html")
        assert told.code == 0, told.output
        told = pmmrec("index", kept, world / "boutique", "--out", "index", "--cache", "cache")
        assert (told.code, "knows users by id" in told.output) == (2, True)
        system.encode_items(world / "boutique")
        with pytest.raises(RecipeError, match="knows users by id"):
            system.recommend([domain.item_ids[0].as_py()])
        assert pmmrec("zoo", "verify", kept).code == 0
        assert "serves only the users it was trained on" in (kept / "README.md").read_text()
        told = pmmrec("evaluate", kept, world / "bazaar", "--cache", "cache")
        assert (told.code, "was learned for the" in told.output) == (3, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["objectives.nid={type: noise_detection}"], "objectives.nid reads Noised windows"),
        (["data.window.size=50"], "window: has no effect with examples: interactions"),
        (["model.user_encoder={type: gru}"], "interactions have no history, but the user encoder reads one"),
        (["data.examples=windows"], "windows hold histories, which the user encoder does not read"),
    ],
)
@pytest.mark.parametrize("plan", [(), ("--dry-run",)], ids=["run", "plan"])
def test_what_interactions_cannot_serve_is_refused_by_the_plan_and_by_the_run(
    world: Path, tmp_path: Path, pmmrec: Pmmrec, settings: list[str], message: str, plan: tuple[str, ...]
) -> None:
    with working_in(tmp_path):
        where = ("--from", "none", "--on", world / "boutique", "machine.device=cpu")
        told = pmmrec("finetune", "zoo/ids/small/dssm", *where, *plan, *settings)
    assert (told.code, message in told.output) == (2, True), told.output


@pytest.mark.parametrize("name", ["gru4rec", "nextitnet", "bert4rec", "dssm_variant"])
def test_lists_and_an_index_rank_as_the_model_does(world: Path, tmp_path: Path, pmmrec: Pmmrec, name: str) -> None:
    with working_in(tmp_path):
        quick = ("train.epochs=1", "train.batch_users=16", "machine.device=cpu")
        told = pmmrec("finetune", *SYSTEMS[name], "--from", "none", "--on", world / "boutique", *quick)
        assert told.code == 0, told.output
        kept = Path("runs") / name / "checkpoint"
        told = pmmrec("score", kept, world / "boutique", "--top-k", 5, "--out", "lists.csv", "--cache", "cache")
        assert told.code == 0, told.output
        assert len(Path("lists.csv").read_text().splitlines()) > 1
        told = pmmrec("index", kept, world / "boutique", "--out", "index", "--kind", "flat", "--cache", "cache")
        assert told.code == 0, told.output
        assert "1.0000 of exact search" in told.output


def test_a_graph_is_read_by_every_ranking(world: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    """The run, `evaluate` and `score` rank by the propagated vectors of items and users."""
    with working_in(tmp_path):
        quick = ("train.epochs=3", "train.batch_users=256", "machine.device=cpu", "model.width=16")
        told = pmmrec("finetune", "zoo/ids/lightgcn", "--from", "none", "--on", world / "boutique", *quick)
        assert told.code == 0, told.output
        kept, domain = Path("runs/lightgcn/checkpoint"), Domain.open(world / "boutique")
        told = pmmrec("evaluate", kept, world / "boutique", "--out", "again", "--cache", "cache")
        assert told.code == 0, told.output
        ranks = [pq.read_table(where / "ranks.parquet") for where in (Path("runs/lightgcn"), Path("again"))]
        assert ranks[0]["rank"].to_pylist() == ranks[1]["rank"].to_pylist()

        recommender = load_recommender(*opened(kept, domain))
        items, users = recommender.item_encoder.item_table.vector.weight, recommender.user_encoder.vector.weight
        with torch.no_grad():
            nodes = lightgcn_by_loops(recommender.propagation, Nodes(ItemVectors(items), users))
        score_MN = nodes.user_MD @ nodes.items.fused_UD.T
        for user in range(domain.num_users):
            score_MN[user, domain.sequence(user).tolist()] = -torch.inf
        told = pmmrec("score", kept, world / "boutique", "--top-k", 3, "--out", "lists.csv", "--cache", "cache")
        assert told.code == 0, told.output
        rows = [line.split(",") for line in Path("lists.csv").read_text().splitlines()[1:]]
        scores = torch.tensor([float(row[3]) for row in rows]).view(domain.num_users, 3)
        torch.testing.assert_close(scores, score_MN.topk(3).values, rtol=0, atol=1e-5)
        told = pmmrec("score", kept, world / "boutique", "--top-k", 3, "--out", "new.csv", "--new-items", "n.csv")
        assert (told.code, "knows items by their neighbours in a graph" in told.output) == (2, True), told.output


def opened(kept: Path, domain: Domain) -> tuple[Checkpoint, list[Catalogue], list[InteractionGraph]]:
    checkpoint = Checkpoint.open(kept)
    return checkpoint, [domain.catalogue], [split_of(checkpoint.split, domain).graph]
