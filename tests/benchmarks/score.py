"""Measure time and memory of `pmmrec score` for many users over a large catalogue.

Three figures. Encoding: items per second, once. Lists: users per second and peak memory of whole commands, for few and
for many users, by the clock and by CPU time, which other work on the machine changes little. Ratio: the time of lists
(user states, scores, the best ten, Parquet) divided by that of the least work, a matrix product of the same shapes and
torch.topk; the two alternate chunk by chunk in one process, so the ratio holds on a busy machine too.

    python tests/benchmarks/score.py [--items 100000] [--users 10000 100000 1000000] [--sample 20000]
        [--home runs/benchmarks]

The checkpoint is pretrain/tiny after one epoch (width 64, two layers over 20 inputs). The platform is random: texts of
seven words, histories of 5 to 40 items, popularity 1 / (rank + 10). All output lies below --home.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import pmmrec
from pmmrec.data.domain import Domain
from pmmrec.data.histories import Histories
from pmmrec.data.info import Filters, ImportSummary
from pmmrec.data.write import DomainFolder, new_folder
from pmmrec.evaluation.recommend import ListMaker, TopItems
from pmmrec.serving.lists import write_lists

K = 10
USERS_AT_ONCE = 100_000
WORDS = 3000
CHUNKS = (64, 256, 1024)  # users of one bare product; the fastest counts
CALL_AND_MEASURE = """
import resource, subprocess, sys, time
started_s = time.monotonic()
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.monotonic() - started_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sample", type=int, default=20_000)
    parser.add_argument("--home", type=Path, default=Path("runs/benchmarks"))
    asked = parser.parse_args()
    home = asked.home.resolve() / "score"
    home.mkdir(parents=True, exist_ok=True)
    checkpoint = made_checkpoint(home)
    sample = made_platform(home, asked.items, asked.sample)
    print(f"{torch.get_num_threads()} threads, {asked.items:,} items, width 64, top {K}")
    encode(home, checkpoint, sample, asked.items)
    ratio(home, checkpoint, sample)
    for num_users in asked.users:
        whole(home, checkpoint, made_platform(home, asked.items, num_users), num_users)


def made_checkpoint(home: Path) -> Path:
    """A small one that was really trained, made at the first time."""
    checkpoint = home / "runs" / "tiny" / "checkpoint"
    if not checkpoint.exists():
        for name in ("demo", "runs", "hub"):
            shutil.rmtree(home / name, ignore_errors=True)
        command("data", "demo", "--out", "demo", at=home)
        command("pretrain", "pretrain/tiny", "train.epochs=1", "cache=cache", at=home)
    return checkpoint


def made_platform(home: Path, num_items: int, num_users: int) -> Path:
    """A domain drawn at random; platforms of any number of users have the same items."""
    out = home / f"platform-{num_items}-{num_users}"
    if out.exists():
        return out
    items = np.random.default_rng(0)
    with new_folder(out) as (folder, _):
        domain = DomainFolder(folder)
        texts = [" ".join(f"word{word}" for word in row) for row in items.integers(WORDS, size=(num_items, 7)).tolist()]
        ids = [f"item-{row}" for row in range(num_items)]
        domain.write_items(iter([pa.record_batch({"item_id": ids, "text": texts})]), [])
        domain.write_sequences(sequences(num_items, num_users), has_times=False)
        summary = ImportSummary(num_items_read=0, num_interactions_read=0, kept={}, rejected={}, num_pictures_ignored=0)
        domain.seal("platform", filters=Filters(), image_side=None, time_unit=None, sources={}, summary=summary)
    return out


def sequences(num_items: int, num_users: int) -> Iterator[pa.RecordBatch]:
    weight = 1 / (np.arange(num_items) + 10)
    ends = np.cumsum(weight / weight.sum())
    for start in range(0, num_users, USERS_AT_ONCE):
        generator = np.random.default_rng(start + 1)
        count = min(USERS_AT_ONCE, num_users - start)
        lengths = generator.integers(5, 41, count)
        items = np.searchsorted(ends, generator.random(int(lengths.sum()))).clip(max=num_items - 1).astype(np.int32)
        lists = pa.LargeListArray.from_arrays(pa.array(np.cumsum([0, *lengths])), pa.array(items))
        users = pa.array([f"user-{user}" for user in range(start, start + count)], pa.large_string())
        yield pa.record_batch({"user_id": users, "items": lists})


def command(*words: str, at: Path) -> tuple[float, float, float]:
    """Run pmmrec; wall and CPU seconds, and the most memory it held, in MB.

    Linux counts what a parent held when it started a process as memory of that process, so a small one starts it.
    """
    called = [sys.executable, "-c", CALL_AND_MEASURE, str(Path(sys.executable).with_name("pmmrec")), *words]
    done = subprocess.run(called, cwd=at, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pmmrec {' '.join(words)}: ended with {done.returncode}")
    wall_s, cpu_s, kilobytes = map(float, done.stdout.split())
    return wall_s, cpu_s, kilobytes / 1000


def score(home: Path, checkpoint: Path, platform: Path, *words: str) -> tuple[float, float, float]:
    out = home / "lists.parquet"
    out.unlink(missing_ok=True)
    asked = (str(checkpoint), str(platform), "--out", str(out), "--cache", str(home / "vectors"), "--top-k", str(K))
    return command("score", *asked, *words, at=home)


def encode(home: Path, checkpoint: Path, platform: Path, num_items: int) -> None:
    """The first command encodes, the second finds everything there: the difference is what encoding costs."""
    shutil.rmtree(home / "vectors", ignore_errors=True)
    (home / "one.txt").write_text("user-0\n")
    first, again = (score(home, checkpoint, platform, "--users", str(home / "one.txt")) for _ in range(2))
    seconds = first[0] - again[0]
    print(f"encoding: {num_items / seconds:,.0f} items/s ({seconds:,.0f} s, kept afterwards); start {again[0]:,.0f} s")


def whole(home: Path, checkpoint: Path, platform: Path, num_users: int) -> None:
    wall_s, cpu_s, megabytes = score(home, checkpoint, platform)
    print(
        f"lists of {num_users:>9,} users: {num_users / wall_s:,.0f} users/s, start included ({wall_s:,.0f} s; CPU "
        f"{cpu_s:,.0f} s, {num_users / cpu_s:,.0f} users a CPU second), peak memory {megabytes:,.0f} MB",
        flush=True,
    )


@dataclass
class Floor:
    """The bare product and torch.topk, for chunks of one size."""

    query_BD: torch.Tensor
    key_ND: torch.Tensor
    cpu_s: float = 0.0
    wall_s: float = 0.0
    num_users: int = 0

    def step(self) -> None:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        (self.query_BD @ self.key_ND.T).topk(K, dim=1)
        self.cpu_s += time.process_time() - cpu_s
        self.wall_s += time.perf_counter() - wall_s
        self.num_users += len(self.query_BD)


def ratio(home: Path, checkpoint: Path, platform: Path) -> None:
    """Lists against the bare product and topk, taking turns."""
    system = pmmrec.load(checkpoint, cache=home / "vectors", device="cpu")
    domain = Domain.open(platform, streamed=True)
    encoded, histories = system.encode_items(domain), Histories(domain)
    maker = ListMaker(
        system._model_for(domain), encoded.vectors_ND, K, contents=encoded.contents, threads=torch.get_num_threads()
    )
    generator = torch.Generator().manual_seed(0)
    floors = [Floor(torch.randn(size, 64, generator=generator), encoded.vectors_ND) for size in CHUNKS]
    for floor in floors:
        floor.step()
        floor.cpu_s = floor.wall_s = floor.num_users = 0
    stolen = {"cpu_s": 0.0, "wall_s": 0.0}

    def lists() -> Iterator[tuple[Any, TopItems]]:
        num_users = 0
        for history in histories.chunks(8192, slice(0, domain.num_users)):
            first = 0
            for top in maker.lists(history.offset_B, history.item_H):
                yield history.user_ids.slice(first, len(top.user_index_B)), top
                first += len(top.user_index_B)
                num_users += len(top.user_index_B)
                cpu_s, wall_s = time.process_time(), time.perf_counter()
                for floor in floors:
                    if floor.num_users + len(floor.query_BD) <= num_users:
                        floor.step()
                stolen["cpu_s"] += time.process_time() - cpu_s
                stolen["wall_s"] += time.perf_counter() - wall_s

    out = home / "ratio.parquet"
    out.unlink(missing_ok=True)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    write_lists(out, lists(), domain.item_ids.combine_chunks())
    cpu_s, wall_s = time.process_time() - cpu_s - stolen["cpu_s"], time.perf_counter() - wall_s - stolen["wall_s"]
    best = min(floors, key=lambda floor: floor.cpu_s / floor.num_users)
    ours, bare = cpu_s / domain.num_users, best.cpu_s / best.num_users
    print(
        f"CPU time of a user: {1e6 * ours:,.0f} us, bare product and topk {1e6 * bare:,.0f} us (chunks of "
        f"{len(best.query_BD)} users): ratio {ours / bare:.2f}; by the clock "
        f"{wall_s / domain.num_users / (best.wall_s / best.num_users):.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
