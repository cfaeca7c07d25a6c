"""Train small tasks in float64, alone or as one process of several: `torchrun ... train_gathered.py HOME OUT`."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pmmrec.data.batches import DataConfig
from pmmrec.data.domain import Domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.data.importers.impressions import store_impressions
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.items import ItemReader
from pmmrec.evaluation.catalogue import encode_catalogue
from pmmrec.evaluation.model_scores import model_scorer
from pmmrec.evaluation.ranking import rank_targets
from pmmrec.evaluation.share import WorkerGroup
from pmmrec.launch import Spread
from pmmrec.models.build import ModelConfig, build
from pmmrec.objectives import objectives
from pmmrec.settings import PartConfig
from pmmrec.train.config import TrainConfig
from pmmrec.train.log import RunLog
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Batches, Sources, find_backbones, start_backbones
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.task import TrainingTask

WIDTH, NUM_ITEMS, NUM_USERS, SEED = 8, 24, 36, 1
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {"model_type": "bert", "max_position_embeddings": 40, **SIZES, **NO_DROPOUT}
CLIP = {"model_type": "clip_vision_model", "patch_size": 16, **SIZES}
TOWERS = {
    "type": "towers",
    "text": {"type": "hf_text", "architecture": BERT, "vocab_size": 300, "max_tokens": 20, "trainable_blocks": "all"},
    "vision": {"type": "hf_vision", "architecture": CLIP, "image_size": 32, "trainable_blocks": "all"},
    "fusion": {"type": "merge_attention", "num_heads": 2, "dropout": 0},
}
USERS = {"type": "transformer", "num_layers": 1, "num_heads": 2, "dropout": 0}
NOISY = {"shuffle": 0.5, "replace": 0.3, "replace_from": "batch"}
PAPER = {
    "dap": {"type": "next_item"},
    "nicl": {"type": "alignment", "weight": 0.5},
    "nid": {"type": "noise_detection", "weight": 2.0, "noise": NOISY},
    "rcl": {"type": "robustness", "noise": NOISY},
}
SCALED = {
    "dap": {"type": "next_item", "temperature": "sqrt_width", "negatives": "other_users", "logq": "all_columns"},
    "nicl": {"type": "alignment", "temperature": 0.1, "positives_in_denominator": True, "negatives": "other_users"},
    "nid": {"type": "noise_detection", "relu": False, "noise": NOISY},
    "rcl": {"type": "robustness", "normalize": True, "temperature": 0.1, "symmetric": True, "noise": NOISY},
}
ITEMS = {"itc": {"type": "item_contrast"}}  # reads no user: user encoder, fusion and scorer must not be waited for
MATCHED = {**ITEMS, "itm": {"type": "itm", "temperature": 0.5}, "mlm": {"type": "mlm", "share": 0.3}}
SHOWN = {"click": {"type": "impression_ce", "not_clicked": 2}, "dap": {"type": "next_item"}, "nid": PAPER["nid"]}
CATALOGUE = {"ce": {"type": "catalogue_ce"}, **PAPER}
SILENT = RunLog(None, is_main=False)
# By name: objectives, users of a step (odd ones leave one process with fewer), settings of data and of training.
KINDS: dict[str, tuple[dict[str, Any], int, dict[str, Any], dict[str, Any]]] = {
    "paper": (PAPER, 6, {}, {}),
    "scaled": (SCALED, 5, {"window": {"size": 5, "policy": "all"}}, {}),
    # With 7 users, an input of a ReLU in step 10 is so near 0 that float32 and float64 disagree about its sign.
    "catalogue": (CATALOGUE, 5, {}, {}),
    "one_domain": (PAPER, 6, {"mixing": {"batches": "one_domain"}}, {}),  # half of the steps hold no image at all
    "items": (ITEMS, 4, {"examples": {"type": "items", "held_out": 0}}, {}),
    "matched": (MATCHED, 4, {"examples": {"type": "items", "held_out": 0}}, {}),
    "impressions": (
        SHOWN,
        5,
        {"split": {"type": "impressions", "name": "shown"}, "examples": {"type": "impressions", "history": 3}},
        {},
    ),
    "plain": (PAPER, 6, {}, {"accumulate": {"mode": "plain", "parts": 2}}),
}
# The same training as one of those, done in another way.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("paper", {"accumulate": {"parts": 3}}),
    "thin": ("scaled", {"accumulate": {"parts": 20}}),  # more parts than items: they are 13 to 19
    "checkpointed": ("paper", {"checkpoint_activations": True}),
}


def make_home(home: Path) -> None:
    """Two domains and fresh backbones: `shop` has items without a text or without an image, `films` no image."""
    draw = np.random.default_rng(1)
    for name, longest, has_images in (("shop", 6, True), ("films", 15, False)):
        folder = home / f"{name}-files"
        (folder / "images").mkdir(parents=True)
        with (folder / "items.csv").open("w", newline="") as file:
            words = [" ".join(draw.choice(list("abcdefgh"), 1 + row % longest)) for row in range(NUM_ITEMS)]
            texts = ["" if has_images and row % 7 == 3 else text for row, text in enumerate(words)]
            csv.writer(file).writerows([["item_id", "text"], *([f"i{row:02d}", t] for row, t in enumerate(texts))])
        with (folder / "interactions.csv").open("w", newline="") as file:
            picks = [draw.choice(NUM_ITEMS, 4 + user % 4, replace=False) for user in range(NUM_USERS)]
            rows = [[f"u{user}", f"i{item:02d}", time] for user, p in enumerate(picks) for time, item in enumerate(p)]
            csv.writer(file).writerows([["user_id", "item_id", "timestamp"], *rows])
        for row in range(NUM_ITEMS):
            if has_images and row % 5 != 4:
                noise = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / "images" / f"i{row:02d}.png")
        tables = {"items": folder / "items.csv", "interactions": folder / "interactions.csv"}
        images = folder / "images" if has_images else None
        import_table(TableImport(**tables, images=images, name=name, out=home / name, k_core=None))
        _show(home / name, folder / "shown.csv")
        for feature in ("content", "dropped"):
            vectors_NF = draw.normal(size=(NUM_ITEMS, 5)).astype(np.float32)
            store_vectors(Domain.open(home / name), vectors_NF, feature, feature)
        codes_NM = draw.integers(0, 50, (NUM_ITEMS, 3)).astype(np.float16)
        store_vectors(Domain.open(home / name), codes_NM, "codes", "codes", num_values=50)
    start_backbones(_model(), home / "backbones", sources_of(home).train_texts)


def _show(domain: Path, file: Path) -> None:
    """Impressions of every user, with a clicked item or two of two to six, for training."""
    draw = np.random.default_rng(2)
    with file.open("w", newline="") as rows:
        lists = [(user, draw.choice(NUM_ITEMS, 2 + user % 5, replace=False)) for user in range(NUM_USERS)]
        shown = [
            (f"l{user}", f"u{user}", "train", 1 + user % 4, f"i{item:02d}", int(place < 1 + (user % 5 > 2)))
            for user, items in lists
            for place, item in enumerate(items)
        ]
        csv.writer(rows).writerows([("impression_id", "user_id", "split", "known", "item_id", "clicked"), *shown])
    store_impressions(domain, file, "shown")


def sources_of(home: Path, split: PartConfig | None = None) -> Sources:
    return Sources.open([home / "shop", home / "films"], DataConfig() if split is None else DataConfig(split=split))


def task_of(home: Path, terms: dict[str, Any], sources: Sources, model: dict[str, Any] | None = None) -> TrainingTask:
    """The same fresh weights in every process, of towers unless a model is given."""
    torch.manual_seed(0)
    config = _model(model)
    recommender = build(config, find_backbones(config, home / "backbones", {}), sources.catalogues)
    configs = {name: objectives.config(tree) for name, tree in terms.items()}
    return TrainingTask.of(recommender, configs, WIDTH).double()


def reader_of(home: Path, task: TrainingTask, sources: Sources) -> ItemReader:
    encoder = task.recommender.item_encoder
    return ItemReader(sources.domains, encoder.reads, home / "cache", max_unreadable=1)


def train(
    home: Path, out: Path, kind: str, processes: Processes, dtype: torch.dtype = torch.float64, **settings: Any
) -> TrainingTask:
    """An epoch of more than ten steps.

    Leaves weights, the gradients of the first step, events, and how often each encoder was called, in `out`.
    """
    terms, batch_users, data, own = KINDS[kind]
    sources = sources_of(home, DataConfig.model_validate(data).split)
    task = task_of(home, terms, sources).to(dtype)
    fit(home, out, task, sources, processes, data, {"batch_users": batch_users, **own, **settings})
    return task


def fit(
    home: Path,
    out: Path,
    task: TrainingTask,
    sources: Sources,
    processes: Processes,
    data: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Train a task for an epoch; see `train`."""
    rates = {"learning_rate": 0.01, "eps": 1e-3}
    config = TrainConfig.model_validate({"epochs": 1, "log_every": 1, "optimizer": rates, **settings})
    reader = reader_of(home, task, sources)
    rules = (DataConfig.model_validate(data), sources, reader, task, config.batch_users, SEED, processes, SILENT)
    batches = Batches(*rules, gather=config.gather, parts=config.accumulate.user_parts)
    out.mkdir(parents=True, exist_ok=True)
    gradients: dict[str, torch.Tensor] = {}

    def keep_first(*_: object) -> None:
        for name, parameter in task.named_parameters():
            if name not in gradients and parameter.grad is not None:
                gradients[name] = whole(parameter.grad).clone()

    hook, calls = register_optimizer_step_pre_hook(keep_first), counted_calls(task)
    with RunLog(out, is_main=processes.is_main) as log:
        loop = Loop(config, task, batches, processes, log)
        loop.fit()
    hook.remove()
    (out / f"calls-{processes.rank}.json").write_text(json.dumps(calls))
    kept = loop.state_dict()
    (out / f"kept-{processes.rank}.json").write_text(json.dumps(len(kept)))
    if weights := kept or (task.state_dict() if processes.spread is Spread.DDP else {}):
        save_file(weights, out / f"weights-{processes.rank}.safetensors")
    save_file(gradients, out / f"gradients-{processes.rank}.safetensors")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which each process holds a share."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def counted_calls(task: TrainingTask) -> dict[str, int]:
    """How often each encoder has been called so far; goes on counting."""
    encoder = task.recommender.item_encoder
    encoders = {"text": "text_encoder", "image": "vision_encoder"}
    found = {name: getattr(encoder, part, None) for name, part in encoders.items()}
    modules = {name: module for name, module in found.items() if module is not None}
    modules["user"] = task.recommender.user_encoder
    calls = dict.fromkeys(modules, 0)

    def count(name: str) -> Any:
        def add(*_: object) -> None:
            calls[name] += 1

        return add

    for name, module in modules.items():
        module.register_forward_pre_hook(count(name))
    return calls


def ranks_of(home: Path, task: TrainingTask, group: WorkerGroup) -> dict[str, torch.Tensor]:
    """Ranks of the validation targets of `shop`, in small pieces; of a task in float32, as ranking is."""
    sources = sources_of(home)
    reader, split = reader_of(home, task, sources), sources.splits[0]
    holdout, num_items = split.holdout("validation"), split.domain.num_items
    vectors_ND = encode_catalogue(task.recommender, reader, 0, num_items, chunk=5, device="cpu", group=group)
    score = model_scorer(task.recommender, vectors_ND, holdout, split.train_counts, "cpu")
    ranks = rank_targets(holdout, num_items, score, chunk=5, group=group)
    return {"rank": ranks.rank, "user": ranks.user_index, "vectors": vectors_ND}


def _model(model: dict[str, Any] | None = None) -> ModelConfig:
    return ModelConfig.model_validate({"width": WIDTH, **(model or {"item_encoder": TOWERS, "user_encoder": USERS})})


def main(home: Path, out: Path) -> None:
    """Every kind and way, one after another."""
    processes = Processes(MachineConfig(device="cpu"))
    for kind in KINDS:
        task = train(home, out / kind, kind, processes)
    calls = counted_calls(task)
    save_file(ranks_of(home, task.float(), processes), out / f"ranks-{processes.rank}.safetensors")
    (out / f"calls-{processes.rank}.json").write_text(json.dumps(calls))
    for way, (kind, settings) in WAYS.items():
        train(home, out / way, kind, processes, **settings)
    train(home, out / "apart", "paper", processes, gather=False)
    train(home, out / "pairs", "paper", processes, gather=False, batch_users=2)  # one user each
    processes.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
