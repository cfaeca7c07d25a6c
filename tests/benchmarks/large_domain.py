"""Measure whether a platform that is larger than memory trains as a small one does.

    python tests/benchmarks/large_domain.py [--users 50000000] [--items 10000000] [--home runs/benchmarks]

A platform is drawn at random: each user touched 20 items, popular ones more often; its items share a few thousand
texts, since users are what is measured here. It is read as `pmmrec pretrain` reads it, for a small model of texts.

Start: seconds from the first import to the first batch, without and with the token ids in the cache; ranking before the
first step is not part of it. Memory: the most that the process held until then, and in 400 steps. Step: batch, forward
and backward over that on a platform of the same items with 1 / 500 of the users, the two taking turns in one process,
by CPU time and by the clock (where pages of the files are not in memory the clock waits for the disk). Spread: how
evenly the users of those steps lie over the file: mean distance of their rows from the nearest place of an even spread,
over that of rows drawn by chance.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pmmrec.data.info import Filters, ImportSummary
from pmmrec.data.write import DomainFolder, new_folder

ITEMS_A_USER, NUM_TEXTS = 20, 4000
ROWS_AT_ONCE = 500_000
FEWER = 500  # times, of users on the platform that fits into memory
TURNS, STEPS_A_TURN = 20, 20
SETTINGS = (
    "model.item_encoder.vision=null",
    "model.item_encoder.fusion=null",
    "objectives.nicl=null",
    "machine.device=cpu",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=50_000_000)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--home", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--open", type=Path, nargs="*", help="Open these platforms in this process, and end.")
    asked = parser.parse_args()
    home = asked.home.resolve() / "large_domain"
    if asked.open:
        measure(asked.open, home)
        return
    home.mkdir(parents=True, exist_ok=True)
    large, small = (made_platform(home, users, asked.items) for users in (asked.users, asked.users // FEWER))
    print(f"{asked.users:,} users, {ITEMS_A_USER * asked.users:,} interactions, {asked.items:,} items", flush=True)
    shutil.rmtree(home / "backbone", ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        for platforms in ([large], [large], [large, small]):
            command = [sys.executable, __file__, "--home", str(asked.home.resolve()), "--open", *map(str, platforms)]
            subprocess.run(command, check=True, cwd=scratch)


def measure(platforms: list[Path], home: Path) -> None:
    """Say what opening costs; of two platforms, train on both by turns and say what a step costs. Works in the cwd."""
    began_s = time.monotonic()
    from pmmrec.models.build import build
    from pmmrec.recipe import PretrainRecipe, read_recipe
    from pmmrec.shipped import find_recipe
    from pmmrec.train.prepare import Batches, Sources, open_backbones, open_reader
    from pmmrec.train.run import Run
    from pmmrec.train.task import TrainingTask

    imported_mb, epochs, task = memory_mb("VmRSS"), [], None
    settings = [*SETTINGS, f"data.sources=[{platforms[0]}]", "cache=cache", f"name=run-{time.time_ns()}"]
    recipe = read_recipe(PretrainRecipe, find_recipe("pretrain/tiny"), settings)
    with Run.start(recipe) as run:
        for platform in platforms:
            sources = Sources.open([platform])
            if task is None:
                backbones = open_backbones(recipe.model, run, sources.train_texts, {}, started(home))
                keep_started(backbones, home)
                recommender = build(recipe.model, backbones, sources.catalogues)
                task = TrainingTask.of(recommender, recipe.active_objectives, recipe.model.width)
            reader = open_reader(sources, task.recommender, recipe, run)
            batches = Batches.of(recipe.data, sources, reader, task, recipe.train, recipe.seed, run)
            epochs.append(iter(batches.epoch(1)))
            next(epochs[-1])
            print(
                f"{platform.name}: first batch after {time.monotonic() - began_s:.1f} s ({time.process_time():.1f} of "
                f"CPU); {memory_mb('VmRSS'):,} MB resident, {memory_mb('VmHWM'):,} at most, {imported_mb:,} of them "
                "before anything was opened",
                flush=True,
            )
        if len(platforms) == 2 and task is not None:
            take_turns(task, epochs)


def started(home: Path) -> dict[str, Any]:
    """The text encoder that the first process started: whoever pretrains has one, and learns no vocabulary."""
    from pmmrec.context import Backbone

    kept = home / "backbone"
    return {"text_encoder": Backbone(kept, is_pretrained=False)} if kept.exists() else {}


def keep_started(backbones: Mapping[str, Any], home: Path) -> None:
    if not (home / "backbone").exists():
        shutil.copytree(backbones["text_encoder"].folder, home / "backbone")


def take_turns(task: Any, epochs: list[Iterator[Any]]) -> None:
    """Time of a step on two platforms, a turn on one after a turn on the other."""
    forget_peak()
    cpu_s, clock_s, rows = np.zeros((TURNS, 2)), np.zeros((TURNS, 2)), []
    for turn in range(TURNS):
        for place, epoch in enumerate(epochs):
            started_cpu_s, started_s = time.process_time(), time.monotonic()
            for _ in range(STEPS_A_TURN):
                batch = next(epoch)
                figures = task(batch)
                sum(figures[name][0] / figures[name][1].clamp(min=1) for name in task.weights).backward()
                task.zero_grad()
                if place == 0:
                    rows += [int(re.sub(r".*/", "", user)) for user in batch.user_id]
            cpu_s[turn, place] = (time.process_time() - started_cpu_s) / STEPS_A_TURN
            clock_s[turn, place] = (time.monotonic() - started_s) / STEPS_A_TURN
    for what, seconds in (("of CPU", cpu_s), ("by the clock", clock_s)):
        large_s, small_s = np.median(seconds, axis=0)
        ratios = seconds[:, 0] / seconds[:, 1]
        print(
            f"a step: {1e3 * large_s:.1f} ms {what}, {1e3 * small_s:.1f} on the small one, ratio "
            f"{np.median(ratios):.3f} (middle half {np.quantile(ratios, 0.25):.3f} to {np.quantile(ratios, 0.75):.3f})"
        )
    print(f"at most {memory_mb('VmHWM'):,} MB in {TURNS * STEPS_A_TURN} steps of each")
    print(f"spread of the {len(rows):,} users over the file: {unevenness(np.array(rows)):.2f}, by chance about 1")


def unevenness(rows: np.ndarray) -> float:
    """Mean distance of sorted rows from an even spread over what they reach to, over what chance gives."""
    place = np.sort(rows) / rows.max()
    even = (np.arange(len(rows)) + 0.5) / len(rows)
    drawn = np.sort(np.random.default_rng(0).random((200, len(rows))), axis=1)
    return float(np.abs(place - even).mean() / np.abs(drawn - even).mean())


def memory_mb(name: str) -> int:
    """`VmRSS`, what this process holds, or `VmHWM`, the most that it held; Linux alone says so."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) // 1000


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def made_platform(home: Path, num_users: int, num_items: int) -> Path:
    """A domain drawn at random, made once."""
    out = home / f"platform-{num_users}-{num_items}"
    if out.exists():
        return out
    summary = ImportSummary(num_items_read=0, num_interactions_read=0, kept={}, rejected={}, num_pictures_ignored=0)
    with new_folder(out) as (folder, _):
        domain = DomainFolder(folder)
        domain.write_items(items(num_items), [])
        domain.write_sequences(sequences(num_users, num_items), has_times=False)
        domain.seal(out.name, filters=Filters(), image_side=None, time_unit=None, sources={}, summary=summary)
    return out


def items(num_items: int) -> Iterator[pa.RecordBatch]:
    words = np.random.default_rng(0).integers(500, size=(NUM_TEXTS, 5)).tolist()
    texts = pa.array([" ".join(f"word{word}" for word in row) for row in words], pa.large_string())
    for start in range(0, num_items, ROWS_AT_ONCE):
        row = np.arange(start, min(start + ROWS_AT_ONCE, num_items))
        ids = pa.array(row).cast(pa.large_string())
        yield pa.record_batch({"item_id": ids, "text": texts.take(pa.array(row * NUM_TEXTS // num_items))})


def sequences(num_users: int, num_items: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, num_users, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, num_users - start)
        uniform = np.random.default_rng((1, start)).random(count * ITEMS_A_USER)
        lists = pa.LargeListArray.from_arrays(
            pa.array(np.arange(count + 1) * ITEMS_A_USER), pa.array((num_items * uniform**2).astype(np.int32))
        )
        ids = pa.array(np.arange(start, start + count)).cast(pa.large_string())
        yield pa.record_batch({"user_id": ids, "items": lists})


if __name__ == "__main__":
    main()
