"""Train systems by ids, alone or as one process of several: `torchrun ... train_systems.py HOME OUT`.

The home is that of `train_gathered`; the environment says whether weights are sharded, as for `train_spread`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from train_gathered import TOWERS, fit, sources_of, task_of

from pmmrec.data.batches import DataConfig
from pmmrec.train.processes import MachineConfig, Processes

TRANSFORMER = {"type": "transformer", "num_layers": 1, "num_heads": 2, "dropout": 0}
IDS = {"item_encoder": {"type": "ids"}, "user_encoder": TRANSFORMER}
MIXTURE = {"type": "mixture", "feature": "content", "length": 5, "experts": 2, "dropout": 0, "noise": False}
TWO = {"count": 2, "by": "uniform"}


@dataclass(frozen=True)
class System:
    """What is trained: a model with its objectives, and how the data is read."""

    terms: dict[str, Any]
    model: dict[str, Any] = field(default_factory=lambda: IDS)
    data: dict[str, Any] = field(default_factory=dict)
    batch_users: int = 7  # odd: one process has fewer
    training: dict[str, Any] = field(default_factory=dict)  # further settings of it
    draws: bool = False  # whether training draws numbers that processes draw otherwise than one does
    compares_users: bool = False  # whether users of a step are negatives of one another


SYSTEMS = {
    "gru, bce": System(
        {"bce": {"type": "bce", "negatives": TWO}}, {**IDS, "user_encoder": {"type": "gru", "dropout": 0}}
    ),
    "nextitnet, bce": System(
        {"bce": {"type": "bce", "negatives": TWO}},
        {**IDS, "user_encoder": {"type": "nextitnet", "dilations": [1, 2], "repeats": 1, "cls": True}},
    ),
    "transformer, bpr": System({"bpr": {"type": "bpr", "negatives": {"count": 3, "by": "popularity"}}}),
    "per pair": System({"bpr": {"type": "bpr", "negatives": {**TWO, "per": "pair"}}}),
    "bert4rec": System(
        {
            "ce": {"type": "catalogue_ce", "targets": "masked", "mask_share": 0.4},
            "bce": {"type": "bce", "targets": "masked", "negatives": TWO},
        },
        {**IDS, "user_encoder": {**TRANSFORMER, "attends": "all"}},
    ),
    "mask text": System(
        {"bce": {"type": "bce", "targets": "masked", "negatives": TWO}},
        {
            "item_encoder": {"type": "towers", "text": TOWERS["text"], "normalize": "layer_norm"},
            "user_encoder": {**TRANSFORMER, "attends": "all", "mask_text": "a b c"},
        },
    ),
    "dssm": System(
        {"bce": {"type": "bce", "negatives": TWO}},
        {**IDS, "user_encoder": {"type": "user_table"}},
        {"examples": "interactions"},
        batch_users=25,
    ),
    "dssm, layers": System(
        {"bce": {"type": "bce", "negatives": TWO}},
        {
            "item_encoder": {"type": "ids", "layers": 1, "dropout": 0},
            "user_encoder": {"type": "user_table", "layers": 2, "dropout": 0},
        },
        {"examples": "interactions"},
        batch_users=25,
    ),
    "dssm variant": System(
        {"bce": {"type": "bce", "targets": "each", "negatives": TWO}},
        {**IDS, "user_encoder": {"type": "mean_mlp", "attends": "others"}},
    ),
    "contrast": System(
        {"dap": {"type": "next_item", "targets": "last"}, "contrast": {"type": "sequence_contrast"}},
        compares_users=True,
    ),
    "impressions": System(
        {"click": {"type": "impression_ce", "not_clicked": 2}},
        data={"split": {"type": "impressions", "name": "shown"}, "examples": {"type": "impressions", "history": 3}},
        batch_users=5,
    ),
    "items": System(
        {"itc": {"type": "item_contrast"}},
        {"item_encoder": TOWERS, "user_encoder": TRANSFORMER},
        {"examples": "items"},
        compares_users=True,
    ),
    "unisrec": System(
        {
            "item": {"type": "target_contrast", "temperature": 0.5},
            "views": {"type": "sequence_contrast", "temperature": 0.5, "dropped": {"reworded": 0.5}},
        },
        {
            "item_encoder": {**MIXTURE, "reworded": "dropped"},
            "user_encoder": TRANSFORMER,
            "scorer": {"type": "dot", "similarity": "cosine"},
        },
        compares_users=True,
    ),
    "vqrec": System(
        {"item": {"type": "target_contrast", "temperature": 0.5}},
        {"item_encoder": {"type": "codes", "feature": "codes", "parts": 3, "values": 50}, "user_encoder": TRANSFORMER},
        compares_users=True,
    ),
    "vqrec, aligned": System(
        {"all": {"type": "catalogue_ce"}},
        {
            "item_encoder": {"type": "codes", "feature": "codes", "parts": 3, "values": 50, "permutation": {}},
            "user_encoder": TRANSFORMER,
        },
        training={"epochs": 2, "stages": [{"epochs": 1, "learns": ["permutation"]}, {"frozen": ["permutation"]}]},
        draws=True,
    ),
    "stages": System(
        {"bce": {"type": "bce", "negatives": TWO}},
        training={
            "epochs": 2,
            "optimizer": {"type": "adam", "learning_rate": 0.01, "eps": 1e-3},
            "stages": [{"epochs": 1, "learns": ["item_table"]}, {"frozen": ["user_encoder.position"]}],
        },
    ),
    "co-attention": System(
        {"dap": {"type": "next_item"}},
        {
            "item_encoder": {**TOWERS, "fusion": {"type": "co_attention", "num_heads": 2, "dropout": 0}},
            "user_encoder": TRANSFORMER,
        },
        compares_users=True,
    ),
    "film": System(
        {"dap": {"type": "next_item"}},
        {
            "item_encoder": {**TOWERS, "fusion": {"type": "film", "layers": 1, "dropout": 0}},
            "user_encoder": TRANSFORMER,
        },
        compares_users=True,
    ),
    "ids and content": System(
        {"dap": {"type": "next_item"}, "nicl": {"type": "alignment"}},
        {
            "item_encoder": {"type": "with_ids", "content": TOWERS, "join": "concat", "dropout": 0},
            "user_encoder": TRANSFORMER,
        },
        compares_users=True,
    ),
    "fdsa": System(
        {"ce": {"type": "catalogue_ce"}},
        {
            "item_encoder": {"type": "with_ids", "content": TOWERS, "join": "stream"},
            "user_encoder": {"type": "two_stream", "num_layers": 1, "dropout": 0},
        },
    ),
    "carca": System(
        {"bce": {"type": "bce", "negatives": TWO}},
        {
            "item_encoder": {"type": "with_ids", "content": TOWERS, "join": "concat", "content_width": 6, "dropout": 0},
            "user_encoder": {"type": "carca", "num_layers": 1, "dropout": 0},
            "scorer": {"type": "attention", "activation": "leaky_relu", "multiplies": "candidate"},
        },
    ),
    "attention scorer": System(
        {"bce": {"type": "bce", "negatives": TWO}, "ce": {"type": "catalogue_ce"}},
        {**IDS, "scorer": {"type": "attention", "num_heads": 2}},
    ),
}


def train(
    home: Path, out: Path, name: str, processes: Processes, dtype: torch.dtype = torch.float64, **settings: Any
) -> None:
    """Leave in `out` what `train_gathered.train` leaves of a training."""
    system = SYSTEMS[name]
    sources = sources_of(home, DataConfig.model_validate(system.data).split)
    task = task_of(home, system.terms, sources, system.model).to(dtype)
    rules = {"batch_users": system.batch_users, **system.training, **settings}
    fit(home, out, task, sources, processes, system.data, rules)


def main(home: Path, out: Path) -> None:
    """Train every system, one after another."""
    processes = Processes(MachineConfig(device="cpu"))
    dtype = torch.float32 if processes.spread.is_deepspeed else torch.float64
    for name in SYSTEMS:
        train(home, out / name, name, processes, dtype)
    processes.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
