"""The page shows each result in its place and is deterministic."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pmmrec.errors import DataError
from pmmrec.evaluation.scenarios import STRATA
from pmmrec.evaluation.significance import Interval
from tests.real.evidence.cells import (
    CellResult,
    Cost,
    DifferenceResult,
    Figures,
    Hardware,
    Point,
    Results,
    Training,
    digest_of,
)
from tests.real.evidence.page import Page, verdict
from tests.real.evidence.plan import METRICS, EvidencePlan
from tests.real.evidence.read_plan import read_plan

BASELINES, IDS, FULL = "t/shop/baselines", "t/shop/ids", "t/shop/full"
TREE: dict[str, Any] = {
    "title": "Results",
    "include": "reading.md",
    "tunings": {"trials": "20 trials.", "shipped": "as shipped"},
    "domains": {"shop": {"folder": "shop"}, "films": {"folder": "films"}},
    "pretrainings": {"films": {"recipe": "pretrain/tiny", "sources": ["films"]}},
    "cells": {
        BASELINES: {"kind": "baselines"},
        IDS: {"kind": "finetune", "recipe": "zoo/ids/small/sasrec_in_batch", "from": "none", "tuning": "trials"},
        FULL: {"kind": "finetune", "recipe": "finetune/full", "from": "films", "tuning": "shipped"},
        "u/shop/base": {"same_as": IDS},
    },
    "differences": [{"a": FULL, "b": "u/shop/base"}, {"a": FULL, "b": f"{BASELINES}@item-knn"}],
    "tables": {
        "first": {
            "title": "On shop",
            "text": "Some words.",
            "include": "more.md",
            "rows": [{"cell": BASELINES}, {"cell": IDS, "label": "ids"}, {"cell": FULL, "label": "full"}],
        },
        "new": {
            "title": "New",
            "stratum": "new",
            "columns": ["users", "hr@10"],
            "curves": False,
            "rows": [{"cell": f"{BASELINES}@item-knn", "label": "kNN"}, {"cell": "u/shop/base", "label": "base"}],
        },
    },
}
MACHINE = Hardware(cpu="Some CPU", cores=4, threads=1, device="cpu", torch="2.15.0")


def figures(mean: float, num_users: int = 500) -> Figures:
    interval = Interval(mean, mean - 0.01, mean + 0.01)
    return Figures(
        num_users=num_users, intervals=dict.fromkeys(METRICS, interval), by_seed=dict.fromkeys(METRICS, (mean,))
    )


def strata(mean: float) -> dict[str, Figures]:
    return {name: figures(mean / 2, 12) if name == "new" else figures(mean) for name in STRATA}


def training(seed: int, best_epoch: int, machine: Hardware = MACHINE) -> Training:
    points = tuple(Point(epoch=epoch, ndcg=0.01 * epoch, hr=0.02 * epoch) for epoch in range(best_epoch + 2))
    times = {"cpu_s": 60.0 * best_epoch, "wall_s": 90.0, "training_s": 50.0}
    return Training(
        seed=seed, best_epoch=best_epoch, num_epochs=best_epoch + 1, hardware=machine, validation=points, **times
    )


def cell(cell_id: str, mean: float, **more: Any) -> CellResult:
    told = {"cell": cell_id, "kind": "finetune", "hash": cell_id, "num_items": 1200, "identity": {}, "tuning": "then"}
    trained = {"seeds": (1, 2), "trainings": (training(1, 3), training(2, 4)), "systems": {"model": strata(mean)}}
    return CellResult.model_validate({**told, **trained, **more})


@pytest.fixture
def plan(tmp_path: Path) -> EvidencePlan:
    (tmp_path / "reading.md").write_text("How *to* read it.\n")
    (tmp_path / "more.md").write_text("\n- as it is: `a|b`\n")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(TREE, sort_keys=False))
    return read_plan(tmp_path / "plan.yaml")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Results of the baselines, the id-only row and others; `full` was not measured."""
    results = Results(tmp_path / "results")
    names = ("random", "popularity", "last-item-markov", "item-knn")
    baselines = {name: strata(0.1 + 0.01 * place) for place, name in enumerate(names)}
    results.write(cell(BASELINES, 0, kind="baselines", systems=baselines, trainings=(), seeds=()))
    results.write(cell(IDS, 0.25))
    return results


def page(plan: EvidencePlan, tmp_path: Path, results: Results, *stale: str) -> str:
    Page(plan, tmp_path, results, stale).write(tmp_path / "RESULTS.md")
    return (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


def test_the_page_shows_results_and_a_dash_for_missing_ones(
    plan: EvidencePlan, tmp_path: Path, results: Results
) -> None:
    assert page(plan, tmp_path, results).splitlines() == [
        "# Results",
        "",
        "How *to* read it.",
        "",
        "## On shop",
        "",
        "Some words.",
        "",
        "- as it is: `a|b`",
        "",
        "`shop`: test targets of 500 users, among 1,200 items, in %.",
        "",
        "| system | HR@10 | NDCG@10 | epochs to best | CPU min |",
        "| :-- | --: | --: | --: | --: |",
        "| random | 10.0 [9.0, 11.0] | 10.0 [9.0, 11.0] | - | - |",
        "| popularity | 11.0 [10.0, 12.0] | 11.0 [10.0, 12.0] | - | - |",
        "| last-item Markov | 12.0 [11.0, 13.0] | 12.0 [11.0, 13.0] | - | - |",
        "| item-kNN | 13.0 [12.0, 14.0] | 13.0 [12.0, 14.0] | - | - |",
        "| ids ¹ | 25.0 [24.0, 26.0] | 25.0 [24.0, 26.0] | 3.5 | 3.5 |",
        "| full | - | - | - | - |",
        "",
        "**differences in points, paired**",
        "",
        "| difference | HR@10 | NDCG@10 |",
        "| :-- | --: | --: |",
        "| full - ids | - | - |",
        "| full - item-kNN | - | - |",
        "",
        "![validation NDCG@10 by epoch, first](results/curves/first.svg)",
        "",
        "- ¹ Seeds 1, 2. Tuning: 20 trials. On Some CPU, 1 of 4 cores, torch 2.15.0.",
        "",
        "## New",
        "",
        "`shop`: test targets that never occur in training, of 12 users, among 1,200 items, in %. "
        "These are too few to tell systems apart.",
        "",
        "| system | users | HR@10 |",
        "| :-- | --: | --: |",
        "| kNN | 12 | 6.5 [5.5, 7.5] |",
        "| base ¹ | 12 | 12.5 [11.5, 13.5] |",
        "",
        "- ¹ Seeds 1, 2. Tuning: 20 trials. On Some CPU, 1 of 4 cores, torch 2.15.0.",
    ]


def test_the_same_results_give_the_same_bytes(plan: EvidencePlan, tmp_path: Path, results: Results) -> None:
    first, drawn = page(plan, tmp_path, results), tmp_path / "results" / "curves" / "first.svg"
    picture = drawn.read_bytes()
    drawn.unlink()
    assert page(plan, tmp_path, results) == first
    assert drawn.read_bytes() == picture


def test_the_note_of_a_row_names_its_pretraining_and_another_machine(
    plan: EvidencePlan, tmp_path: Path, results: Results
) -> None:
    gpu = MACHINE.model_copy(update={"device": "Some GPU"})
    trainings = (training(1, 3), training(2, 4, gpu))
    results.write(cell(FULL, 0.3, trainings=trainings, pretraining=training(7, 5)))
    assert (
        "- ² Seeds 1, 2. Pretrained with seed 7, best after 5 of 6 epochs, CPU 5.0 min. Tuning: as shipped. "
        "On Some CPU, 1 of 4 cores, torch 2.15.0; Some GPU (Some CPU, 1 of 4 cores), torch 2.15.0."
    ) in page(plan, tmp_path, results)


def difference(results: Results, a: str, b: str, **more: Any) -> DifferenceResult:
    """A difference between existing cells."""
    cells = [results.cell(reference.partition("@")[0]) for reference in (a, b)]
    figures = [
        digest_of(cell.systems[reference.partition("@")[2] or "model"])
        for cell, reference in zip(cells, (a, b), strict=True)
    ]
    told = {"a": a, "b": b, "hashes": [cell.hash for cell in cells], "figures": figures, "seeds": (1, 2)}
    return DifferenceResult.model_validate({**told, "strata": strata(0.05), **more})


def test_a_stale_row_is_marked_and_so_are_its_differences(plan: EvidencePlan, tmp_path: Path, results: Results) -> None:
    results.write(cell(FULL, 0.3))
    results.write(difference(results, FULL, IDS))
    results.write(difference(results, FULL, f"{BASELINES}@item-knn", hashes=(FULL, "of another measurement")))
    fresh = page(plan, tmp_path, results)
    assert "| full - ids | 5.0 [4.0, 6.0] | 5.0 [4.0, 6.0] |" in fresh
    assert "| full - item-kNN (stale) | 5.0 [4.0, 6.0] |" in fresh
    stale = page(plan, tmp_path, results, IDS)
    assert "| ids ¹ (stale) | 25.0" in stale
    assert "| full - ids (stale) | 5.0" in stale
    assert "| full ² | 30.0" in stale


def test_a_difference_is_stale_when_a_repeated_side_has_other_metrics(
    plan: EvidencePlan, tmp_path: Path, results: Results
) -> None:
    results.write(cell(FULL, 0.3))
    results.write(difference(results, FULL, IDS))
    results.write(difference(results, FULL, f"{BASELINES}@item-knn"))
    assert "(stale)" not in page(plan, tmp_path, results)
    results.write(cell(IDS, 0.26))
    again = page(plan, tmp_path, results)
    assert "| full - ids (stale) | 5.0" in again
    assert "| full - item-kNN | 5.0" in again
    results.write(cell(IDS, 0.25 + 1e-9))  # the same as it was, to the decimals that are kept
    assert "(stale)" not in page(plan, tmp_path, results)


def test_a_difference_without_digests_is_stale(plan: EvidencePlan, tmp_path: Path, results: Results) -> None:
    results.write(cell(FULL, 0.3))
    path = results.write(difference(results, FULL, IDS))
    tree = json.loads(path.read_text())
    del tree["figures"]  # as files once were
    path.write_text(json.dumps(tree))
    assert "| full - ids (stale) | 5.0" in page(plan, tmp_path, results)


def costing(place: int, **more: Any) -> Training:
    """A training of seed `place` with its cost."""
    told = {"trainable_parameters": 250_000, "total_parameters": 20_000_000, "peak_memory_bytes": place * 600_000_000}
    cost = Cost.model_validate({**told, "seconds_per_epoch": 10.26 + place, **more})
    return training(place, 3).model_copy(update={"cost": cost})


def cost_line(plan: EvidencePlan, tmp_path: Path, results: Results, *trainings: Training) -> str:
    """The id-only row of a table with costs, and the head of the table."""
    results.write(cell(IDS, 0.25, trainings=trainings))
    table = plan.tables["first"].model_copy(update={"columns": ("hr@10", "trainable", "share", "memory", "epoch")})
    lines = page(plan.model_copy(update={"tables": {"first": table}}), tmp_path, results).splitlines()
    assert "| system | HR@10 | trained parameters | share of all, % | peak memory, MB | s per epoch |" in lines
    assert "| item-kNN | 13.0 [12.0, 14.0] | - | - | - | - |" in lines
    return next(line for line in lines if line.startswith("| ids"))


def test_a_table_can_show_costs_of_training_as_means_over_seeds(
    plan: EvidencePlan, tmp_path: Path, results: Results
) -> None:
    line = cost_line(plan, tmp_path, results, costing(1), costing(2))
    assert line == "| ids ¹ | 25.0 [24.0, 26.0] | 250,000 | 1.2 | 900 | 11.8 |"


def test_a_cost_is_a_dash_unless_all_seeds_have_it(plan: EvidencePlan, tmp_path: Path, results: Results) -> None:
    without_memory = cost_line(plan, tmp_path, results, costing(1), costing(2, peak_memory_bytes=None))
    assert without_memory == "| ids ¹ | 25.0 [24.0, 26.0] | 250,000 | 1.2 | - | 11.8 |"
    before_runs_told = cost_line(plan, tmp_path, results, costing(1), training(2, 3))
    assert before_runs_told == "| ids ¹ | 25.0 [24.0, 26.0] | - | - | - | - |"


def test_a_stratum_without_users_has_a_dash(plan: EvidencePlan, tmp_path: Path, results: Results) -> None:
    results.write(cell(IDS, 0.25, systems={"model": strata(0.25) | {"new": Figures(num_users=0)}}))
    assert "| base ¹ | 0 | - |" in page(plan, tmp_path, results)


def test_pictures_that_the_plan_no_longer_draws_are_removed(
    plan: EvidencePlan, tmp_path: Path, results: Results
) -> None:
    old = tmp_path / "results" / "curves" / "old.svg"
    old.parent.mkdir()
    old.write_text("<svg/>")
    page(plan, tmp_path, results)
    assert [path.name for path in old.parent.iterdir()] == ["first.svg"]


def test_p_values_of_a_table_are_adjusted_over_those_that_were_measured(tmp_path: Path, results: Results) -> None:
    (tmp_path / "reading.md").write_text("")
    (tmp_path / "more.md").write_text("")
    tree = copy.deepcopy(TREE)
    tree["tables"]["first"]["tests"] = "hr@10"
    tree["differences"].append({"a": IDS, "b": f"{BASELINES}@item-knn"})
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    results.write(cell(FULL, 0.3))
    for b, p in ((IDS, 0.02), (f"{BASELINES}@item-knn", 0.0001)):
        p_values = {"hr@10": {"sign flip": p, "t-test": p / 2, "Wilcoxon": 0.9}}
        results.write(DifferenceResult(a=FULL, b=b, hashes=("a", "b"), strata=strata(0.05), p_values=p_values))
    shown = page(read_plan(tmp_path / "plan.yaml"), tmp_path, results)
    assert "p of HR@10 by three tests, each adjusted by Holm over this table" in shown
    lines = [line for line in shown.splitlines() if line.startswith(("| difference", "| full - ", "| ids - "))]
    assert [line.split(" | ")[-3:] for line in lines[:4]] == [
        ["p, sign flip", "p, t-test", "p, Wilcoxon |"],
        ["0.020", "0.010", "1.000 |"],
        ["\\<0.001", "\\<0.001", "1.000 |"],
        ["-", "-", "- |"],
    ]


def test_a_picture_by_size_shows_the_systems_that_are_measured(tmp_path: Path, results: Results) -> None:
    (tmp_path / "reading.md").write_text("")
    (tmp_path / "more.md").write_text("")
    few = {"title": "Growth", "axis": "users", "domain": "shop", "tables": {30: "t", 500: "more"}}
    aliases = {f"more/shop/{name}": {"same_as": f"t/shop/{name}"} for name in ("ids", "full", "baselines")}
    systems = {"by ids": "ids", "in full": "full", "kNN": "baselines@item-knn"}
    tree = {**TREE, "cells": TREE["cells"] | aliases, "pictures": {"growth": few | {"systems": systems}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    plan = read_plan(tmp_path / "plan.yaml")
    written = page(plan, tmp_path, results)
    assert (
        written.index("## Growth")
        < written.index("![HR@10 by users](results/curves/growth.svg)")
        < written.index("## On shop")
    )
    drawn = (tmp_path / "results" / "curves" / "growth.svg").read_text(encoding="utf-8")
    assert re.findall(r"<text[^>]*>(by ids|in full|kNN|30|500|HR@10, %)</text>", drawn) == [
        "30",
        "500",
        "HR@10, %",
        "by ids",
        "kNN",
    ]
    assert "## Growth\n\nNot measured yet." in page(plan, tmp_path, Results(tmp_path / "none"))


def test_results_are_read_as_they_were_written_to_six_decimals(tmp_path: Path) -> None:
    results, kept = Results(tmp_path), cell(IDS, 0.2)
    path = results.write(kept)
    assert path == tmp_path / "t" / "shop" / "ids.json"
    found = results.cell(IDS)
    assert found is not None
    assert found.systems["model"]["all"].intervals["hr@10"] == Interval(0.2, 0.19, 0.21)
    assert found.model_copy(update={"systems": {}}) == kept.model_copy(update={"systems": {}})
    assert results.cell(FULL) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 2}', '{"cell": "t/shop/ids"}'])
def test_a_file_that_is_not_a_result_is_an_error(tmp_path: Path, text: str) -> None:
    results = Results(tmp_path)
    results.cell_path(IDS).parent.mkdir(parents=True)
    results.cell_path(IDS).write_text(text)
    with pytest.raises(DataError, match=r"ids\.json: not a readable result; remove it"):
        results.cell(IDS)


def test_results_that_are_not_in_the_plan_are_listed(plan: EvidencePlan, tmp_path: Path, results: Results) -> None:
    other = results.folder / "t" / "shop" / "other.json"
    other.write_text(json.dumps({}))
    assert results.unplanned(plan) == [other]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([(0.1, 0.2), (0.01, 0.3)], "shown"),
        ([(0.1, 0.2), (-0.01, 0.3)], "not shown"),
        ([(0.0, 0.2)], "not shown"),
        ([(0.1, 0.2), (-0.2, -0.1)], "contradicted"),
        ([None, (-0.2, -0.1)], "contradicted"),
        ([(0.1, 0.2), None], "not measured"),
    ],
)
def test_an_order_shows_only_where_every_neighbour_differs(
    differences: list[tuple[float, float] | None], expected: str
) -> None:
    intervals = [one and Interval(mean=sum(one) / 2, low=one[0], high=one[1], level=0.95) for one in differences]
    assert verdict(intervals) == expected
