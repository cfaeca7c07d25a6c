"""A model that reads a second text, through the command line, and on a platform that has none."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import yaml
from command_line import Pmmrec

ARCHITECTURE = {
    "model_type": "bert",
    "max_position_embeddings": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT = {"type": "hf_text", "architecture": ARCHITECTURE, "vocab_size": 300, "max_tokens": 16, "trainable_blocks": 1}
RECIPE = {
    "name": "texts",
    "model": {
        "width": 16,
        "item_encoder": {
            "type": "towers",
            "text": TEXT,
            "text_fields": ["text", "about"],
            "fusion": {"type": "merge_attention", "num_heads": 2},
        },
        "user_encoder": {"type": "transformer", "num_layers": 1, "num_heads": 2, "max_inputs": 20},
    },
    "objectives": {"dap": {"type": "next_item"}},
    "train": {"epochs": 2, "batch_users": 16, "log_every": 1, "optimizer": {"learning_rate": 1e-3}},
    "machine": {"device": "cpu"},
    "cache": "c",
}


def write_items(world: Path, home: Path) -> None:
    """The items of the boutique with a second text, which every third item lacks, and the recipe beside them."""
    with (world / "files" / "boutique" / "items.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with (home / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "text", "about"])
        for place, row in enumerate(rows):
            about = " ".join(reversed(row["text"].split())) if place % 3 else ""
            writer.writerow([row["item_id"], row["text"], about])
    (home / "texts.yaml").write_text(yaml.safe_dump(RECIPE))


def test_a_second_text_is_imported_read_and_absent_elsewhere(world: Path, home: Path, pmmrec: Pmmrec) -> None:
    write_items(world, home)
    files = world / "files" / "boutique"
    where = ("--items", "items.csv", "--interactions", files / "interactions.csv", "--name", "shop", "--out", "shop")
    imported = pmmrec("data", "import", "table", *where, "--k-core", "none")
    assert imported.code == 0, imported.output
    assert "items with column about" in pmmrec("data", "stats", "shop").output
    assert pmmrec("data", "verify", "shop").code == 0

    trained = pmmrec("finetune", "texts.yaml", "--from", "none", "--on", "shop")
    assert trained.code == 0, trained.output
    events = [json.loads(line) for line in (home / "runs/texts/events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-3:]) < sum(losses[:3])
    index = json.loads((home / "runs/texts/checkpoint/model_index.json").read_text())
    assert list(index["parts"]) == ["text_encoder", "fusion", "user_encoder"]
    assert index["provenance"]["domains"]["shop"]["modalities"] == ["text", "about"]
    assert "text, about" in (home / "runs/texts/checkpoint/README.md").read_text()

    scored = pmmrec("score", "runs/texts/checkpoint", world / "boutique", "--out", "lists.csv", "--cache", "c")
    assert scored.code == 0, scored.output
    (home / "texts.yaml").write_text(yaml.safe_dump({**RECIPE, "name": "elsewhere"}))
    moved = pmmrec("finetune", "texts.yaml", "--from", "runs/texts/checkpoint", "--on", world / "boutique")
    assert moved.code == 0, moved.output
    assert "about: no item of boutique has one; its encoder learns nothing here" in " ".join(moved.output.split())
