"""Metrics equal values computed by hand and by ranx."""

from __future__ import annotations

import math
import random

import pytest
import torch

from pmmrec.evaluation.metrics import mean_metrics, user_metrics


def test_metrics_of_a_few_ranks_equal_those_computed_by_hand() -> None:
    rank_Q = torch.tensor([1, 3, 10, 11, 0])
    metrics = user_metrics(rank_Q, [10, 20])
    assert metrics["hr@10"].tolist() == [1, 1, 1, 0, 0]
    assert metrics["hr@20"].tolist() == [1, 1, 1, 1, 0]
    assert metrics["ndcg@10"].tolist() == pytest.approx([1, 0.5, 1 / math.log2(11), 0, 0], abs=1e-15)
    assert metrics["mrr@20"].tolist() == pytest.approx([1, 1 / 3, 0.1, 1 / 11, 0], abs=1e-15)


def test_a_miss_counts_as_nothing_at_any_cutoff() -> None:
    assert set(mean_metrics(torch.zeros(4, dtype=torch.int64), [1, 10**9]).values()) == {0.0}


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
