"""Compare training steps of LightGCN, LATTICE and FREEDOM with plain implementations on COO matrices.

    python tests/benchmarks/graph_epoch.py [--steps 5] [--only lightgcn]

A generated shop of 36,000 users and 18,000 items, 64 wide vectors, 2,048 interactions a step, and one feature of 384
numbers. Each side runs in a process of its own on one thread; they take a step each in turn, and CPU time is counted,
so the ratio holds on a busy machine too. An epoch is what comes before its steps, its first step, and the median of
later ones for each of the rest. Plain: `torch.sparse.mm` over COO matrices and autograd; similar items from the whole
matrix of similarities, as released codes have it; LATTICE's graph without a gradient, where ours has one in each step.
All output lies below runs/benchmarks.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.data.batches import BatchBuilder
from pmmrec.data.domain import Domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Split, split_of
from pmmrec.models.build import build
from pmmrec.propagations.lightgcn import edges_of
from pmmrec.recipe import FinetuneRecipe, read_recipe
from pmmrec.shipped import find_recipe
from pmmrec.train.task import TrainingTask

HOME = Path("runs/benchmarks").resolve()
SYSTEMS = ("lightgcn", "lattice", "freedom")
NUM_USERS, NUM_ITEMS, LENGTH, WIDTH, BATCH, NEIGHBORS, PRUNE = 36_000, 18_000, 384, 64, 2048, 10, 0.8
NUM_LAYERS = {"lightgcn": 3, "lattice": 2, "freedom": 2}
TEXTS_ALONE = {
    "lightgcn": (),
    "lattice": ("model.item_encoder.streams.image=null", "model.propagation.features.image_content=null"),
    "freedom": (
        "model.item_encoder.streams.image=null",
        "model.propagation.features.image_content=null",
        "objectives.image=null",
    ),
}


def made_up_shop() -> Domain:
    """The shop, made at the first time."""
    folder = HOME / "graph_shop"
    if not (folder / "domain.json").exists():
        HOME.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        share = 1 / np.arange(1, NUM_ITEMS + 1) ** 0.5
        place = 0
        with (HOME / "items.csv").open("w") as items, (HOME / "interactions.csv").open("w") as interactions:
            items.write("item_id,text\n")
            items.writelines(f"i{row},item number {row}\n" for row in range(NUM_ITEMS))
            interactions.write("user_id,item_id,timestamp\n")
            for user in range(NUM_USERS):
                length = 5 + min(int(rng.exponential(3.62)), 60)
                drawn = np.searchsorted(np.cumsum(share) / share.sum(), rng.random(length))
                if user < NUM_ITEMS:
                    drawn[0] = user  # each item is touched
                for item in dict.fromkeys(drawn.tolist()):
                    interactions.write(f"u{user},i{min(item, NUM_ITEMS - 1)},{place}\n")
                    place += 1
        named = {kind: HOME / f"{kind}.csv" for kind in ("items", "interactions")}
        import_table(TableImport(**named, name="graph_shop", out=folder, k_core=None))
        vectors_NF = rng.normal(size=(NUM_ITEMS, LENGTH)).astype(np.float32)
        store_vectors(Domain.open(folder), vectors_NF, "content", "random")
    return Domain.open(folder)


class Ours:
    """The system of the recipe, with the batches that a run draws."""

    def __init__(self, system: str, domain: Domain) -> None:
        recipe = read_recipe(FinetuneRecipe, find_recipe(f"zoo/graph/{system}"), list(TEXTS_ALONE[system]))
        if recipe.model is None:
            raise ValueError(f"zoo/graph/{system}: has no model")
        split = split_of(recipe.data.split, domain)
        recommender = build(recipe.model, {}, [domain.catalogue], [split.graph], 1)
        self._task = TrainingTask.of(recommender, recipe.active_objectives, recipe.model.width)
        reader = ItemReader([domain], recommender.item_encoder.reads, HOME / "cache")
        self._builder = BatchBuilder([split], reader, recipe.data, self._task.requests, BATCH, 1)
        self._optimizer = torch.optim.Adam(self._task.parameters())
        self._step = 0

    def begin(self) -> None:
        self._task.begin_epoch(1)
        self._builder.draw(1, 0)

    def step(self) -> None:
        batch = self._builder.build(1, self._step)
        self._step += 1
        figures, loss = self._task(batch), torch.zeros(())
        for name, weight in self._task.weights.items():
            loss = loss + weight * figures[name][0] / figures[name][1]
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


class Plain(nn.Module):
    """The same systems over COO matrices."""

    def __init__(self, system: str, domain: Domain, split: Split) -> None:
        super().__init__()
        self._system, self._rng = system, np.random.default_rng(1)
        self._user_E, self._item_E = edges_of(split.graph)
        self._keys = self._user_E * NUM_ITEMS + self._item_E
        self._order, self._place = self._rng.permutation(len(self._user_E)), 0
        self.ids = nn.Parameter(0.02 * torch.randn(NUM_USERS + NUM_ITEMS, WIDTH))
        self._feature = torch.from_numpy(domain.feature("content").read(np.arange(NUM_ITEMS)).astype(np.float32))
        self.linear = nn.Linear(LENGTH, WIDTH) if system != "lightgcn" else None
        self._matrix = self._normed(self._user_E, self._item_E)
        self._fixed = None if system == "lightgcn" else self._similar(self._feature)
        self._items = self._fixed
        self._optimizer = torch.optim.Adam(self.parameters())

    def _normed(self, user_E: np.ndarray, item_E: np.ndarray) -> Tensor:
        row = torch.from_numpy(np.concatenate((user_E, NUM_USERS + item_E)))
        column = torch.from_numpy(np.concatenate((NUM_USERS + item_E, user_E)))
        num_nodes = NUM_USERS + NUM_ITEMS
        with_self = self._system == "lattice"
        if with_self:
            row, column = (torch.cat((one, torch.arange(num_nodes))) for one in (row, column))
        degree = torch.bincount(row, minlength=num_nodes).float()
        value = 1 / degree[row] if with_self else (degree[row] * degree[column]).rsqrt()
        return torch.sparse_coo_tensor(torch.stack((row, column)), value, (num_nodes, num_nodes)).coalesce()

    @torch.no_grad()
    def _similar(self, x_NF: Tensor) -> Tensor:
        unit_NF = F.normalize(x_NF, dim=1)
        cosine_Nk, list_Nk = (unit_NF @ unit_NF.T).topk(NEIGHBORS, dim=1)
        row = torch.arange(NUM_ITEMS).repeat_interleave(NEIGHBORS)
        scale_N = cosine_Nk.sum(dim=1).clamp(min=1e-6).rsqrt()
        value = cosine_Nk.flatten() * scale_N[row] * scale_N[list_Nk.flatten()]
        if self._system == "freedom":
            value = torch.full_like(value, 1 / NEIGHBORS)
        place = torch.stack((row, list_Nk.flatten()))
        return torch.sparse_coo_tensor(place, value, (NUM_ITEMS, NUM_ITEMS)).coalesce()

    def begin(self) -> None:
        if self._system == "freedom":
            degrees = np.bincount(self._user_E)[self._user_E] * np.bincount(self._item_E)[self._item_E]
            share = torch.from_numpy(1 / np.sqrt(degrees))
            kept = torch.multinomial(share, round((1 - PRUNE) * len(share))).numpy()
            self._matrix = self._normed(self._user_E[kept], self._item_E[kept])
        if self._system == "lattice" and self.linear is not None and self._fixed is not None:
            self._items = (0.1 * self._similar(self.linear(self._feature)) + 0.9 * self._fixed).coalesce()

    def step(self) -> None:
        chosen = self._order[self._place : self._place + BATCH]
        self._place += len(chosen)
        user, item = torch.from_numpy(self._user_E[chosen]), torch.from_numpy(self._item_E[chosen])
        drawn = self._rng.integers(NUM_ITEMS, size=len(chosen))
        while (is_seen := np.isin(self._user_E[chosen] * NUM_ITEMS + drawn, self._keys)).any():
            drawn[is_seen] = self._rng.integers(NUM_ITEMS, size=int(is_seen.sum()))
        other = torch.from_numpy(drawn)
        x, layers = self.ids, [self.ids]
        for _ in range(NUM_LAYERS[self._system]):
            x = torch.sparse.mm(self._matrix, x)
            layers.append(x)
        users, items = torch.stack(layers, dim=1).mean(dim=1).split((NUM_USERS, NUM_ITEMS))
        if self._items is not None:
            similar = torch.sparse.mm(self._items, self.ids[NUM_USERS:])
            items = items + (F.normalize(similar, dim=1) if self._system == "lattice" else similar)
        loss = self._bpr(users[user], items[item], items[other])
        if self._system == "freedom" and self.linear is not None:
            stream = self.linear(self._feature)
            loss = loss + 1e-3 * self._bpr(users[user], stream[item], stream[other])
        else:
            kept = self.ids if self._system == "lightgcn" else torch.cat((users, items))
            rows = kept[user], kept[NUM_USERS + item], kept[NUM_USERS + other]
            loss = loss + 1e-4 * torch.stack([one.square().sum() for one in rows]).sum() / 2 / len(chosen)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    @staticmethod
    def _bpr(user: Tensor, item: Tensor, other: Tensor) -> Tensor:
        return F.softplus(-((user * (item - other)).sum(dim=1))).mean()


def work(system: str, side: str) -> None:
    """Answer each line with the CPU seconds of one step; the first answers are of the start and of `begin`."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    torch.sparse.check_sparse_tensor_invariants.disable()  # says so, so that torch does not warn
    domain = made_up_shop()
    split = split_of(read_recipe(FinetuneRecipe, find_recipe("zoo/graph/bprmf")).data.split, domain)
    before = peak_bytes()
    trainer = Ours(system, domain) if side == "ours" else Plain(system, domain, split)
    num_edges = len(edges_of(split.graph)[0])
    for turn, _ in enumerate(sys.stdin):
        started_s = time.process_time()
        trainer.begin() if turn == 0 else trainer.step()
        told = {"s": time.process_time() - started_s, "peak": peak_bytes(), "more": peak_bytes() - before}
        print(json.dumps({**told, "edges": num_edges}), flush=True)


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(system: str, num_steps: int) -> None:
    """Print CPU time of an epoch and peak memory of both sides, and their ratios."""
    command = [sys.executable, __file__, "--only", system, "--side"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    sides = {side: subprocess.Popen([*command, side], **pipes) for side in ("ours", "plain")}
    answers: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(2 + num_steps):  # what comes before the steps, and the first one
        for side, process in sides.items():
            print("go", file=process.stdin, flush=True)
            answers[side].append(json.loads(process.stdout.readline()))
    for process in sides.values():
        process.communicate()
    epochs = {}
    for side, told in answers.items():
        steps = math.ceil(told[0]["edges"] / BATCH)
        median_s = statistics.median(one["s"] for one in told[2:])
        epochs[side] = told[0]["s"] + told[1]["s"] + (steps - 1) * median_s
        print(
            f"{system} {side}: {2 * int(told[0]['edges']):,} entries; before steps {told[0]['s']:.2f} s, "
            f"first {told[1]['s']:.2f} s, later {median_s:.3f} s; epoch of {steps} steps {epochs[side]:.1f} s; "
            f"peak {told[-1]['peak'] / 1e6:,.0f} MB, {told[-1]['more'] / 1e6:,.0f} MB beyond opening the data"
        )
    pairs = [a["s"] / b["s"] for a, b in zip(answers["ours"][2:], answers["plain"][2:], strict=True)]
    told = ", ".join(f"{pair:.2f}" for pair in pairs)
    memory = answers["ours"][-1]["more"] / answers["plain"][-1]["more"]
    print(
        f"{system}: epoch {epochs['ours'] / epochs['plain']:.2f} (steps: {told}), memory {memory:.2f} of the plain one"
    )


def main() -> None:
    """Measure all systems, or one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", choices=SYSTEMS)
    parser.add_argument("--side", choices=("ours", "plain"))
    asked = parser.parse_args()
    if asked.side and asked.only:
        work(asked.only, asked.side)
        return
    made_up_shop()
    for system in SYSTEMS:
        if asked.only in (None, system):
            measure(system, asked.steps)


if __name__ == "__main__":
    main()
