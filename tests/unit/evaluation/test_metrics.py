"""Metrics equal values computed by hand and by ranx."""

from __future__ import annotations

import math
import random
import re

import pytest
import torch

from pmmrec.evaluation.metrics import METRIC_PATTERN, Measured, mean_metrics, query_metrics


def test_metrics_of_a_few_ranks_equal_those_computed_by_hand() -> None:
    rank_Q = torch.tensor([1, 3, 10, 11, 0])
    metrics = query_metrics(rank_Q, measured=Measured((10, 20)))
    assert metrics["hr@10"].tolist() == [1, 1, 1, 0, 0]
    assert metrics["hr@20"].tolist() == [1, 1, 1, 1, 0]
    assert metrics["ndcg@10"].tolist() == pytest.approx([1, 0.5, 1 / math.log2(11), 0, 0], abs=1e-15)
    assert metrics["mrr@20"].tolist() == pytest.approx([1, 1 / 3, 0.1, 1 / 11, 0], abs=1e-15)


def test_a_miss_counts_as_nothing_at_any_cutoff() -> None:
    assert set(mean_metrics(torch.zeros(4, dtype=torch.int64), measured=Measured((1, 10**9))).values()) == {0.0}


def test_means_are_over_all_users_with_the_usual_names() -> None:
    means = mean_metrics(torch.tensor([1, 0, 0, 30]))
    assert set(means) == {f"{measure}@{k}" for measure in ("hr", "ndcg", "mrr") for k in (10, 20, 50)}
    assert means["hr@10"] == 0.25
    assert means["hr@50"] == 0.5


def test_metrics_are_those_of_ranx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # to compile takes half a minute, and 40 users need none
    import ranx

    draw = random.Random(3)
    places = [draw.randint(0, 60) for _ in range(40)]  # 0: the target is not in the list
    qrels, run = {}, {}
    for user, place in enumerate(places):
        qrels[f"u{user}"] = {"target": 1}
        others = [f"other{item}" for item in range(60)]
        ordered = [*others[: place - 1], "target", *others[place - 1 :]] if place else others
        run[f"u{user}"] = {item: float(len(ordered) - spot) for spot, item in enumerate(ordered)}
    names = {f"{theirs}@{k}": f"{ours}@{k}" for k in (10, 20, 50) for theirs, ours in
             (("hit_rate", "hr"), ("ndcg", "ndcg"), ("mrr", "mrr"))}  # fmt: skip
    expected = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), list(names))
    actual = mean_metrics(torch.tensor(places))
    for theirs, ours in names.items():
        assert actual[ours] == pytest.approx(expected[theirs], abs=1e-12)  # measured below 1e-16


def metrics_by_loops(ranks: list[list[int]], cutoff: int) -> dict[str, list[float]]:
    """The formulas as printed, query by query, target by target."""
    found: dict[str, list[float]] = {name: [] for name in ("hr", "recall", "ndcg", "mrr", "map")}
    for of_query in ranks:
        hits = sorted(rank for rank in of_query if 1 <= rank <= cutoff)
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(of_query), cutoff) + 1))
        found["hr"].append(1.0 if hits else 0.0)
        found["recall"].append(len(hits) / len(of_query))
        found["ndcg"].append(sum(1 / math.log2(rank + 1) for rank in hits) / ideal)
        found["mrr"].append(1 / hits[0] if hits else 0.0)
        found["map"].append(sum(place / rank for place, rank in enumerate(hits, start=1)) / len(of_query))
    return found


def several_targets(num_queries: int) -> list[list[int]]:
    """Ranks of one to nine targets a query, all different but for misses (0)."""
    draw = random.Random(5)
    ranks = [draw.sample(range(1, 40), draw.randint(1, 9)) for _ in range(num_queries)]
    return [[0 if draw.random() < 0.2 else rank for rank in of_query] for of_query in ranks]


def flat(ranks: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    query = [place for place, of_query in enumerate(ranks) for _ in of_query]
    return torch.tensor([rank for of_query in ranks for rank in of_query]), torch.tensor(query)


@pytest.mark.parametrize("cutoff", [1, 3, 10, 1000])
def test_metrics_of_several_targets_are_those_of_loops(cutoff: int) -> None:
    ranks = several_targets(50)
    actual = query_metrics(*flat(ranks), Measured((cutoff,)))
    expected = metrics_by_loops(ranks, cutoff)
    assert set(actual) == {f"{measure}@{cutoff}" for measure in expected}
    for measure, values in expected.items():
        assert actual[f"{measure}@{cutoff}"].tolist() == pytest.approx(values, abs=1e-15)  # measured 3e-16


def test_metrics_of_several_targets_are_those_of_ranx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    import ranx

    ranks = several_targets(30)
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for query, of_query in enumerate(ranks):
        qrels[f"q{query:02}"] = {f"target{place}": 1 for place in range(len(of_query))}
        at = {rank: f"target{place}" for place, rank in enumerate(of_query) if rank}
        run[f"q{query:02}"] = {at.get(rank, f"other{rank}"): 1.0 / rank for rank in range(1, 60)}
    names = {"hit_rate@10": "hr@10", "recall@10": "recall@10", "ndcg@10": "ndcg@10", "mrr@10": "mrr@10",
             "map@10": "map@10", "mrr": "mrr"}  # fmt: skip
    expected = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), list(names))
    actual = mean_metrics(*flat(ranks), Measured((10,), ("mrr",)))
    for theirs, ours in names.items():
        assert actual[ours] == pytest.approx(expected[theirs], abs=1e-12), theirs


def test_one_target_a_query_has_the_same_values_to_the_bit_with_and_without_its_query() -> None:
    rank_T = torch.tensor([1, 7, 0, 19, 3])
    alone, told = query_metrics(rank_T), query_metrics(rank_T, torch.tensor([0, 1, 2, 5, 9]))
    assert list(alone) == list(told)
    assert all(torch.equal(alone[name], told[name]) for name in alone)
    more = query_metrics(rank_T, measured=Measured((10,), ("recall@10", "map@10")))
    assert torch.equal(more["recall@10"], alone["hr@10"])
    assert torch.equal(more["map@10"], alone["mrr@10"])


def test_seeds_are_measured_one_by_one() -> None:
    rank_MT, query_T = torch.tensor([[1, 4, 2, 0], [0, 3, 9, 1]]), torch.tensor([0, 0, 1, 1])
    together = query_metrics(rank_MT, query_T)
    for seed, rank_T in enumerate(rank_MT):
        alone = query_metrics(rank_T, query_T)
        assert all(torch.equal(together[name][seed], alone[name]) for name in alone)


@pytest.mark.parametrize("name", ["hr@10", "ndcg@7", "recall@100", "map@3", "mrr@1", "mrr", "auc"])
def test_a_recipe_may_name_a_measure_at_any_cutoff(name: str) -> None:
    assert re.match(METRIC_PATTERN, name)
    assert name in query_metrics(torch.tensor([1]), None, Measured((), (name,)), torch.tensor([3]))


@pytest.mark.parametrize("name", ["hr", "ndcg@0", "auc@10", "hr@-1", "mrr@", "hr@10 "])
def test_other_names_are_no_metrics(name: str) -> None:
    assert not re.match(METRIC_PATTERN, name)


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    draw, ranks, others, expected = random.Random(9), [], [], []
    for _ in range(40):
        num_targets, num_others = draw.randint(1, 5), draw.randint(1, 8)
        places = draw.sample(range(1, num_targets + num_others + 1), num_targets)  # of the targets among all
        is_miss = [draw.random() < 0.2 for _ in places]
        kept = sorted(
            set(range(1, num_targets + num_others + 1)) - {p for p, m in zip(places, is_miss, strict=True) if m}
        )
        found = [0 if miss else kept.index(place) + 1 for place, miss in zip(places, is_miss, strict=True)]
        other_ranks = [rank for rank in range(1, len(kept) + 1) if rank not in found]
        wins = sum(1 for rank in found for other in other_ranks if rank and rank < other)
        expected.append(wins / (num_targets * len(other_ranks)))
        ranks.append(found)
        others += [len(kept)] * num_targets
    actual = query_metrics(*flat(ranks), Measured((), ("auc",)), torch.tensor(others))["auc"]
    assert actual.tolist() == pytest.approx(expected, abs=1e-15)  # measured 2e-16
