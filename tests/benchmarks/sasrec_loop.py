"""Compare an epoch of SASRec by item ids (zoo/ids/small/sasrec_in_batch, one drawn negative) with a plain torch loop.

    python tests/benchmarks/sasrec_loop.py [DATA] [--epochs 4] [--profile]

Both train on the same windows: films (ml_latest_small) and fashion (hm_ladies_source). The plain loop pads every window
to 20 inputs. Epochs of the two alternate in one process on one thread, and CPU time is counted, so the ratio holds on a
busy machine too. All output lies below runs/benchmarks.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Split
from pmmrec.models.build import build
from pmmrec.recipe import FinetuneRecipe, read_recipe
from pmmrec.shipped import find_recipe
from pmmrec.train.log import RunLog
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Batches, Sources
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.task import TrainingTask

HOME = Path("runs/benchmarks").resolve()
DOMAINS = {"films": "ml_latest_small", "fashion": "hm_ladies_source"}
WIDTH, NUM_LAYERS, NUM_HEADS, DROPOUT, LENGTH, USERS = 64, 2, 2, 0.2, 20, 64
OBJECTIVES = "objectives={dap: null, bce: {type: bce, negatives: {count: 1, by: uniform}}}"


class PlainSASRec(nn.Module):
    """An embedding of items and one of positions under torch's own Transformer."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.item = nn.Embedding(num_items + 1, WIDTH, padding_idx=0)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT)
        layer = nn.TransformerEncoderLayer(WIDTH, NUM_HEADS, 4 * WIDTH, DROPOUT, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, NUM_LAYERS, enable_nested_tensor=False)
        nn.init.normal_(self.item.weight, std=0.02)
        self.register_buffer("is_hidden", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, input_BL: Tensor) -> Tensor:
        embedded = self.item(input_BL) + self.position.weight
        hidden: Tensor = self.encoder(self.dropout(self.norm(embedded)), mask=self.is_hidden)
        return hidden


class PlainLoop:
    """Windows padded on the right (so that no row of the mask is empty), Adam, and binary cross-entropy."""

    def __init__(self, split: Split) -> None:
        num_items = split.domain.num_items
        windows, users = [], []
        self._is_seen = np.zeros((split.domain.num_users, num_items + 1), dtype=bool)
        for user in range(split.domain.num_users):
            history = np.asarray(split.train(user)) + 1
            self._is_seen[user, history] = True
            for end in range(len(history), 1, -LENGTH):
                windows.append(history[max(0, end - LENGTH - 1) : end])
                users.append(user)
        self._windows = np.zeros((len(windows), LENGTH + 1), dtype=np.int64)
        for place, window in enumerate(windows):
            self._windows[place, : len(window)] = window
        self._users, self._rng, self._num_items = np.array(users), np.random.default_rng(1), num_items
        self._model = PlainSASRec(num_items)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=1e-3)

    def epoch(self) -> float:
        """One epoch; the mean loss."""
        losses = []
        order = self._rng.permutation(len(self._windows))
        for start in range(0, len(order), USERS):
            chosen = order[start : start + USERS]
            window_BS = torch.from_numpy(self._windows[chosen])
            input_BL, target_BL = window_BS[:, :-1], window_BS[:, 1:]
            negative_BL = torch.from_numpy(self._negatives(self._users[chosen]))
            hidden = self._model(input_BL)
            right_BL = (hidden * self._model.item(target_BL)).sum(dim=-1)
            wrong_BL = (hidden * self._model.item(negative_BL)).sum(dim=-1)
            is_target = target_BL > 0
            right = F.binary_cross_entropy_with_logits(right_BL[is_target], torch.ones_like(right_BL[is_target]))
            wrong = F.binary_cross_entropy_with_logits(wrong_BL[is_target], torch.zeros_like(wrong_BL[is_target]))
            self._optimizer.zero_grad()
            (right + wrong).backward()
            self._optimizer.step()
            losses.append(float(right.detach() + wrong.detach()))
        return statistics.fmean(losses)

    def _negatives(self, users: np.ndarray) -> np.ndarray:
        drawn = self._rng.integers(1, self._num_items + 1, size=(len(users), LENGTH))
        while (is_seen := self._is_seen[users[:, None], drawn]).any():
            drawn[is_seen] = self._rng.integers(1, self._num_items + 1, size=int(is_seen.sum()))
        return drawn


class Alternate:
    """A callback that times the epochs of the loop, and lets the plain loop train one after each."""

    def __init__(self, plain: PlainLoop) -> None:
        self.own_s: list[float] = []
        self.plain_s: list[float] = []
        self._plain, self._since_s = plain, 0.0

    def epoch_ended(self, loop: Loop, epoch: int) -> None:
        if epoch:
            self.own_s.append(time.process_time() - self._since_s)
        started_s = time.process_time()
        loss = self._plain.epoch()
        self.plain_s.append(time.process_time() - started_s)
        loop.log.event("plain", loop.step, loss=loss)
        self._since_s = time.process_time()


def measure(name: str, domain: Path, epochs: int, *, profile: bool) -> None:
    """Print the CPU time of an epoch of each, and the ratio."""
    settings = [OBJECTIVES, f"train.epochs={epochs}", "machine.device=cpu"]
    recipe = read_recipe(FinetuneRecipe, find_recipe("zoo/ids/small/sasrec_in_batch"), settings)
    sources = Sources.open([domain], recipe.data)
    torch.manual_seed(1)
    if recipe.model is None:
        raise ValueError("zoo/ids/small/sasrec_in_batch: has no model")
    recommender = build(recipe.model, {}, sources.catalogues)
    task = TrainingTask.of(recommender, recipe.active_objectives, recipe.model.width)
    processes = Processes(MachineConfig(device="cpu"))
    reader = ItemReader(sources.domains, {}, HOME / "states")
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder), is_main=True)
        batches = Batches(recipe.data, sources, reader, task, recipe.train.batch_users, 1, processes, log)
        alternate = Alternate(PlainLoop(sources.splits[0]))
        loop = Loop(recipe.train, task, batches, processes, log, [alternate])
        profiler = cProfile.Profile(time.process_time)
        if profile:
            profiler.enable()
        loop.fit()
        profiler.disable()
    ratios = [own / plain for own, plain in zip(alternate.own_s, alternate.plain_s[1:], strict=True)]
    told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    medians = [statistics.median(found) for found in (alternate.own_s, alternate.plain_s[1:], ratios)]
    print(f"{name}: epoch {medians[0]:.2f} s, plain {medians[1]:.2f} s, ratio {medians[2]:.2f} (epochs: {told})")
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)


def imported(data: Path, name: str) -> Path:
    """The domain, imported at the first time."""
    domain = HOME / "domains" / f"{name}-ids"
    if not (domain / "domain.json").exists():
        shutil.rmtree(domain, ignore_errors=True)
        domain.parent.mkdir(parents=True, exist_ok=True)
        tables = [f"--{table}={data / name / table}.parquet" for table in ("items", "interactions")]
        told = [f"--name={name}-ids", f"--out={domain}", "--k-core=none"]
        subprocess.run(["pmmrec", "data", "import", "table", *tables, *told], check=True)
    return domain


def main() -> None:
    """Measure both domains; say so where the data is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", type=Path, default=Path("../shared/data"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", choices=tuple(DOMAINS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name, folder in DOMAINS.items():
        if not (asked.data / folder).is_dir():
            print(f"skipped: no {folder} in {asked.data}")
        elif asked.only in (None, name):
            measure(name, imported(asked.data, folder), asked.epochs, profile=asked.profile)


if __name__ == "__main__":
    main()
