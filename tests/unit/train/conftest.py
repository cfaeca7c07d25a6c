"""A small id-only task on one platform, and the tiny model that reads text and images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from pmmrec.contracts import Batch
from pmmrec.data.batches import DataConfig
from pmmrec.data.items import ItemReader
from pmmrec.models.build import ModelConfig, build
from pmmrec.objectives import objectives
from pmmrec.train.config import TrainConfig
from pmmrec.train.log import RunLog
from pmmrec.train.loop import Callback, Loop
from pmmrec.train.prepare import Batches, Sources
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.task import TrainingTask
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender

IDS: dict[str, Any] = {
    "width": 8,
    "item_encoder": {"type": "ids"},
    "user_encoder": {"type": "transformer", "num_layers": 1, "num_heads": 2, "dropout": 0},
}
SILENT = RunLog(None, is_main=False)
TERMS = {
    "dap": {"type": "next_item", "weight": 1.0},
    "nid": {"type": "noise_detection", "weight": 0.5},
    "rcl": {"type": "robustness", "weight": 2.0},
}


@dataclass
class Workshop:
    """All that a loop needs; the same seed gives the same weights and batches."""

    folder: Path
    sources: Sources
    task: TrainingTask
    reader: ItemReader
    processes: Processes
    log: RunLog = field(init=False)

    def __post_init__(self) -> None:
        self.log = RunLog(self.folder, is_main=True)

    def batches(self, batch_users: int, parts: int = 1) -> Batches:
        rules = (DataConfig(), self.sources, self.reader, self.task, batch_users, 1, self.processes, SILENT)
        return Batches(*rules, parts=parts)

    def loop(self, *, callbacks: Sequence[Callback] = (), **settings: Any) -> Loop:
        config = TrainConfig.model_validate({"batch_users": 16, "epochs": 1, "log_every": 1, **settings})
        batches = self.batches(config.batch_users, config.accumulate.user_parts)
        return Loop(config, self.task, batches, self.processes, self.log, callbacks)

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture
def workshop(tmp_path: Path, world: Path) -> Callable[..., Workshop]:
    """Makes one workshop after another, each with the same fresh weights; `terms` are objectives by name."""

    def make(terms: dict[str, Any] | None = None, dropout: float = 0.0) -> Workshop:
        folder = tmp_path / f"shop-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        sources = Sources.open([world / "boutique"])
        torch.manual_seed(0)
        model = {**IDS, "user_encoder": {**IDS["user_encoder"], "dropout": dropout}}
        recommender = build(ModelConfig.model_validate(model), {}, sources.catalogues)
        configs = {name: objectives.config(tree) for name, tree in (terms or TERMS).items()}
        reader = ItemReader(sources.domains, {}, tmp_path)
        processes = Processes(MachineConfig(device="cpu"))
        return Workshop(folder, sources, TrainingTask.of(recommender, configs, 8), reader, processes)

    return make


@dataclass(frozen=True)
class Reading:
    """A task whose model reads text and images, and one batch for it."""

    task: TrainingTask
    batch: Batch
    sources: Sources
    reader: ItemReader


@pytest.fixture
def reading(small_run: Path, world: Path) -> Reading:
    """The checkpoint of the tiny pretraining under all four objectives, in eval mode."""
    checkpoint = Checkpoint.open(small_run / "hub" / "small")
    recommender = load_recommender(checkpoint)
    trees = {**TERMS, "nicl": {"type": "alignment", "temperature": 0.1, "positives_in_denominator": True}}
    configs = {name: objectives.config(tree) for name, tree in trees.items()}
    torch.manual_seed(0)
    task = TrainingTask.of(recommender, configs, checkpoint.model_config.width).eval()
    sources = Sources.open([world / "bazaar", world / "gallery"])
    encoder = recommender.item_encoder
    reader = ItemReader(sources.domains, encoder.reads, small_run / "c")
    batches = Batches(DataConfig(), sources, reader, task, 12, 1, Processes(MachineConfig(device="cpu")), SILENT)
    return Reading(task, next(iter(batches.epoch(1))), sources, reader)
