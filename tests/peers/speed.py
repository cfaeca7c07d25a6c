"""Compare epochs, full ranking and peak memory of SASRec, GRU4Rec and BERT4Rec with those of RecBole.

    python tests/peers/speed.py [DATA] [--epochs 4] [--only SASRec]     # in the environment of `make peers`

Both train on films (ml_latest_small) with the same sizes, dropout, learning rate and loss (cross-entropy over the
catalogue), and with equally many targets in a step. RecBole trains on each prefix of a history for its next item; we
train on windows, of which each item is a target once. What a model has learned is therefore told by the cross-entropy
of the validation targets, which both compute here in the same way; both rank all items, seen ones too.

Each library has a process of its own, on one thread. They take turns, epoch by epoch, and CPU time is counted, so the
ratios hold on a busy machine too. Memory is the peak of a process above what its libraries take. All output lies below
runs/benchmarks.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import multiprocessing
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

HOME = Path("runs/benchmarks").resolve()
WIDTH, LENGTH, DROPOUT, RATE, TARGETS = 64, 20, 0.2, 1e-3, 2048
MOST = 20  # of our epochs for one of RecBole
RANKINGS = 5  # behind each epoch, of which the median counts
BLOCKS = {"type": "transformer", "num_layers": 2, "num_heads": 2, "activation": "gelu", "qkv_bias": True}
NEXT, MASKED = {"targets": "next"}, {"targets": "masked", "mask_share": 0.2}
OURS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {  # user encoder and targets
    "SASRec": ({**BLOCKS, "max_inputs": LENGTH, "norm_eps": 1e-12, "dropout": DROPOUT}, NEXT),
    "GRU4Rec": ({"type": "gru", "num_layers": 1, "output_layer": True, "max_inputs": LENGTH, "dropout": DROPOUT}, NEXT),
    "BERT4Rec": (
        {**BLOCKS, "max_inputs": LENGTH - 1, "norm_eps": 1e-12, "dropout": DROPOUT, "attends": "all"},
        MASKED,
    ),
}
THEIRS = {
    "SASRec": {"hidden_dropout_prob": DROPOUT, "attn_dropout_prob": DROPOUT},
    "GRU4Rec": {"hidden_size": WIDTH, "num_layers": 1, "dropout_prob": DROPOUT},
    "BERT4Rec": {"hidden_dropout_prob": DROPOUT, "attn_dropout_prob": DROPOUT, "mask_ratio": 0.2},
}


@dataclass(frozen=True)
class Epoch:
    """What one epoch took, and what it led to."""

    train_s: float
    rank_s: float
    ndcg: float
    cross_entropy: float  # of the validation targets
    peak_bytes: int


class Turn:
    """This process's end of the pipe: it trains an epoch whenever it is asked to."""

    def __init__(self, pipe: Connection) -> None:
        """Libraries must have been imported."""
        importlib.import_module("torch._dynamo")  # as optimizers do
        self._pipe, self._since_s, self._libraries = pipe, 0.0, peak_bytes()

    def begin(self) -> bool:
        """Wait until an epoch is wanted; False where there are no more."""
        wanted = bool(self._pipe.recv())
        self._since_s = time.process_time()
        return wanted

    def end(self, rank: Callable[[], float], cross_entropy: Callable[[], float]) -> None:
        """Tell what the epoch took; `rank` gives NDCG@10 of the validation targets."""
        trained_s = time.process_time()
        ranked_s = [trained_s]
        for _ in range(RANKINGS):
            ndcg = rank()
            ranked_s.append(time.process_time())
        rank_s = statistics.median(after - before for before, after in itertools.pairwise(ranked_s))
        peak = peak_bytes() - self._libraries  # before anything is computed for show
        epoch = Epoch(trained_s - self._since_s, rank_s, ndcg, cross_entropy(), peak)
        self._pipe.send(epoch)


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train_ours(pipe: Connection, system: str, domain: Path) -> None:
    """Train our system in this process."""
    from pmmrec.contracts import ItemVectors
    from pmmrec.data.items import ItemReader
    from pmmrec.evaluation.catalogue import evaluate_model
    from pmmrec.evaluation.queries import queries_after
    from pmmrec.models.build import build
    from pmmrec.recipe import FinetuneRecipe
    from pmmrec.train.log import RunLog
    from pmmrec.train.loop import Loop
    from pmmrec.train.prepare import Batches, Sources
    from pmmrec.train.processes import MachineConfig, Processes
    from pmmrec.train.task import TrainingTask

    torch.set_num_threads(1)
    turn = Turn(pipe)
    user_encoder, targets = OURS[system]
    recipe = FinetuneRecipe.model_validate(
        {
            "name": system.lower(),
            "model": {"width": WIDTH, "item_encoder": {"type": "ids"}, "user_encoder": dict(user_encoder)},
            "objectives": {"all": {"type": "catalogue_ce", "temperature": 1, **targets}},
            "data": {"window": {"size": LENGTH + 1 - (system == "BERT4Rec"), "policy": "all"}},
            "train": {
                "epochs": 1000,
                "batch_users": TARGETS // LENGTH,
                "clip_norm": None,
                "optimizer": {"learning_rate": RATE, "weight_decay": 0},
            },
            "machine": {"device": "cpu"},
        }
    )
    sources = Sources.open([domain], recipe.data)
    torch.manual_seed(1)
    recommender = build(recipe.model, {}, sources.catalogues)
    task = TrainingTask.of(recommender, recipe.active_objectives, WIDTH)
    processes = Processes(MachineConfig(device="cpu"))
    reader = ItemReader(sources.domains, {}, HOME / "states")
    split = sources.splits[0]
    holdout = split.holdout("validation")

    def rank() -> float:
        with torch.no_grad():
            evaluation = evaluate_model(recommender, reader, 0, split, holdout, torch.device("cpu"), "include")
        return evaluation.metrics["ndcg@10"]

    def cross_entropy() -> float:
        items = ItemVectors(recommender.item_encoder.item_table.vector.weight.detach())
        with torch.no_grad():
            asked = (holdout.history_offsets, holdout.history_items)
            query = queries_after(recommender.user_encoder, items, *asked, torch.device("cpu"))
            return float(F.cross_entropy(recommender.score(query, items), torch.from_numpy(holdout.target)))

    class Turns:
        def epoch_ended(self, loop: Loop, epoch: int) -> None:
            task.eval()
            if epoch:
                turn.end(rank, cross_entropy)
            loop.should_stop = not turn.begin()

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        log = RunLog(Path(folder), is_main=True)
        batches = Batches(recipe.data, sources, reader, task, recipe.train.batch_users, 1, processes, log)
        Loop(recipe.train, task, batches, processes, log, [Turns()]).fit()


def train_theirs(pipe: Connection, system: str, data: Path) -> None:
    """Train RecBole's system in this process."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    torch.set_num_threads(1)
    turn = Turn(pipe)
    warnings.simplefilter("ignore", FutureWarning)  # of pandas and torch, about RecBole
    settings = {
        "data_path": str(data),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": LENGTH,
        "train_neg_sample_args": None,
        "train_batch_size": TARGETS,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        "metrics": ["Hit", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "learning_rate": RATE,
        "use_gpu": False,
        "show_progress": False,
        "seed": 1,
        "checkpoint_dir": str(data / "saved"),
        **THEIRS[system],
    }
    config = Config(model=system, dataset="films", config_dict=settings)
    init_seed(1, reproducibility=True)
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    model = get_model(system)(config, train_data.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], system)(config, model)
    trainer.eval_collector.data_collect(train_data)

    def cross_entropy() -> float:
        losses = []
        with torch.no_grad():
            for interaction, _, _, positive_i in valid_data:
                scores = model.full_sort_predict(interaction)[:, 1:]  # without the padding
                losses.append(F.cross_entropy(scores, positive_i - 1, reduction="none"))
        return float(torch.cat(losses).mean())

    epoch = 0
    while turn.begin():
        trainer._train_epoch(train_data, epoch)
        turn.end(lambda: trainer.evaluate(valid_data, load_best_model=False)["ndcg@10"], cross_entropy)
        epoch += 1


def write_for_recbole(domain: Path, folder: Path) -> None:
    """The interactions of a domain as a file of RecBole. Times are ranks: it sorts them as float32."""
    from pmmrec.data.domain import Domain

    opened = Domain.open(domain)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "films.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(opened.num_users):
            rows = np.asarray(opened.sequence(user)).tolist()
            file.writelines(f"{user}\t{item}\t{rank}\n" for rank, item in enumerate(rows))


def imported(data: Path) -> Path:
    """The domain, imported at the first time."""
    from pmmrec.data.importers.table import TableImport, import_table

    domain = HOME / "domains" / "films-ids"
    if not (domain / "domain.json").exists():
        source = data / "ml_latest_small"
        tables = {name: source / f"{name}.parquet" for name in ("items", "interactions")}
        domain.parent.mkdir(parents=True, exist_ok=True)
        import_table(TableImport(**tables, name="films-ids", out=domain, k_core=None))
    return domain


def compare(system: str, domain: Path, data: Path, epochs: int) -> None:
    """Print a line for each epoch, and the ratios; ours goes on until it has the loss that RecBole reached."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, target, where in (("ours", train_ours, domain), ("RecBole", train_theirs, data)):
        here, there = context.Pipe()
        process = context.Process(target=target, args=(there, system, where), daemon=True)
        process.start()
        workers[name] = (process, here)
    found: dict[str, list[Epoch]] = {name: [] for name in workers}

    def train(name: str) -> None:
        pipe = workers[name][1]
        pipe.send(True)
        found[name].append(pipe.recv())
        print(f"{system} {len(found[name]):>3}  {name:<7}  {shown(found[name][-1])}", flush=True)

    for _ in range(epochs):
        for name in workers:
            train(name)
    ours, theirs = found["ours"], found["RecBole"]
    aim = theirs[-1].cross_entropy
    while min(one.cross_entropy for one in ours) > aim and len(ours) < MOST * epochs:
        train("ours")
    for process, pipe in workers.values():
        pipe.send(False)
        process.join()
    trained, ranked = (
        statistics.median(getattr(one, kind) for one in ours) / statistics.median(getattr(one, kind) for one in theirs)
        for kind in ("train_s", "rank_s")
    )
    num_epochs = next((place for place, one in enumerate(ours, 1) if one.cross_entropy <= aim), None)
    time_s = sum(one.train_s for one in ours[:num_epochs]) / sum(one.train_s for one in theirs)
    reached = f"{time_s:.3f} ({num_epochs} epochs for {epochs})" if num_epochs else f"not reached in {len(ours)} epochs"
    memory = ours[-1].peak_bytes / theirs[-1].peak_bytes
    print(f"{system}, of RecBole's: time to its loss {reached}, epoch {trained:.3f}, ", end="")
    print(f"full ranking {ranked:.2f}, peak memory {memory:.2f}", flush=True)


def shown(epoch: Epoch) -> str:
    return (
        f"{epoch.train_s:6.2f} s, ranking {epoch.rank_s:.3f} s, NDCG@10 {epoch.ndcg:.4f}, "
        f"CE {epoch.cross_entropy:.3f}, {epoch.peak_bytes / 1e6:.0f} MB"
    )


def main() -> None:
    """Compare each system; say so where the data is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", type=Path, default=Path("../shared/data"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--only", choices=tuple(OURS))
    asked = parser.parse_args()
    if not (asked.data / "ml_latest_small").is_dir():
        print(f"skipped: no ml_latest_small in {asked.data}")
        return
    domain, data = imported(asked.data), HOME / "recbole"
    write_for_recbole(domain, data / "films")
    for system in OURS:
        if asked.only in (None, system):
            compare(system, domain, data, asked.epochs)


if __name__ == "__main__":
    main()
