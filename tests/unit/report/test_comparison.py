"""Comparisons equal loops and scipy, and runs that do not compare are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ranked_runs import BASELINE_FIGURES, MakeRun, ranks
from scipy import stats

from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.outcome import Outcome, StratumOutcome, write_outcome
from pmmrec.evaluation.significance import Interval
from pmmrec.report.comparison import compare, read_systems
from pmmrec.report.paired import PairedDifference, PValue
from pmmrec.report.tables import Percent


def ndcg_by_loops(rank_Q: Sequence[int]) -> list[float]:
    return [1 / math.log2(rank + 1) if 1 <= rank <= 10 else 0.0 for rank in rank_Q]


def holm_by_loops(p_values: dict[str, float]) -> dict[str, float]:
    order = sorted(p_values, key=lambda key: p_values[key])
    return {
        key: min(1.0, max((len(order) - k) * p_values[order[k]] for k in range(place + 1)))
        for place, key in enumerate(order)
    }


def test_a_comparison_equals_loops_scipy_and_holm(make_run: MakeRun) -> None:
    ours, theirs = ranks(1), ranks(2)
    runs = [str(make_run("ours", ours)), str(make_run("theirs", theirs))]
    hits, gains = compare(read_systems(runs)).differences
    loops = np.array(ndcg_by_loops(ours)) - np.array(ndcg_by_loops(theirs))
    assert gains.interval.mean == pytest.approx(loops.mean(), abs=1e-15)
    theirs_p = stats.permutation_test((loops,), np.mean, permutation_type="samples", n_resamples=50_000, rng=1).pvalue
    assert gains.p == pytest.approx(theirs_p, abs=0.016)  # standard error 0.0053; measured 0.0115
    won = sum(a <= 10 < b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b <= 10 < a for a, b in zip(ours, theirs, strict=True))
    assert hits.p == pytest.approx(stats.binomtest(won, won + lost).pvalue, abs=1e-12)
    expected = holm_by_loops({"hits": hits.p, "gains": gains.p})
    assert (hits.p_holm, gains.p_holm) == (expected["hits"], expected["gains"])


def test_pairs_are_tested_three_ways_and_each_way_is_adjusted_by_itself(make_run: MakeRun) -> None:
    runs = [str(make_run("ours", ranks(1))), str(make_run("theirs", ranks(2, better=True)))]
    compared = compare(read_systems(runs))
    gains = [np.array(ndcg_by_loops(one)) for one in (ranks(1), ranks(2, better=True))]
    hits = [(one > 0).astype(float) for one in gains]
    for name, test in (("t_test", stats.ttest_rel), ("wilcoxon", stats.wilcoxon)):
        wanted = {"hr@10": float(test(*hits).pvalue), "ndcg@10": float(test(*gains).pvalue)}
        by_holm = holm_by_loops(wanted)
        for one in compared.differences:
            found = getattr(one, name)
            assert found.p == pytest.approx(wanted[one.metric], rel=1e-9)
            assert found.p_holm == pytest.approx(by_holm[one.metric], rel=1e-9)
    (table,) = compared.tests
    assert table.columns[-3:] == ("sign-flip", "t-test", "Wilcoxon")
    assert [row[:4] for row in table.rows] == [
        ["ours", "theirs", "shop", "HR@10"],
        ["ours", "theirs", "shop", "NDCG@10"],
    ]
    assert json.loads(json.dumps(compared.record(), default=vars))["differences"][0]["t_test"].keys() == {"p", "p_holm"}


def test_systems_are_compared_at_the_cutoff_that_is_asked_for(make_run: MakeRun) -> None:
    runs = [make_run("ours", ranks(1)), make_run("theirs", ranks(2))]
    for run in runs:
        outcome = json.loads((run / "metrics.json").read_text())
        for figures in (outcome["domains"][0]["metrics"], *outcome["domains"][0]["baselines"].values()):
            figures |= {name.replace("@10", "@20"): value for name, value in figures.items()}
        (run / "metrics.json").write_text(json.dumps(outcome))
    systems = read_systems(list(map(str, runs)))
    hits, gains = compare(systems, cutoff=20).differences
    assert (hits.metric, gains.metric) == ("hr@20", "ndcg@20")
    shares = [np.mean(np.array(one) <= 20) for one in (ranks(1), ranks(2))]
    assert hits.interval.mean == pytest.approx(shares[0] - shares[1], abs=1e-15)
    assert compare(systems, cutoff=20).tables[0].columns[1:] == ["HR@20", "NDCG@20"]
    with pytest.raises(RecipeError, match=r"--at 7: shop was measured at 10, 20; choose one of these, or train with"):
        compare(systems, cutoff=7)


def test_the_better_system_is_named_first(make_run: MakeRun) -> None:
    weak, strong = make_run("weak", ranks(1)), make_run("strong", ranks(2, better=True))
    words = compare(read_systems([str(weak), str(strong)])).lines()
    assert words[0].startswith("strong beats weak on HR@10: +")
    assert words[0].endswith("p<0.001 (Holm)")
    assert words[1].startswith("strong beats weak on NDCG@10: +")
    assert "adjusted by Holm for 2 test(s)" in words[2]


def test_equal_systems_show_no_difference(make_run: MakeRun) -> None:
    pair = [str(make_run(name, ranks(1))) for name in ("one", "two")]
    words = compare(read_systems(pair)).lines()
    assert words[0] == "no difference shown between one and two on HR@10: +0.00 points [0.00, 0.00], p=1.000 (Holm)"


def test_an_interval_that_contains_zero_shows_no_difference_for_any_p_value() -> None:
    others = PValue(0.001, 0.002), PValue(0.001, 0.002)
    across = PairedDifference("a", "b", "hr@10", "shop", Interval(0.01, -0.001, 0.02), 0.001, 0.002, *others)
    apart = PairedDifference("a", "b", "hr@10", "shop", Interval(0.01, 0.001, 0.02), 0.001, 0.06, *others)
    assert not across.is_shown
    assert not apart.is_shown
    assert apart.words() == "no difference shown between a and b on HR@10: +1.00 points [0.10, 2.00], p=0.060 (Holm)"


def test_every_pair_is_tested_and_all_tests_are_adjusted_together(make_run: MakeRun) -> None:
    runs = [str(make_run(f"s{seed}", ranks(seed))) for seed in range(4)]
    found = compare(read_systems(runs)).differences
    assert len(found) == 6 * 2
    expected = holm_by_loops({str(place): d.p for place, d in enumerate(found)})
    assert [d.p_holm for d in found] == pytest.approx([expected[str(place)] for place in range(12)], abs=1e-15)


def with_baselines(**rank_V: Sequence[int]) -> dict[str, Any]:
    """The arguments of `make_run` for baselines: their metrics and the columns of their ranks."""
    names = {name.replace("_", " "): ranked for name, ranked in rank_V.items()}
    means = {
        name: {"hr@10": np.mean([1 <= rank <= 10 for rank in ranked]), "ndcg@10": np.mean(ndcg_by_loops(ranked))}
        for name, ranked in names.items()
    }
    baselines = {
        name: {key: Interval(float(mean), 0.0, 1.0) for key, mean in metrics.items()} for name, metrics in means.items()
    }
    return {"baselines": baselines, "more": {f"baseline:{name}": ranked for name, ranked in names.items()}}


def test_systems_are_tested_against_the_baselines_with_all_tests_adjusted_together(make_run: MakeRun) -> None:
    weak, strong = ranks(8), ranks(9, better=True)
    told = with_baselines(popularity=weak, item_kNN=strong, random=ranks(7))
    runs = [str(make_run(f"s{seed}", ranks(seed), **told)) for seed in range(2)]
    found = compare(read_systems(runs)).differences
    pairs = [("s0", "s1"), *((system, other) for system in ("s0", "s1") for other in ("popularity", "item kNN"))]
    assert [(d.first, d.second) for d in found] == [pair for pair in pairs for _ in range(2)]
    gains = found[5]
    assert (gains.second, gains.metric) == ("item kNN", "ndcg@10")
    loops = np.array(ndcg_by_loops(ranks(0))) - np.array(ndcg_by_loops(strong))
    assert gains.interval.mean == pytest.approx(loops.mean(), abs=1e-15)
    assert gains.is_shown
    assert gains.words().startswith("item kNN beats s0 on NDCG@10: +")
    expected = holm_by_loops({str(place): d.p for place, d in enumerate(found)})
    assert [d.p_holm for d in found] == pytest.approx([expected[str(place)] for place in range(10)], abs=1e-15)


def test_a_mean_without_an_interval_has_the_keys_of_one_with(make_run: MakeRun) -> None:
    folders = [make_run("ours", ranks(seed), folder=f"seed-{seed}", keeps_ranks=False) for seed in (1, 2)]
    (domain,) = compare(read_systems([f"ours={folders[0]},{folders[1]}"])).record()["domains"]
    (system,) = domain["systems"]
    assert (system["system"], system["num_seeds"]) == ("ours", 2)
    mean = float(np.mean([ndcg_by_loops(ranks(seed)) for seed in (1, 2)]))
    expected = {"mean": pytest.approx(mean, abs=1e-12), "low": None, "high": None, "level": None}
    assert system["metrics"]["ndcg@10"] == expected


def test_one_run_alone_is_tested_against_the_baselines(make_run: MakeRun) -> None:
    run = str(make_run("alone", ranks(1), **with_baselines(popularity=ranks(2))))
    assert [(d.first, d.second) for d in compare(read_systems([run])).differences] == 2 * [("alone", "popularity")]


@pytest.mark.parametrize(
    ("against", "asked"),
    [
        ("s1", [("s0", "s1")]),
        ("popularity", [("s0", "popularity"), ("s1", "popularity")]),
        ("random", [("s0", "random"), ("s1", "random")]),
    ],
)
def test_tests_can_be_restricted_to_one_system_or_baseline(
    make_run: MakeRun, against: str, asked: list[tuple[str, str]]
) -> None:
    told = with_baselines(popularity=ranks(8), random=ranks(7))
    runs = [str(make_run(f"s{seed}", ranks(seed), **told)) for seed in range(2)]
    found = compare(read_systems(runs), against).differences
    assert [(d.first, d.second) for d in found] == [pair for pair in asked for _ in range(2)]


def test_all_seeds_of_a_system_are_compared_with_the_same_baseline(make_run: MakeRun) -> None:
    told = with_baselines(popularity=ranks(8))
    folders = [make_run("ours", ranks(seed), folder=f"seed-{seed}", **told) for seed in (1, 2)]
    hits, _ = compare(read_systems([f"ours={folders[0]},{folders[1]}"])).differences
    mean = np.mean([[1 <= rank <= 10 for rank in ranks(seed)] for seed in (1, 2)])
    popular = np.mean([1 <= rank <= 10 for rank in ranks(8)])
    assert hits.interval.mean == pytest.approx(float(mean - popular), abs=1e-15)


def test_ranks_of_a_baseline_that_contradict_its_metrics_are_refused(make_run: MakeRun) -> None:
    told = with_baselines(popularity=ranks(8))
    run = make_run("ours", ranks(1), **{**told, "more": {"baseline:popularity": ranks(9, better=True)}})
    with pytest.raises(DataError, match=r"ours/ranks\.parquet: its mean hr@10 is .* the two are of different"):
        compare(read_systems([str(run)]))


@pytest.mark.parametrize(("wrong", "words"), [([-1], "a rank is -1"), (["x"], "baseline:popularity is string")])
def test_columns_of_baselines_that_hold_no_ranks_are_refused(
    make_run: MakeRun, wrong: list[object], words: str
) -> None:
    run = make_run("ours", [1], more={"baseline:popularity": wrong})
    with pytest.raises(DataError, match=rf"ours/ranks\.parquet: {words}"):
        compare(read_systems([str(run)]))


def test_every_run_whose_best_epoch_is_its_last_is_a_warning(make_run: MakeRun) -> None:
    cut, done = {"best_epoch": 3, "num_epochs": 3}, {"best_epoch": 3, "num_epochs": 5}
    seeds = [make_run("ours", ranks(1), folder="one", **cut), make_run("ours", ranks(1), folder="two", **done)]
    runs = [
        f"ours={seeds[0]},{seeds[1]}",
        *(
            str(make_run(*run, **how))
            for run, how in (
                (("last", ranks(2)), cut),
                (("early", ranks(3)), done),
                (("untrained", ranks(4)), {"best_epoch": 0, "num_epochs": 0}),
                (("evaluated", ranks(5)), {}),
            )
        ),
    ]
    warnings = compare(read_systems(runs)).warnings
    why = "was at its best in its last epoch (3); with more epochs (train.epochs) it may get better, and the comparison"
    assert warnings == (f"ours ({seeds[0]}) {why} may change", f"last {why} may change")
    assert compare(read_systems(runs)).lines()[-2:] == [f"warning: {warning}" for warning in warnings]


def test_an_unknown_system_to_compare_with_is_refused(make_run: MakeRun) -> None:
    runs = [str(make_run(f"s{seed}", ranks(seed))) for seed in range(3)]
    found = compare(read_systems(runs), against="s1").differences
    assert {(d.first, d.second) for d in found} == {("s0", "s1"), ("s2", "s1")}
    with pytest.raises(
        RecipeError, match="--against 'other': is not a system or baseline here; there are: s0, s1, s2, item-kNN"
    ):
        compare(read_systems(runs), against="other")


def test_seeds_of_one_system_are_one_row_and_their_users_are_averaged(make_run: MakeRun) -> None:
    seeds = [ranks(1), ranks(2)]
    folders = [make_run("ours", seed, folder=f"seed-{place}", best_epoch=place) for place, seed in enumerate(seeds)]
    other = make_run("theirs", ranks(3))
    compared = compare(read_systems([f"ours={folders[0]},{folders[1]}", str(other)]))
    (table,) = compared.tables
    assert [row[0] for row in table.rows] == ["item-kNN", "ours (2 seeds)", "theirs"]
    mean = float(np.mean([ndcg_by_loops(seed) for seed in seeds]))
    assert isinstance(table.rows[1][2], Percent)
    assert isinstance(table.rows[1][2].share, Interval)
    assert table.rows[1][2].share.mean == pytest.approx(mean, abs=1e-15)
    assert table.rows[1][3] == 0.5
    assert compared.differences[1].interval.mean == pytest.approx(mean - np.mean(ndcg_by_loops(ranks(3))), abs=1e-15)


def test_ranks_in_another_order_are_the_same(make_run: MakeRun) -> None:
    ours, theirs = ranks(1), ranks(2)
    users = [f"u{place}" for place in range(300)]
    straight = [make_run("ours", ours), make_run("theirs", theirs)]
    turned = make_run("theirs", theirs[::-1], folder="turned", users=users[::-1])
    expected = compare(read_systems([str(run) for run in straight])).differences
    assert compare(read_systems([str(straight[0]), str(turned)])).differences == expected


def test_several_targets_of_a_user_are_one_draw(make_run: MakeRun) -> None:
    """Two users with three targets each: four choices of signs, so no p-value below a half."""
    users, place = ["a", "a", "a", "b", "b", "b"], {"place": [1, 2, 3, 1, 2, 3]}
    hit = make_run("hit", [1] * 6, users=users, more=place)
    miss = make_run("miss", [0] * 6, users=users, more=place)
    assert {difference.p for difference in compare(read_systems([str(hit), str(miss)])).differences} == {0.5}


def test_targets_of_the_training_part_are_not_compared(make_run: MakeRun) -> None:
    users, more = ["a", "a", "b", "b"], {"place": [1, 2, 1, 2], "held_out": [False, True, False, True]}
    fair = StratumOutcome(num_targets=2, metrics={"hr@10": Interval(0.0, 0.0, 0.0)}, baselines=BASELINE_FIGURES)
    cold = {"users": users, "more": more, "scenario": "cold", "held_out": fair, "num_targets": 4}
    memory, honest = make_run("memory", [1, 0, 1, 0], **cold), make_run("honest", [0, 0, 0, 0], **cold)
    compared = compare(read_systems([str(memory), str(honest)]))
    assert [difference.interval.mean for difference in compared.differences] == [0.0, 0.0]
    assert "only the 2 held-out targets are compared" in compared.tables[0].title


def test_runs_without_ranks_are_in_the_table_with_a_note(make_run: MakeRun) -> None:
    runs = [make_run("ours", ranks(1)), make_run("bare", ranks(2), keeps_ranks=False)]
    compared = compare(read_systems([str(run) for run in runs]))
    assert [row[0] for row in compared.tables[0].rows] == ["item-kNN", "ours", "bare"]
    assert not compared.differences
    note, other = compared.lines()
    assert note.startswith("note: bare is in no test: ")
    assert "bare/ranks.parquet is missing" in note
    assert other.startswith("note: no baseline is in a test: ")
    assert "ours/ranks.parquet does not hold their ranks; measure it again" in other


def test_one_system_alone_is_compared_with_nobody(make_run: MakeRun) -> None:
    with pytest.raises(RecipeError, match=r"--against ours: has no effect on one system alone"):
        compare(read_systems([str(make_run("ours", [1]))]), "ours")


@pytest.mark.parametrize("word", ["", "=a", "ours=", "ours=a,,b", "a,b"])
def test_invalid_arguments_are_refused_before_any_run_is_read(word: str) -> None:
    with pytest.raises(RecipeError, match=r"name a run folder, or seeds of one system as NAME=RUN,RUN"):
        read_systems([word])


def test_arguments_that_name_no_run_are_refused(make_run: MakeRun) -> None:
    run = make_run("ours", [1])
    with pytest.raises(DataError, match="neither a finished run nor an evaluation"):
        read_systems([str(run), "nowhere"])
    with pytest.raises(RecipeError, match="named twice; a run counts once"):
        read_systems([str(run), f"again={run}"])


def test_systems_with_the_same_name_are_called_by_their_folders(make_run: MakeRun) -> None:
    runs = [str(make_run("ours", [1], folder=folder)) for folder in ("here", "there")]
    assert [system.name for system in read_systems(runs)] == runs


def test_a_run_on_several_domains_is_compared_on_those_it_shares(small_run: Path, make_run: MakeRun) -> None:
    run = small_run / "runs" / "small"
    outcome = json.loads((run / "metrics.json").read_text())
    gallery = next(found for found in outcome["domains"] if found["domain"] == "gallery")
    users = pq.read_table(run / "ranks-gallery.parquet")
    same = {"fingerprint": gallery["fingerprint"], "baselines": gallery["baselines"]}
    perfect = make_run("perfect", [1] * len(users), domain="gallery", **same)
    pq.write_table(users.set_column(2, "rank", pa.array([1] * len(users))), perfect / "ranks.parquet")
    compared = compare(read_systems([str(run), str(perfect)]))
    assert [len(table.rows) for table in compared.tables] == [5, 6]
    share_hit = float(np.isin(users["rank"], range(1, 11)).mean())
    hits, gains = (one for one in compared.differences if one.second == "perfect")
    assert (hits.first, hits.domain, gains.domain) == ("small", "gallery", "gallery")
    assert hits.interval.mean == pytest.approx(share_hit - 1, abs=1e-15)
    assert {one.domain for one in compared.differences if one.second == "item-kNN"} == {"bazaar", "gallery"}


def test_runs_that_did_not_rank_test_targets_are_refused(make_run: MakeRun) -> None:
    ours, untested = make_run("ours", [1]), make_run("untested", [1])
    write_outcome(untested, Outcome(name="untested", kind="finetune", domains=()))
    with pytest.raises(DataError, match="its test targets were not ranked"):
        read_systems([str(ours), str(untested)])


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"name": ' + "9" * 5_000 + "}", '{"surprise": 1}'])
def test_broken_metrics_files_are_refused(make_run: MakeRun, text: str) -> None:
    ours, broken = make_run("ours", [1]), make_run("broken", [1])
    (broken / "metrics.json").write_text(text)
    with pytest.raises(DataError, match=r"broken/metrics\.json: "):
        read_systems([str(ours), str(broken)])


def test_runs_with_other_cutoffs_are_compared_at_those_of_the_first(make_run: MakeRun) -> None:
    first, second = ranks(1), ranks(2)
    at_five = {"hr@5": np.mean([rank <= 5 for rank in first]), "ndcg@5": np.mean(ndcg_at(first, 5))}
    metrics = {name: Interval(float(mean), 0.0, 1.0) for name, mean in at_five.items()}
    runs = [make_run("five", first, metrics=metrics), make_run("ten", second)]
    compared = compare(read_systems([str(run) for run in runs]))
    assert [difference.metric for difference in compared.differences] == ["hr@5", "ndcg@5"]
    assert compared.tables[0].columns[1:3] == ["HR@5", "NDCG@5"]
    shown = compared.domains[0].systems[1].metrics["ndcg@5"]
    assert isinstance(shown, Interval)
    assert shown.mean == pytest.approx(np.mean(ndcg_at(second, 5)), abs=1e-12)


def test_several_targets_of_a_user_are_one_query(make_run: MakeRun) -> None:
    users, ours, theirs = ["a", "a", "b", "c", "c", "c"], [3, 12, 1, 4, 30, 9], [1, 2, 50, 11, 40, 60]
    recall = {"ours": (1 / 2 + 1 + 2 / 3) / 3, "theirs": (1 + 0 + 0) / 3}
    items = {"item_id": [f"i{place}" for place in range(6)]}
    runs = [
        make_run(name, found, users=users, more=items, metrics=of_several(found, users))
        for name, found in (("ours", ours), ("theirs", theirs))
    ]
    first, _ = compare(read_systems([str(run) for run in runs])).differences
    assert first.metric == "recall@10"
    assert first.interval.mean == pytest.approx(recall["ours"] - recall["theirs"], abs=1e-15)


def ndcg_at(rank_Q: Sequence[int], cutoff: int) -> list[float]:
    return [1 / math.log2(rank + 1) if 1 <= rank <= cutoff else 0.0 for rank in rank_Q]


def of_several(found: Sequence[int], users: Sequence[str]) -> dict[str, Interval]:
    """Recall and NDCG at 10 of users with several targets, as the ranking would have stored them."""
    recalls, gains = [], []
    for user in dict.fromkeys(users):
        own = [rank for rank, whose in zip(found, users, strict=True) if whose == user]
        recalls.append(np.mean([rank <= 10 for rank in own]))
        gains.append(sum(ndcg_at(own, 10)) / sum(1 / math.log2(place + 2) for place in range(len(own))))
    means = {"recall@10": np.mean(recalls), "ndcg@10": np.mean(gains)}
    return {name: Interval(float(mean), 0.0, 1.0) for name, mean in means.items()}
