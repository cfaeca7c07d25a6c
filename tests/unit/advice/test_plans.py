"""The recommended plan is the simplest that none is shown to beat."""

from __future__ import annotations

import numpy as np
import pytest

from pmmrec.advice.plans import Advice, MeasuredPlan

USERS = 200


def plan(name: str, hits: list[float]) -> MeasuredPlan:
    values = np.resize(np.array(hits, dtype=np.float64), USERS)
    return MeasuredPlan(name, {"ndcg@10": values / 2, "hr@10": values}, 1.25, f"pmmrec {name}")


def advice(*plans: MeasuredPlan) -> Advice:
    return Advice("small", "shop", USERS, plans)


def test_the_best_is_recommended_where_it_beats_all_simpler_plans() -> None:
    found = advice(plan("popularity", [0, 0, 0, 1]), plan("frozen", [1, 0, 1, 1]), plan("full", [1, 0, 1, 1]))
    assert found.best.name == found.recommended.name == "frozen"
    assert found.lines() == ["recommended: frozen, the best of 3 by NDCG@10", "pmmrec frozen"]


def test_a_simpler_plan_is_recommended_where_the_best_is_not_shown_to_beat_it() -> None:
    almost = plan("zero-shot", [1, 0, 1, 0])
    best = plan("full", [1, 0, 1, 0])
    best.values["ndcg@10"][0] += 0.1
    found = advice(plan("popularity", [0, 0, 0, 1]), almost, best)
    assert found.best is best
    assert found.recommended is almost
    told, command = found.lines()
    assert told.startswith(
        "recommended: zero-shot, the simplest that none is shown to beat by NDCG@10; the best is full"
    )
    assert command == "pmmrec zero-shot"


def test_a_plan_that_another_than_the_best_is_shown_to_beat_is_not_recommended() -> None:
    simple, steady, best = plan("popularity", [0, 1]), plan("zero-shot", [0, 1]), plan("full", [1, 0])
    steady.values["ndcg@10"] += 0.001  # for every user, so that the interval of the difference lies above zero
    best.values["ndcg@10"] += 0.002
    found = advice(simple, steady, best)
    assert found.best is best
    assert best.over(simple).low < 0 < steady.over(simple).low
    assert found.recommended is steady


def test_the_record_gives_differences_to_the_recommended_plan() -> None:
    record = advice(plan("popularity", [0, 1]), plan("full", [1, 1])).record()
    assert (record["best"], record["recommended"], record["command"]) == ("full", "full", "pmmrec full")
    differences = {one["plan"]: one["over_recommended"]["mean"] for one in record["plans"]}
    assert differences == {"popularity": pytest.approx(-0.25), "full": 0.0}
    table = advice(plan("popularity", [0, 1]), plan("full", [1, 1])).table()
    assert [row[0] for row in table.rows] == ["popularity", "full"]
    assert table.columns[3] == "over full"
