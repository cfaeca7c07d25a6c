"""Runs on other splits than leave-one-out: their targets, their metrics, and evaluation by the same rules."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import SMALL, Pmmrec, sources, working_in

from pmmrec.data.domain import Domain
from pmmrec.data.splits import split_of, splits

QUICK = ("train.epochs=1", "data.mixing.epoch_users=40", "cache=cache")
RATIO = ("data.split={type: ratio, test_history: train}", "validation={metric: recall@15, cutoffs: [5, 15]}")


@pytest.fixture
def at_home(tmp_path: Path):
    with working_in(tmp_path):
        yield tmp_path


def test_a_run_on_shares_ranks_all_targets_of_a_user_and_is_evaluated_likewise(
    at_home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    done = pmmrec("pretrain", "pretrain/tiny", *SMALL, *QUICK, *RATIO, *sources(world), "name=shares")
    assert done.code == 0, done.output
    assert "validation HR@5/NDCG@5" in done.output
    assert "RECALL@5" in done.output
    assert " test targets of " in done.output
    outcome = json.loads((at_home / "runs/shares/metrics.json").read_text())
    assert outcome["split"]["type"] == "ratio"
    config = splits.config({"type": "ratio", "test_history": "train"})
    for measured in outcome["domains"]:
        holdout = split_of(config, Domain.open(world / measured["domain"])).holdout("test")
        assert measured["num_users"] == holdout.num_queries
        assert (measured["num_targets"] or measured["num_users"]) == len(holdout.target)
        ranks = pq.read_table(at_home / f"runs/shares/ranks-{measured['domain']}.parquet")
        hits_T = (ranks["rank"].to_numpy() >= 1) & (ranks["rank"].to_numpy() <= 15)
        sums_Q = np.add.reduceat(hits_T.astype(float), holdout.target_offsets[:-1])
        recall = (sums_Q / np.diff(holdout.target_offsets)).mean()
        assert measured["metrics"]["recall@15"]["mean"] == pytest.approx(recall, abs=1e-12)

    done = pmmrec("evaluate", "shares", str(world / "boutique"), "--out", "shown", "--cache", "cache")
    assert done.code == 0, done.output
    shown = json.loads((at_home / "shown/metrics.json").read_text())
    assert shown["split"] == outcome["split"]
    assert shown["domains"][0]["num_targets"] > shown["domains"][0]["num_users"]
    compared = pmmrec("compare", "shown", "--against", "popularity")
    assert compared.code == 0, compared.output
    assert "RECALL@10" in compared.output


def test_a_run_on_points_in_time_ranks_those_with_something_before_them(
    at_home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    split = "data.split={type: global_time, validation: 0.2, test: 0.2}"
    done = pmmrec("pretrain", "pretrain/tiny", *SMALL, *QUICK, split, *sources(world), "name=later")
    assert done.code == 0, done.output
    outcome = json.loads((at_home / "runs/later/metrics.json").read_text())
    config = splits.config({"type": "global_time", "validation": 0.2, "test": 0.2})
    for measured in outcome["domains"]:
        holdout = split_of(config, Domain.open(world / measured["domain"])).holdout("test")
        assert measured["num_users"] == holdout.num_queries


def test_a_run_judged_by_its_loss_ranks_nothing_and_keeps_the_best(at_home: Path, world: Path, pmmrec: Pmmrec) -> None:
    judged = ("validation.judge=loss", "rank_test=false", "train.epochs=2", "data.mixing.epoch_users=40", "cache=cache")
    done = pmmrec("pretrain", "pretrain/tiny", *SMALL, *judged, *sources(world), "name=stage")
    assert done.code == 0, done.output
    assert "validation loss" in done.output
    assert "NDCG" not in done.output
    outcome = json.loads((at_home / "runs/stage/metrics.json").read_text())
    events = [json.loads(line) for line in (at_home / "runs/stage/events.jsonl").read_text().splitlines()]
    losses = [event["mean"]["loss"] for event in events if event["event"] == "validation"]
    assert len(losses) == 3
    assert outcome["best_epoch"] == losses.index(min(losses))
    assert outcome["validation"]["loss"] == min(losses)
    assert outcome["domains"] == []


def test_a_run_on_impressions_ranks_what_was_shown(at_home: Path, world: Path, pmmrec: Pmmrec) -> None:
    shutil.copytree(world / "boutique", at_home / "news")
    domain, draw = Domain.open(at_home / "news"), random.Random(3)
    with (at_home / "shown.csv").open("w") as file:
        file.write("impression_id,user_id,item_id,clicked,split\n")
        for number in range(60):
            user, part = domain.user_ids[draw.randrange(12)].as_py(), ("validation", "test")[number % 2]
            for place, item in enumerate(draw.sample(range(domain.num_items), 8)):
                file.write(f"{number},{user},{domain.item_ids[item].as_py()},{int(place < 2)},{part}\n")
    done = pmmrec("data", "impressions", "news", "--from", "shown.csv", "--name", "mind")
    assert "impressions: 30 of validation, 30 of test" in done.output
    judged = "validation={metric: auc, cutoffs: [5, 10], seen: include}"
    split = "data.split={type: impressions, name: mind}"
    done = pmmrec("pretrain", "pretrain/tiny", *SMALL, *QUICK, split, judged, "data.sources=[news]", "name=news")
    assert done.code == 0, done.output
    assert "60 test targets of" in done.output
    assert "among the items of their lists, 8.0 on average" in done.output
    (measured,) = json.loads((at_home / "runs/news/metrics.json").read_text())["domains"]
    assert measured["num_targets"] == 60
    ranks = pq.read_table(at_home / "runs/news/ranks.parquet")
    rank_QT = np.sort(ranks["rank"].to_numpy().reshape(30, 2), axis=1)
    wins = (6 - (rank_QT[:, 0] - 1)) + (6 - (rank_QT[:, 1] - 2))
    num_lists = np.bincount(np.unique(ranks["user_id"].to_numpy(), return_inverse=True)[1]) // 2
    assert num_lists.max() > 1  # a user with several lists
    assert measured["metrics"]["auc"]["mean"] == pytest.approx((wins / 12).mean(), abs=1e-12)
    compared = pmmrec("compare", "runs/news", "--against", "popularity")
    assert compared.code == 0, compared.output
    assert "RECALL@10" in compared.output


@pytest.fixture
def all_trained_on_but_the_last(at_home: Path, world: Path, pmmrec: Pmmrec) -> None:
    """A domain `shop` with a stored split `paper` that has no validation items."""
    shutil.copytree(world / "boutique", at_home / "shop")
    domain = Domain.open(at_home / "shop")
    with (at_home / "parts.csv").open("w") as file:
        file.write("user_id,item_id,split\n")
        for user, user_id in enumerate(domain.user_ids.to_pylist()):
            items = domain.sequence(user).tolist()
            for place, item in enumerate(items):
                file.write(f"{user_id},{domain.item_ids[item].as_py()},{'train' if items[place + 1 :] else 'test'}\n")
    assert pmmrec("data", "split", "shop", "--from", "parts.csv", "--name", "paper").code == 0


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        ("data.split={type: given, name: paper}", 3, "so there is no validation target to rank"),
        ("data.split={type: global_time, validation: 5, test: 7}", 3, "leaves nothing for training and validation"),
        ("validation.cutoffs=[10, 1000]", 2, "validation.cutoffs: 1000 is more than the 36 items of boutique"),
        ("train.accumulate={parts: 30, mode: plain}", 2, "the smallest of 30 parts of 0 users"),
    ],
)
@pytest.mark.usefixtures("all_trained_on_but_the_last")
def test_a_dry_run_refuses_what_the_run_refuses_and_neither_takes_the_name(
    at_home: Path, pmmrec: Pmmrec, settings: str, code: int, told: str
) -> None:
    asked = ("pretrain", "pretrain/tiny", *SMALL, *QUICK, settings, "data.sources=[shop]", "name=one")
    for more in (("--dry-run",), ()):
        ended = pmmrec(*asked, *more)
        assert (ended.code, told in ended.output) == (code, True), ended.output
        assert not (at_home / "runs" / "one").exists()


def test_a_pretraining_learns_from_all_users_but_a_sample_and_is_judged_by_it(
    at_home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    holdout = "data.holdout={users: 0.2, seed: 3}"
    done = pmmrec("pretrain", "pretrain/tiny", *SMALL, *QUICK, *sources(world), holdout, "name=all")
    assert done.code == 0, done.output
    assert "bazaar: 48 of 60 users train with their whole sequences (data.holdout, seed 3)" in done.output
    assert "data.holdout: the sources keep no test target" in done.output
    assert "published: hub/all" in done.output
    outcome = json.loads((at_home / "runs/all/metrics.json").read_text())
    assert outcome["split"] == {"type": "held_out_users", "users": 0.2, "seed": 3}
    assert outcome["domains"] == []
    assert "On validation: HR@10" in (at_home / "hub/all/README.md").read_text()
    on_source = pmmrec("evaluate", "all", str(world / "bazaar"), "--cache", "cache")
    assert on_source.code != 0
    assert "data.holdout trains on all users but those of validation, so there is no test target" in on_source.output
    tuned = pmmrec("finetune", "finetune/full", "--from", "all", "--on", str(world / "bazaar"), "--dry-run")
    assert tuned.code == 2
    assert "learned from all of its users but a sample (data.holdout), and so from targets" in tuned.output
    elsewhere = pmmrec("evaluate", "all", str(world / "boutique"), "--cache", "cache")
    assert elsewhere.code == 0, elsewhere.output
    assert "test targets of 40 users" in elsewhere.output
    further = pmmrec("finetune", "finetune/full", "--from", "all", "--on", str(world / "boutique"), *QUICK, "name=more")
    assert further.code == 0, further.output
    told = pmmrec("evaluate", "runs/more/checkpoint", str(world / "bazaar"), "--cache", "cache")
    assert "so there is no test target" in told.output
    tuned = pmmrec(
        "finetune", "finetune/full", "--from", "runs/more/checkpoint", "--on", str(world / "bazaar"), "--dry-run"
    )
    assert (tuned.code, "but a sample (data.holdout)" in tuned.output) == (2, True)


def test_a_domain_that_was_learned_from_under_another_split_is_refused(
    small_run: Path, at_home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    shutil.copytree(small_run / "hub", at_home / "hub")
    bazaar, ratio = str(world / "bazaar"), "data.split={type: ratio}"
    refused = 'learned from it under data.split: {"type": "leave_one_out"}, and so maybe from targets'
    told = pmmrec("finetune", "finetune/full", "--from", "small", "--on", bazaar, ratio, "--dry-run")
    assert (told.code, refused in told.output) == (2, True)
    assert pmmrec("finetune", "finetune/full", "--from", "small", "--on", bazaar, "--dry-run").code == 0
    target = str(world / "boutique")
    more = pmmrec("finetune", "finetune/full", "--from", "small", "--on", target, ratio, *QUICK, "name=more")
    assert more.code == 0, more.output
    tuned = "runs/more/checkpoint"
    told = pmmrec("finetune", "finetune/full", "--from", tuned, "--on", bazaar, ratio, "--dry-run")
    assert (told.code, refused in told.output) == (2, True)
    told = pmmrec("finetune", "finetune/full", "--from", tuned, "--on", target, "--dry-run")
    assert 'learned from it under data.split: {"type": "ratio"}' in told.output
    told = pmmrec("evaluate", tuned, bazaar, "--split", "{type: ratio}", "--cache", "cache")
    assert "learned from bazaar under another split" in told.output
    told = pmmrec("advise", tuned, bazaar, ratio)
    assert (told.code, refused in told.output) == (2, True)
    shown = pmmrec("evaluate", tuned, bazaar, "--out", "shown", "--cache", "cache")
    assert shown.code == 0, shown.output
    assert json.loads((at_home / "shown/metrics.json").read_text())["split"] == {"type": "leave_one_out"}


def test_a_run_on_a_sample_of_users_says_so_and_its_baselines_know_the_sample_alone(
    at_home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    few = ("data.users={sample: 10, seed: 2}", "--from", "none", "--on", str(world / "boutique"))
    done = pmmrec("finetune", "finetune/tiny", *SMALL, *QUICK, *few, "name=few")
    assert done.code == 0, done.output
    assert "boutique: 10 of 40 users train (data.users, seed 2)" in done.output
    outcome = json.loads((at_home / "runs/few/metrics.json").read_text())
    assert outcome["split"]["users"] == {"sample": 10, "seed": 2, "held_out": "all"}
    assert outcome["domains"][0]["num_users"] == 40
    shown = pmmrec("evaluate", "runs/few/checkpoint", str(world / "boutique"), "--out", "shown", "--cache", "cache")
    assert shown.code == 0, shown.output
    again = json.loads((at_home / "shown/metrics.json").read_text())
    assert again["split"] == outcome["split"]
    assert again["domains"][0]["baselines"] == outcome["domains"][0]["baselines"]


def test_items_of_the_last_days_are_ranked_for_a_checkpoint_of_another_split(
    small_run: Path, at_home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    shutil.copytree(small_run / "hub", at_home / "hub")
    split = "{type: global_time, validation: 0.1, test: 0.8}"
    asked = ("--split", split, "--scenario", "latest", "--out", "shown", "--cache", "cache")
    done = pmmrec("evaluate", "small", str(world / "boutique"), *asked)
    assert done.code == 0, done.output
    outcome = json.loads((at_home / "shown/metrics.json").read_text())
    assert (outcome["scenario"], outcome["split"]["type"]) == ("latest", "global_time")
    domain = Domain.open(world / "boutique")
    _, from_test = split_of(splits.config({"type": "global_time", "validation": 0.1, "test": 0.8}), domain).cuts
    users = range(domain.num_users)
    item_H, time_H = (np.concatenate([read(user) for user in users]) for read in (domain.sequence, domain.times))
    before = set(item_H[time_H < from_test].tolist())
    targets = [item for user in users for item in domain.sequence(user)[1:].tolist() if item not in before]
    (measured,) = outcome["domains"]
    assert (measured["num_targets"] or measured["num_users"]) == len(targets) > 0
    on_source = pmmrec("evaluate", "small", str(world / "bazaar"), "--split", split)
    assert "--split: hub/small learned from bazaar under another split" in on_source.output
    assert pmmrec("evaluate", "small", str(world / "boutique"), "--split", "weekly").code != 0
