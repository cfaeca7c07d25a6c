"""Tasks and batches without any padding: texts of one length, windows of one length, an image for every item."""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pmmrec.contracts import Batch
from pmmrec.data.batches import DataConfig
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.items import ItemReader
from pmmrec.data.prefix import PrefixConfig
from pmmrec.models.build import ModelConfig, build
from pmmrec.objectives import objectives
from pmmrec.train.log import RunLog
from pmmrec.train.prepare import Batches, Sources, find_backbones, start_backbones
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.task import TrainingTask

NUM_ITEMS, NUM_USERS, NUM_ACTIONS = 6, 12, 7  # five of the actions train: windows of five
SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
TEXT: dict[str, Any] = {
    "type": "hf_text",
    "architecture": {"model_type": "bert", "max_position_embeddings": 32, **SIZES},
    "vocab_size": 300,
    "max_tokens": 12,
    "trainable_blocks": "all",
}
VISION: dict[str, Any] = {
    "type": "hf_vision",
    "architecture": {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZES},
    "trainable_blocks": "all",
}
USERS: dict[str, Any] = {"type": "transformer", "num_layers": 2, "num_heads": 2}
TERMS: dict[str, Any] = {
    "dap": {"type": "next_item"},
    "nicl": {"type": "alignment", "temperature": 0.1, "positives_in_denominator": True},
    "nid": {"type": "noise_detection", "noise": {"shuffle": 0.5, "replace": 0}},
    "rcl": {"type": "robustness", "noise": {"shuffle": 0.5, "replace": 0}},
}


def even_domain(folder: Path) -> Path:
    """A domain in which every user touched all items, the last of them twice."""
    tables = folder / "tables"
    (tables / "images").mkdir(parents=True)
    draw = random.Random(0)
    items = [f"i{row}" for row in range(NUM_ITEMS)]
    for row, item in enumerate(items):
        Image.new("RGB", (16, 16), (20 * row,) * 3).save(tables / "images" / f"{item}.jpg")
    log = []
    for user in range(NUM_USERS):
        seen = draw.sample(items, k=NUM_ITEMS)
        log += [[f"u{user}", item, place] for place, item in enumerate([*seen, seen[0]][:NUM_ACTIONS])]
    _write(tables / "items.csv", ["item_id", "text"], [[item, f"red shoe {row}"] for row, item in enumerate(items)])
    _write(tables / "interactions.csv", ["user_id", "item_id", "timestamp"], log)
    names = {name: tables / f"{name}.csv" for name in ("items", "interactions")}
    import_table(TableImport(**names, images=tables / "images", name="even", out=folder / "even", k_core=None))
    return folder / "even"


@dataclass(frozen=True)
class FirstStep:
    """A task with fresh weights in training mode, and its first batch."""

    task: TrainingTask
    batch: Batch  # as it was read
    moved: Batch  # on the device of the model, with kept states
    reader: ItemReader  # of tokens and pixels


def first_step(
    domain: Path,
    folder: Path,
    item_encoder: Mapping[str, Any],
    user_encoder: Mapping[str, Any] | None = None,
    terms: Mapping[str, Any] | None = None,
    *,
    keeps_states: bool = False,
) -> FirstStep:
    """The step of a small model on a domain."""
    tree = {"width": 8, "item_encoder": dict(item_encoder), "user_encoder": dict(user_encoder or USERS)}
    config, sources = ModelConfig.model_validate(tree), Sources.open([domain])
    start_backbones(config, folder, sources.train_texts)
    torch.manual_seed(0)
    recommender = build(config, find_backbones(config, folder, {}), sources.catalogues)
    configs = {name: objectives.config(term) for name, term in (terms or TERMS).items()}
    task = TrainingTask.of(recommender, configs, config.width).train()
    plain, reader = (ItemReader(sources.domains, recommender.item_encoder.reads, folder / "cache") for _ in range(2))
    for field, encoder in recommender.item_encoder.encoders.items() if keeps_states else ():
        if encoder.prefix is not None:
            reader.keep_states(field, encoder.prefix, PrefixConfig())
    processes, silent = Processes(MachineConfig(device="cpu")), RunLog(None, is_main=False)
    batches = Batches(DataConfig(), sources, reader, task, NUM_USERS, 1, processes, silent)
    batch = next(iter(batches.epoch(1)))
    return FirstStep(task, batch, batches.to_device(batch, torch.device("cpu")), plain)


def _write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
