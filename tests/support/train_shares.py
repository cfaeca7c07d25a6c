"""Train a small task in float64 as one process of several: `torchrun ... train_shares.py DOMAIN OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pmmrec.data.batches import BatchBuilder, DataConfig, Division
from pmmrec.data.items import ItemReader
from pmmrec.errors import DivergenceError
from pmmrec.models.build import ModelConfig, build
from pmmrec.objectives import objectives
from pmmrec.train.config import TrainConfig
from pmmrec.train.log import RunLog
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Batches, Sources
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.task import TrainingTask

MODEL = {
    "width": 8,
    "item_encoder": {"type": "ids"},
    "user_encoder": {"type": "transformer", "num_layers": 1, "num_heads": 2, "dropout": 0},
}
TERMS = {
    "dap": {"type": "next_item", "weight": 1.0},
    "nid": {"type": "noise_detection", "weight": 0.5},
    "rcl": {"type": "robustness", "weight": 2.0},
}
DRAWN = {
    "bce": {"type": "bce", "negatives": {"count": 2, "by": "popularity"}},
    "bpr": {"type": "bpr", "targets": "last", "negatives": {"count": 3, "per": "pair"}},
}
UNEVEN = (5, 3)  # users of a step: two processes get 3 and 2, or 2 and 1
SEED = 1


def task_for(sources: Sources, terms: dict[str, Any] = TERMS) -> TrainingTask:
    """The same fresh weights in every process."""
    torch.manual_seed(0)
    recommender = build(ModelConfig.model_validate(MODEL), {}, sources.catalogues)
    configs = {name: objectives.config(tree) for name, tree in terms.items()}
    return TrainingTask.of(recommender, configs, MODEL["width"]).double()


def settings(batch_users: int) -> TrainConfig:
    """Clipping and a warm-up, so that all of a step takes part."""
    tree: dict[str, Any] = {"learning_rate": 0.05, "warmup": 0.3}
    return TrainConfig(batch_users=batch_users, epochs=1, log_every=1, clip_norm=0.5, optimizer=tree)


def reader_of(sources: Sources, cache: Path) -> ItemReader:
    return ItemReader(sources.domains, {}, cache)


def share_of(sources: Sources, reader: ItemReader, task: TrainingTask, batch_users: int, rank: int) -> BatchBuilder:
    """The batches of one process of two."""
    return BatchBuilder(sources.splits, reader, DataConfig(), task.requests, batch_users, SEED, Division(rank, 2))


def main(domain: Path, out: Path) -> None:
    """Leave weights and events of every process, and what each says of an item that only the last one saw."""
    processes = Processes(MachineConfig(device="cpu"))
    sources = Sources.open([domain])
    reader = reader_of(sources, out)
    for batch_users in UNEVEN:
        task, folder = task_for(sources), out / str(batch_users)
        if processes.is_main:
            folder.mkdir()
        processes.wait()
        silent = RunLog(None, is_main=False)
        batches = Batches(DataConfig(), sources, reader, task, batch_users, SEED, processes, silent, gather=False)
        with RunLog(folder, is_main=processes.is_main) as log:
            Loop(settings(batch_users), task, batches, processes, log).fit()
        save_file(task.state_dict(), folder / f"{processes.rank}.safetensors")

    task = task_for(sources)
    first, last = (share_of(sources, reader, task, 5, rank).build(0, 0).items.row_U.tolist() for rank in (0, 1))
    row = min(set(last) - set(first))
    with torch.no_grad():
        task.recommender.item_encoder.item_table.vector.weight[row] = torch.nan
    told = []
    for gather in (False, True):
        rules = (DataConfig(), sources, reader, task, 5, SEED, processes, RunLog(None, is_main=False))
        try:
            Loop(settings(5), task, Batches(*rules, gather), processes, RunLog(None, is_main=False)).fit()
        except DivergenceError as error:
            told.append(str(error))
    item = sources.domains[0].item_ids[row].as_py()
    (out / f"told-{processes.rank}.json").write_text(json.dumps({"item": item, "told": told}))
    processes.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
