"""Evidence through the command line: scenarios, systems compared, a twin from scratch, and a page of it all."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import Pmmrec, working_in

from pmmrec.data.domain import Domain
from pmmrec.data.splits.leave_one_out import leave_one_out


@pytest.fixture
def at_run(small_run: Path):
    with working_in(small_run):
        yield small_run


@pytest.mark.parametrize("scenario", ["cold", "new"])
def test_a_scenario_ranks_every_sub_sequence_that_ends_in_such_an_item(
    at_run: Path, world: Path, pmmrec: Pmmrec, scenario: str
) -> None:
    split = leave_one_out(Domain.open(world / "boutique"))
    below = {"cold": 10, "new": 1}[scenario]
    expected = []
    for user in range(split.domain.num_users):
        items = split.domain.sequence(user).tolist()
        places = [place for place in range(1, len(items)) if split.train_counts[items[place]] < below]
        expected += [(split.domain.user_ids[user].as_py(), place, place >= len(split.train(user))) for place in places]
    out = Path(f"boutique-{scenario}")
    told = pmmrec("evaluate", "small", world / "boutique", "--scenario", scenario, "--out", out, "--cache", "c")
    if not expected:
        assert told.code == 3
        assert "so none is new" in told.output
        return
    assert told.code == 0, told.output
    table = pq.read_table(out / "ranks.parquet")
    baselines = ["random", "popularity", "last-item Markov", "item-kNN"]
    ranked = [f"baseline:{name}" for name in baselines]
    assert table.column_names == ["user_id", "item_id", "rank", "seen_target", "place", "held_out", *ranked]
    rows = zip(*(table[name].to_pylist() for name in ("user_id", "place", "held_out")), strict=True)
    assert list(rows) == expected
    outcome = json.loads((out / "metrics.json").read_text())
    found = outcome["domains"][0]
    assert outcome["scenario"] == scenario
    assert list(found["baselines"]) == baselines
    for name, column in zip(baselines, ranked, strict=True):
        mean = np.isin(table[column].to_numpy(), range(1, 11)).mean()
        assert found["baselines"][name]["hr@10"]["mean"] == pytest.approx(mean, abs=1e-12)
    held_out = [is_held_out for *_, is_held_out in expected]
    hits = np.isin(table["rank"].to_numpy(), range(1, 11))
    assert found["metrics"]["hr@10"]["mean"] == pytest.approx(hits.mean(), abs=1e-12)
    if not all(held_out):
        assert found["held_out"]["num_targets"] == sum(held_out)
        assert found["held_out"]["metrics"]["hr@10"]["mean"] == pytest.approx(hits[held_out].mean(), abs=1e-12)
        assert "targets lie in the training part (the papers count them): small was not trained on this" in told.output


def test_a_checkpoint_is_told_that_it_learned_from_the_cold_targets_of_its_own_domain(
    at_run: Path, world: Path, pmmrec: Pmmrec
) -> None:
    told = pmmrec("evaluate", "small", world / "bazaar", "--scenario", "cold", "--cache", "c")
    assert told.code == 0, told.output
    assert "small was trained on this domain and the baselines count there, so both have seen them" in told.output


def test_evaluate_chooses_a_blend_by_validation_targets_and_score_takes_it(
    at_run: Path, world: Path, pmmrec: Pmmrec
) -> None:
    asked = ("small", world / "boutique")
    told = pmmrec("evaluate", *asked, "--blend", "auto", "--out", "blended", "--cache", "c")
    assert told.code == 0, told.output
    outcome = json.loads((Path("blended") / "metrics.json").read_text())
    (written,) = re.findall(r"--blend '(\{.*\})'", told.output.replace("\n", " "))
    settings = json.loads(written)
    assert settings == {key: value for key, value in outcome["blend"].items() if key in settings}
    assert pmmrec("evaluate", *asked, "--blend", written, "--out", "again", "--cache", "c").code == 0
    ranks = [pq.read_table(Path(out) / "ranks.parquet")["rank"].to_pylist() for out in ("blended", "again")]
    assert ranks[0] == ranks[1]
    scored = pmmrec("score", *asked, "--blend", "{cooccurrence: 1000}", "--out", "lists.csv", "--cache", "c")
    assert scored.code == 0, scored.output
    plain = pmmrec("score", *asked, "--popularity", "0", "--out", "plain.csv", "--cache", "c")
    assert plain.code == 0, plain.output
    assert Path("lists.csv").read_text() != Path("plain.csv").read_text()
    for verb, more, why in (
        ("score", ("--blend", "auto", "--out", "x.csv"), "score has no targets to choose the weights by"),
        ("score", ("--blend", "{popularity: 1}", "--popularity", "1", "--out", "x.csv"), "no effect with --blend"),
        ("score", ("--blend", "{cooccurence: 1}", "--out", "x.csv"), "cooccurence: unknown key"),
    ):
        refused = pmmrec(verb, *asked, *more, "--cache", "c")
        assert refused.code == 2, refused.output
        assert why in refused.output


def test_other_scenarios_do_not_compare(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    for scenario, out in (("regular", "as-ever"), ("cold", "as-cold")):
        options = ("--scenario", scenario, "--name", out, "--out", out, "--cache", "c")
        assert pmmrec("evaluate", "small", world / "boutique", *options).code == 0
    refused = pmmrec("compare", "as-ever", "as-cold")
    assert refused.code == 3
    assert "as-cold: measured on boutique" in refused.output
    assert "cold targets" in refused.output
    alone = pmmrec("compare", "as-cold")
    assert "held-out targets are compared" in alone.output


def test_a_transfer_ends_with_its_twin_from_scratch_and_a_verdict(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    common = ("train.epochs=1", "train.batch_users=16", "cache=c", "name=paid")
    on = ("--from", "small", "--on", world / "boutique")
    asked = ("finetune", "finetune/full", *on, *common, "--with-scratch", "--users", "12")
    told = pmmrec(*asked)
    assert told.code == 0, told.output
    curve = json.loads(Path("runs/paid/learning_curve.json").read_text())
    assert [point["num_users"] for point in curve["points"]] == [12, 40]
    assert [point["runs"]["scratch"] for point in curve["points"]] == ["paid-users12-scratch", "paid-scratch"]
    assert [*curve["points"][1]["validation"]["transfer"]] == ["0", "1"]
    assert "over scratch" in curve["sentence"]
    for picture in ("learning_curve.png", "learning_curve_users.png"):
        assert (Path("runs/paid") / picture).read_bytes().startswith(b"\x89PNG")
    for name in ("paid-users12", "paid-users12-scratch"):
        recipe = yaml.safe_load((Path("runs") / name / "recipe.yaml").read_text())
        assert recipe["data"]["users"] == {"sample": 12, "seed": 1, "held_out": "all"}
    shutil.rmtree("runs/paid-users12-scratch")  # as after a stop before the last run began
    again = pmmrec(*asked, "--resume")
    assert again.code == 0, again.output
    assert json.loads(Path("runs/paid/learning_curve.json").read_text()) == curve
    assert " ".join(curve["sentence"].split()[:4]) in again.output
    tail = told.output[told.output.rindex("boutique: test targets") :]
    for words in ("item-kNN", "paid ", "paid-scratch ", "epoch(s) to its best", "(Holm)"):
        assert words in tail, tail
    assert "transfer paid" in tail or "negative transfer" in tail or "neither paid nor did harm" in tail
    ours, theirs = (json.loads((Path("runs") / name / "metrics.json").read_text()) for name in ("paid", "paid-scratch"))
    assert ours["domains"][0]["fingerprint"] == theirs["domains"][0]["fingerprint"]
    index = json.loads(Path("runs/paid-scratch/checkpoint/model_index.json").read_text())
    assert index["provenance"]["started_from"] == "none"
    same = "model:\n" + Path("runs/paid-scratch/recipe.yaml").read_text().partition("model:\n")[2]
    assert "text:" in same
    assert pmmrec("compare", "runs/paid", "runs/paid-scratch", "--against", "paid-scratch").code == 0
    compared = pmmrec("compare", "runs/paid", "runs/paid-scratch").output
    for one, metric in (("popularity", "HR@10"), ("last-item Markov", "HR@10"), ("item-kNN", "NDCG@10")):
        assert any(one in line and f" on {metric}: " in line for line in compared.splitlines()), compared
    assert "adjusted by Holm for 14 test(s)" in compared
    assert compared.count("was at its best in its last epoch (1)") == sum(
        json.loads((Path("runs") / name / "metrics.json").read_text())["best_epoch"] == 1
        for name in ("paid", "paid-scratch")
    )
    page = pmmrec(
        "report", "runs/paid", "runs/paid-scratch", "--domain", world / "boutique", "--out", "page", "--cache", "c"
    )
    assert page.code == 0, page.output
    assert {file.name for file in Path("page").iterdir()} == {"report.html", "curves.png", "items.png", "users.png"}
    said = Path("page/report.html").read_text()
    assert any(f"would be shown: {both} on boutique" in said for both in ("paid, paid-scratch", "paid-scratch, paid"))


def test_a_twin_is_refused_where_there_is_no_transfer(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    on = ("--from", "none", "--on", world / "boutique", "cache=c", "name=twinless", "--with-scratch")
    told = pmmrec("finetune", "finetune/tiny", *on)
    assert told.code == 2
    assert "--with-scratch: has no effect with `--from none`" in told.output
    alone = pmmrec("finetune", "finetune/full", "--from", "small", *on[2:-1], "--users", "12")
    assert (alone.code, "say --with-scratch too" in alone.output) == (2, True)
    assert not Path("runs/twinless").exists()
