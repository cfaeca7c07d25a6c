"""Models that read further columns of the items, as texts and as attributes, through the command line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from command_line import Pmmrec
from safetensors.torch import load_file

from pmmrec.data.domain import Domain
from pmmrec.models.features import NO_VALUE

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


BRANDS = {
    "name": "brands",
    "model": {
        "width": 16,
        "item_encoder": {"type": "features", "attributes": {"about": 5}},
        "user_encoder": RECIPE["model"]["user_encoder"],
    },
    **{key: RECIPE[key] for key in ("objectives", "train", "machine", "cache")},
}


def import_with(world: Path, platform: str, pmmrec: Pmmrec, about: Callable[[int, str], str]) -> Path:
    """Import a platform of the demo world with one more column, made of the place and the text of an item."""
    files = world / "files" / platform
    with (files / "items.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with Path(f"{platform}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "text", "about"])
        writer.writerows([row["item_id"], row["text"], about(place, row["text"])] for place, row in enumerate(rows))
    where = ("--items", f"{platform}.csv", "--interactions", files / "interactions.csv", "--k-core", "none")
    imported = pmmrec("data", "import", "table", *where, "--name", platform, "--out", platform)
    assert imported.code == 0, imported.output
    return Path(platform)


def losses_of(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "train"]


def test_a_second_text_is_imported_read_and_absent_elsewhere(world: Path, home: Path, pmmrec: Pmmrec) -> None:
    shop = import_with(world, "boutique", pmmrec, lambda row, text: " ".join(reversed(text.split())) if row % 3 else "")
    assert "items with column about" in pmmrec("data", "stats", shop).output
    assert pmmrec("data", "verify", shop).code == 0
    Path("texts.yaml").write_text(yaml.safe_dump(RECIPE))
    trained = pmmrec("finetune", "texts.yaml", "--from", "none", "--on", shop)
    assert trained.code == 0, trained.output
    losses = losses_of(home / "runs/texts")
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-3:]) < sum(losses[:3])
    index = json.loads((home / "runs/texts/checkpoint/model_index.json").read_text())
    assert list(index["parts"]) == ["text_encoder", "fusion", "user_encoder"]
    assert index["provenance"]["domains"]["boutique"]["modalities"] == ["text", "about"]
    assert "text, about" in (home / "runs/texts/checkpoint/README.md").read_text()

    scored = pmmrec("score", "runs/texts/checkpoint", world / "boutique", "--out", "lists.csv", "--cache", "c")
    assert scored.code == 0, scored.output
    Path("texts.yaml").write_text(yaml.safe_dump({**RECIPE, "name": "elsewhere"}))
    moved = pmmrec("finetune", "texts.yaml", "--from", "runs/texts/checkpoint", "--on", world / "boutique")
    assert moved.code == 0, moved.output
    told = "about: no item of boutique has one (further columns: none); its encoder learns nothing here"
    assert told in " ".join(moved.output.split())


def test_values_of_an_attribute_are_known_on_another_platform(world: Path, home: Path, pmmrec: Pmmrec) -> None:
    brands = ["acme", "Bolt & Co", "", "cray", "acme"]
    shop = import_with(world, "boutique", pmmrec, lambda row, _: brands[row % 5])
    other = import_with(world, "gallery", pmmrec, lambda row, _: ["cray", "dune", "acme"][row % 3])
    Path("brands.yaml").write_text(yaml.safe_dump(BRANDS))
    more = ("data.max_unreadable=0.5",)
    fresh = ("finetune", "brands.yaml", "--from", "none", "--on", shop, *more)
    planned = pmmrec(*fresh, "--dry-run", "--launch", "two_cpu")
    assert planned.code == 0, planned.output
    assert "activations" in planned.output
    trained = pmmrec(*fresh)
    assert trained.code == 0, trained.output
    assert all(math.isfinite(loss) for loss in losses_of(home / "runs/brands"))
    moved = pmmrec("finetune", "brands.yaml", "--from", "runs/brands/checkpoint", "--on", other, "name=moved", *more)
    assert moved.code == 0, moved.output
    first, second = (
        load_file(f"runs/{name}/checkpoint/feature_encoder/part.safetensors") for name in ("brands", "moved")
    )
    (known,) = (name for name in first if name.endswith("value_key_V"))
    assert torch.equal(first[known], second[known])
    keys = dict(zip(brands, Domain.open(shop).value_keys("about").tolist(), strict=False))
    assert set(keys.values()) - {0} == set(first[known].tolist()) - {NO_VALUE}
    assert keys["cray"] in Domain.open(other).value_keys("about")

    Path("new.csv").write_text("item_id,text,about\nn1,a hat,cray\n")
    scored = pmmrec(
        *("score", "runs/brands/checkpoint", shop, "--new-items", "new.csv", "--out", "lists.csv", "--cache", "c"),
        *("--max-unreadable", 0.5),
    )
    assert scored.code == 0, scored.output
