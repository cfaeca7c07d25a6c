"""A model that reads images alone, on a platform where a picture is missing, through the command line."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from command_line import Pmmrec

import pmmrec as api
from pmmrec.data.domain import Domain
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.splits.leave_one_out import leave_one_out

ARCHITECTURE = {
    "model_type": "vit",
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
RECIPE = {
    "name": "pictures",
    "model": {
        "width": 16,
        "item_encoder": {
            "type": "towers",
            "vision": {"type": "hf_vision", "architecture": ARCHITECTURE, "trainable_blocks": "all"},
        },
        "user_encoder": {"type": "transformer", "num_layers": 1, "num_heads": 2, "max_inputs": 20},
        "scorer": {"type": "dot"},
    },
    "objectives": {"dap": {"type": "next_item"}, "nid": {"type": "noise_detection"}, "rcl": {"type": "robustness"}},
    "train": {"epochs": 1, "batch_users": 16, "optimizer": {"learning_rate": 1e-3}},
    "machine": {"device": "cpu"},
    "cache": "c",
}


def lacking(world: Path, home: Path, item_ids: list[str]) -> Domain:
    """The boutique without the pictures of these items, and the recipe beside it."""
    files = shutil.copytree(world / "files" / "boutique", home / "files")
    for item_id in item_ids:
        (picture,) = (files / "images").glob(f"{item_id}.*")
        picture.unlink()
    (home / "pictures.yaml").write_text(yaml.safe_dump(RECIPE))
    tables = {"items": files / "items.csv", "interactions": files / "interactions.csv"}
    task = TableImport(**tables, images=files / "images", name="boutique", out=home / "boutique", k_core=None)
    return import_table(task)


@pytest.fixture
def target(world: Path) -> str:
    """An item that somebody takes next in the test."""
    domain = Domain.open(world / "boutique")
    holdout = leave_one_out(domain).holdout("test")
    unseen = [q for q in range(holdout.num_queries) if holdout.target[q] not in holdout.history(q)]
    item_id: str = domain.item_ids[int(holdout.target[unseen[0]])].as_py()
    return item_id


def test_an_item_without_a_picture_is_named_never_recommended_and_a_miss(
    world: Path, home: Path, target: str, pmmrec: Pmmrec
) -> None:
    domain = lacking(world, home, [target])
    warning = (
        f"warning: boutique: 1 of {domain.num_items} items have no image for the model to read ({target!r}); "
        "they count as zero vectors in histories and are never recommended, and whoever takes one next counts as a miss"
    )
    trained = pmmrec("finetune", "pictures.yaml", "--from", "none", "--on", "boutique")
    assert trained.code == 0, trained.output
    assert trained.output.count(warning) == 1
    events = [json.loads(line) for line in (home / "runs/pictures/events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)

    checkpoint = "runs/pictures/checkpoint"
    evaluated = pmmrec("evaluate", checkpoint, "boutique", "--out", "out", "--seen", "include", "--cache", "c")
    assert (evaluated.code, evaluated.output.count(warning)) == (0, 1), evaluated.output
    for ranks_file in ("runs/pictures/ranks.parquet", "out/ranks.parquet"):
        ranks = pq.read_table(ranks_file).to_pylist()
        of_target = [row["rank"] for row in ranks if row["item_id"] == target]
        assert len(of_target) >= 1
        assert set(of_target) == {0}
    assert all(row["rank"] > 0 for row in ranks if row["item_id"] != target)  # seen items are included

    top_k = ("--top-k", domain.num_items, "--include-seen", "--cache", "c")
    scored = pmmrec("score", checkpoint, "boutique", "--out", "lists.parquet", *top_k)
    assert (scored.code, scored.output.count(warning)) == (0, 1), scored.output
    lists = pq.read_table("lists.parquet")
    assert set(lists["item_id"].to_pylist()) == set(domain.item_ids.to_pylist()) - {target}
    assert lists.num_rows == domain.num_users * (domain.num_items - 1)

    system = api.load(checkpoint, cache="c", device="cpu")
    with pytest.warns(UserWarning, match="1 of .* items have no image"):
        items = system.encode_items(domain)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # once is enough
        system.evaluate(domain, name="again")
    assert items.vectors_ND.any(dim=1).tolist() == [item_id != target for item_id in items.item_ids]


def test_more_items_without_a_picture_than_allowed_are_refused(
    world: Path, home: Path, target: str, pmmrec: Pmmrec
) -> None:
    lacking(world, home, [target])
    for dry_run in ((), ("--dry-run",)):
        run = ("finetune", "pictures.yaml", "--from", "none", "--on", "boutique", "data.max_unreadable=0.02", *dry_run)
        result = pmmrec(*run)
        assert result.code == 3
        assert f"({target!r}), more than the share of 0.02 that may be so" in result.output


def test_a_dry_run_names_the_items_too(world: Path, home: Path, target: str, pmmrec: Pmmrec) -> None:
    lacking(world, home, [target])
    result = pmmrec("finetune", "pictures.yaml", "--from", "none", "--on", "boutique", "--dry-run")
    assert result.code == 0, result.output
    assert result.output.count(f"items have no image for the model to read ({target!r})") == 1
