"""Metrics of several seeds by stratum equal those computed from single ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pmmrec.data.domain import Domain
from pmmrec.data.splits import Split, split_of
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.data.splits.ratio import RatioConfig
from pmmrec.evaluation.ranking import Ranks, write_ranks
from pmmrec.evaluation.significance import sign_flip_p, t_test_p, wilcoxon_p
from tests.real.evidence.cells import digest_of
from tests.real.evidence.measure import Targets


@pytest.fixture(scope="module")
def split(world: Path) -> Split:
    return leave_one_out(Domain.open(world / "boutique"))


@pytest.fixture(scope="module")
def rank_MQ(split: Split) -> torch.Tensor:
    return torch.randint(0, 20, (3, split.holdout("test").num_queries), generator=torch.Generator().manual_seed(1))


def ndcg_by_loops(split: Split, ranks: list[int], is_counted: Callable[[int], bool]) -> float:
    targets, counts = split.holdout("test").target, split.train_counts
    inside = [rank for rank, target in zip(ranks, targets, strict=True) if is_counted(int(counts[target]))]
    return sum(1 / math.log2(rank + 1) if 1 <= rank <= 10 else 0.0 for rank in inside) / len(inside)


def test_means_by_seed_and_stratum_equal_those_of_a_loop(split: Split, rank_MQ: torch.Tensor) -> None:
    figures = Targets(split).figures(rank_MQ)
    rules: dict[str, Callable[[int], bool]] = {
        "all": lambda _: True,
        "regular": lambda count: count >= 10,
        "cold": lambda count: count < 10,
    }
    for stratum, rule in rules.items():
        expected = [ndcg_by_loops(split, ranks, rule) for ranks in rank_MQ.tolist()]
        assert figures[stratum].by_seed["ndcg@10"] == pytest.approx(expected, abs=1e-12)
        interval = figures[stratum].intervals["ndcg@10"]
        assert interval.mean == pytest.approx(sum(expected) / 3, abs=1e-12)
        assert interval.low < interval.mean < interval.high


def test_a_digest_follows_from_the_metrics_and_changes_with_a_rank(split: Split, rank_MQ: torch.Tensor) -> None:
    targets, other_MQ = Targets(split), rank_MQ.clone()
    other_MQ[1, 3] = 11 - other_MQ[1, 3].clamp(1, 10)
    assert targets.digest(rank_MQ) == digest_of(targets.figures(rank_MQ))
    assert targets.digest(other_MQ) != targets.digest(rank_MQ)


def test_a_difference_is_paired_and_a_system_without_training_is_compared_with_every_seed(
    split: Split, rank_MQ: torch.Tensor
) -> None:
    targets = Targets(split)
    baseline_1Q = rank_MQ[:1].flip(1)
    found = targets.difference(rank_MQ, baseline_1Q)["all"]
    a, b = targets.figures(rank_MQ)["all"], targets.figures(baseline_1Q)["all"]
    expected = [value - b.by_seed["hr@10"][0] for value in a.by_seed["hr@10"]]
    assert found.by_seed["hr@10"] == pytest.approx(expected, abs=1e-12)
    other_way = targets.difference(baseline_1Q, rank_MQ)["all"]
    assert other_way.intervals["hr@10"].mean == pytest.approx(-found.intervals["hr@10"].mean, abs=1e-12)
    itself = targets.difference(baseline_1Q, baseline_1Q)["all"].intervals["hr@10"]
    assert (itself.low, itself.mean, itself.high) == (0, 0, 0)


def test_a_stratum_without_users_has_no_metrics(split: Split, rank_MQ: torch.Tensor) -> None:
    counts = split.train_counts[split.holdout("test").target]
    assert (counts > 0).all()  # the demo world: every target was seen in train
    for figures in (Targets(split).figures(rank_MQ)["new"], Targets(split).difference(rank_MQ, rank_MQ)["new"]):
        assert (figures.num_users, figures.intervals, figures.by_seed) == (0, {}, {})


def test_ranks_of_several_files_keep_the_order_of_the_files(
    split: Split, rank_MQ: torch.Tensor, tmp_path: Path
) -> None:
    holdout, domain, files = split.holdout("test"), split.domain, []
    for seed, rank_Q in enumerate(rank_MQ):
        none_Q = torch.zeros_like(rank_Q)
        queries = torch.arange(len(rank_Q)), torch.from_numpy(holdout.user_index), torch.from_numpy(holdout.target)
        files.append(tmp_path / f"{seed}.parquet")
        write_ranks(files[-1], Ranks(*queries, rank_Q, none_Q, none_Q.bool(), none_Q), domain.user_ids, domain.item_ids)
    assert torch.equal(Targets(split).ranks(files), rank_MQ)


def test_of_users_with_several_targets_recall_is_the_mean_of_their_shares(world: Path, tmp_path: Path) -> None:
    split = split_of(RatioConfig(shares=(6, 1, 3)), Domain.open(world / "boutique"))
    holdout, domain, targets = split.holdout("test"), split.domain, Targets(split)
    sizes = (holdout.target_offsets[1:] - holdout.target_offsets[:-1]).tolist()
    assert max(sizes) > 1
    rank_MT = torch.stack(
        [
            torch.cat([torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:size] for size in sizes])
            for seed in (1, 2)
        ]
    )
    query_T = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    user_T, none_T = torch.from_numpy(holdout.user_index)[query_T], torch.zeros_like(query_T)
    files = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    for file, rank_T in zip(files, rank_MT, strict=True):
        turned = torch.arange(len(query_T) - 1, -1, -1)
        told = (query_T, user_T, torch.from_numpy(holdout.target), rank_T, none_T, none_T.bool(), none_T)
        ranks = Ranks(*(column[turned] for column in told))
        write_ranks(file, ranks, domain.user_ids, domain.item_ids)
    assert torch.equal(targets.ranks(files), rank_MT)

    shares = [
        [sum(1 <= rank <= 20 for rank in ranks.tolist()) / len(ranks) for ranks in rank_T.split(sizes)]
        for rank_T in rank_MT
    ]
    figures = targets.figures(rank_MT)
    assert figures.keys() == {"all"}
    assert figures["all"].num_users == len(sizes)
    assert figures["all"].by_seed["recall@20"] == pytest.approx([sum(one) / len(one) for one in shares], abs=1e-12)

    apart = [(a + b) / 2 - b for a, b in zip(*shares, strict=True)]
    found = targets.p_values(["recall@20"], rank_MT, rank_MT[1:])["recall@20"]
    tests = {"sign flip": sign_flip_p, "t-test": t_test_p, "Wilcoxon": wilcoxon_p}
    assert found == pytest.approx(
        {name: p_of(torch.tensor(apart, dtype=torch.float64)) for name, p_of in tests.items()}, abs=1e-9
    )
