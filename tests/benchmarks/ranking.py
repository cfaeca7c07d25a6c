"""Measure what ranking held-out items costs against the least work: a matrix product and torch.topk.

Ranks the test targets of a random platform by a model with popularity in its score, and by every baseline. The states
of users are read from a table, so that only ranking is measured. All ways take turns on one thread; a figure is the
median, over rounds, of the ratio of CPU times.

    python tests/benchmarks/ranking.py [--items 50000] [--users 2048] [--rounds 5] [--home runs/benchmarks]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from score import made_platform

from pmmrec.data.domain import Domain
from pmmrec.data.splits import Split
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.evaluation.baselines import BASELINES, num_scored_at_once
from pmmrec.evaluation.catalogue import users_at_once
from pmmrec.evaluation.model_scores import ModelScores, model_scorer
from pmmrec.evaluation.ranking import rank_targets
from pmmrec.models.build import ModelConfig, build

K = 10
WIDTHS = (64, 128)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--users", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--home", type=Path, default=Path("runs/benchmarks"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    home = asked.home.resolve() / "score"
    home.mkdir(parents=True, exist_ok=True)
    split = leave_one_out(Domain.open(made_platform(home, asked.items, asked.users)))
    print(f"{asked.items:,} items, {asked.users:,} users, 1 thread; CPU time against a bare product and top {K}")
    for width in WIDTHS:
        ways = {"bare": bare(split, width), **rankings(split, width)}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(asked.rounds + 1):
            for name, way in ways.items():
                seconds[name].append(cpu_seconds(way))
        least_s = seconds.pop("bare")[1:]  # the first round warms up
        print(f"width {width}: bare product and top {K} {1000 * median(least_s):,.0f} ms")
        for name, all_s in seconds.items():
            ratio = median(one / least for one, least in zip(all_s[1:], least_s, strict=True))
            print(f"  {name:<22} {ratio:6.2f}", flush=True)


def cpu_seconds(way: Callable[[], object]) -> float:
    started_s = time.thread_time()
    way()
    return time.thread_time() - started_s


def bare(split: Split, width: int) -> Callable[[], object]:
    """The product of users and items in the chunks of a ranking, and the best of each user."""
    generator = torch.Generator().manual_seed(0)
    num_users, num_items = split.holdout("test").num_queries, split.domain.num_items
    state_QD = torch.randn(num_users, width, generator=generator)
    item_ND = torch.randn(num_items, width, generator=generator)
    return lambda: [(some @ item_ND.T).topk(K, dim=1) for some in state_QD.split(users_at_once(num_items))]


def rankings(split: Split, width: int) -> dict[str, Callable[[], object]]:
    """Each way to rank the test targets, by name."""
    holdout, num_items = split.holdout("test"), split.domain.num_items
    rank = partial(rank_targets, holdout, num_items)
    scores, chunk = model_scores(split, width), users_at_once(num_items)
    ways: dict[str, Callable[[], object]] = {
        "model": partial(rank, scores, chunk=chunk),
        "model, whole matrix": partial(rank, scores.__call__, chunk=chunk),
    }
    for name, baseline in BASELINES.items():
        ways[name] = partial(rank, baseline(split, holdout), chunk=num_scored_at_once(num_items))
    return ways


def model_scores(split: Split, width: int) -> ModelScores:
    """Scores of random vectors of users and items."""
    torch.manual_seed(0)
    parts = {"item_encoder": {"type": "ids"}, "user_encoder": {"type": "user_table"}}
    config = ModelConfig.model_validate({"width": width, **parts, "scorer": {"type": "dot", "popularity": 1}})
    recommender = build(config, {}, [split.domain.catalogue], [split.graph])
    vectors_ND = torch.randn(split.domain.num_items, width)
    return model_scorer(recommender, vectors_ND, split.holdout("test"), split.train_counts, "cpu")


if __name__ == "__main__":
    main()
