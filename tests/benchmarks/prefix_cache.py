"""Measure the CPU time that cached states of frozen blocks save in a training step, on real batches.

Takes the folder of the data (`make benchmarks`); where it is missing, says so and exits with 0. All output lies below
runs/benchmarks. Steps with and without cached states alternate in one process on the same batches, so the ratios hold
on a busy machine too.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from pmmrec.contracts import Batch
from pmmrec.data.items import ItemReader
from pmmrec.data.prefix import PrefixConfig
from pmmrec.models.build import build
from pmmrec.recipe import PretrainRecipe, read_recipe
from pmmrec.shipped import find_recipe
from pmmrec.train.log import RunLog
from pmmrec.train.optim import build_optimizer
from pmmrec.train.prepare import Batches, Sources, find_backbones, start_backbones
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.task import TrainingTask

DATA = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data").resolve()
HOME = Path("runs/benchmarks").resolve()
DOMAIN = "hm_ladies_source"
WARM_UP, STEPS = 1, 8
TOP_2 = "model.item_encoder.text.trainable_blocks=2"
CASES = {
    "text only, MiniLM with its top 2 of 6 blocks learning, width 128": (
        "pretrain/small_text",
        (TOP_2, "model.width=128"),
    ),
    "text and image, MiniLM with its top 2 of 6 blocks learning": ("pretrain/small", (TOP_2,)),
    "zoo/small.yaml as it is, MiniLM frozen": ("pretrain/small", ()),
}
STORES = ("none", "float32", "bfloat16")


@dataclass
class Store:
    """Batches from one kind of store, and what they cost in CPU seconds of this process."""

    batches: Iterator[Batch]
    source: Batches
    num_bytes: int
    build_s: float
    step_s: list[float]
    multiply_adds: float = 0.0


def main() -> None:
    if not DATA.is_dir():
        print(f"skipped: no real data in {DATA}")
        return
    torch.set_num_threads(1)
    sources = Sources.open([imported()])
    for title, (recipe_name, overrides) in CASES.items():
        override = [f"data.sources=[{HOME / 'domains' / DOMAIN}]", *overrides]
        measure(title, read_recipe(PretrainRecipe, find_recipe(recipe_name), override), sources)


def imported() -> Path:
    """The domain, imported at the first time."""
    domain = HOME / "domains" / DOMAIN
    if not (domain / "domain.json").exists():
        shutil.rmtree(domain, ignore_errors=True)
        domain.parent.mkdir(parents=True, exist_ok=True)
        tables = [f"--{table}={DATA / DOMAIN / table}.parquet" for table in ("items", "interactions")]
        told = [f"--images={DATA / 'hm_images'}", f"--name={DOMAIN}", f"--out={domain}", "--k-core=none"]
        subprocess.run(["pmmrec", "data", "import", "table", *tables, *told], check=True)
    return domain


def measure(title: str, recipe: PretrainRecipe, sources: Sources) -> None:
    """Print what one system costs with each store."""
    task = fresh_task(recipe, sources).train()
    optimizer = build_optimizer(task, recipe.train.optimizer)
    shutil.rmtree(HOME / "states", ignore_errors=True)
    stores = {name: open_store(name, recipe, sources, task) for name in STORES}

    def step(store: Store) -> None:
        batch = store.source.to_device(next(store.batches), torch.device("cpu"))
        figures = task(batch)
        terms = [task.weights[name] * figures[name][0] / figures[name][1].clamp(min=1) for name in task.weights]
        torch.stack(terms).sum().backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    names = list(stores)
    for number in range(WARM_UP + STEPS):
        for name in names[number % 3 :] + names[: number % 3]:  # nobody is always first
            started_s = time.process_time()
            step(stores[name])
            if number >= WARM_UP:
                stores[name].step_s.append(time.process_time() - started_s)
    for store in stores.values():
        with FlopCounterMode(display=False) as counter:
            step(store)
        store.multiply_adds = counter.get_total_flops() / 2
    report(title, recipe, stores)


def fresh_task(recipe: PretrainRecipe, sources: Sources) -> TrainingTask:
    folder = HOME / "backbones"
    shutil.rmtree(folder, ignore_errors=True)
    start_backbones(recipe.model, folder, sources.train_texts)
    torch.manual_seed(recipe.seed)
    recommender = build(recipe.model, find_backbones(recipe.model, folder, {}), sources.catalogues)
    return TrainingTask.of(recommender, recipe.active_objectives, recipe.model.width)


def open_store(name: str, recipe: PretrainRecipe, sources: Sources, task: TrainingTask) -> Store:
    """Batches of one epoch; states are computed now."""
    encoder, num_bytes = task.recommender.item_encoder, 0
    reader = ItemReader(sources.domains, encoder.reads, HOME / "states")
    started_s = time.process_time()
    for modality, tower in encoder.encoders.items() if name != "none" else ():
        if tower.prefix is not None:
            config = PrefixConfig(precision=name)
            num_bytes += reader.keep_states(modality, tower.prefix, config).num_bytes
    build_s = time.process_time() - started_s
    processes, silent = Processes(MachineConfig(device="cpu")), RunLog(None, is_main=False)
    rules = (task, recipe.train.batch_users, recipe.seed, processes)
    batches = Batches(recipe.data, sources, reader, *rules, silent)
    return Store(iter(batches.epoch(1)), batches, num_bytes, build_s, [])


def report(title: str, recipe: PretrainRecipe, stores: dict[str, Store]) -> None:
    """Ratios are of steps that stood side by side; the floor is what they would be if only multiply-adds took time."""
    plain = stores["none"]
    print(f"\n{title}; {recipe.train.batch_users} users a step, median of {STEPS} steps, one thread")
    print(
        f"{'store':>9} {'CPU ms/step':>12} {'ratio':>6} {'floor':>6} {'G mult-adds':>12} {'MB':>7} {'build CPU s':>12}"
    )
    for name, store in stores.items():
        median_s = statistics.median(store.step_s)
        ratio = statistics.median(one / other for one, other in zip(store.step_s, plain.step_s, strict=True))
        floor = store.multiply_adds / plain.multiply_adds
        print(
            f"{name:>9} {1000 * median_s:>12,.0f} {ratio:>6.3f} {floor:>6.3f} {store.multiply_adds / 1e9:>12,.2f} "
            f"{store.num_bytes / 1e6:>7.1f} {store.build_s:>12.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
