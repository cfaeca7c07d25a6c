"""Advice for a domain: every plan on the same validation targets, and one of them with its command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Pmmrec, working_in
from quick_programs import quick_programs

from pmmrec.data.splits import Holdout, Split

TINY = ("train.epochs=2", "train.batch_users=16", "cache=c")
PLANS = [
    "popularity",
    "item-kNN",
    "zero-shot, content alone",
    "zero-shot with popularity",
    "zero-shot with popularity and item-kNN",
    "frozen",
    "full",
]


@pytest.fixture(scope="module", autouse=True)
def _quick_programs() -> Iterator[None]:
    with quick_programs():
        yield


@pytest.fixture
def at_hub(small_run: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(small_run / "hub", tmp_path / "hub")
    with working_in(tmp_path):
        yield tmp_path


def test_all_plans_are_measured_and_one_is_recommended(
    at_hub: Path, world: Path, pmmrec: Pmmrec, monkeypatch: pytest.MonkeyPatch
) -> None:
    holdout = Split.holdout

    def refuses_test(split: Split, name: str, num_users: int | None = None) -> Holdout:
        assert name == "validation"
        return holdout(split, name, num_users)

    monkeypatch.setattr(Split, "holdout", refuses_test)
    asked = ("advise", "small", world / "boutique", *TINY, "--json")
    told = pmmrec(*asked)
    assert told.code == 0, told.output
    advice = json.loads(told.stdout)
    assert [plan["plan"] for plan in advice["plans"]] == PLANS
    assert (advice["targets"], advice["num_users"]) == ("validation", 40)
    chosen = next(plan for plan in advice["plans"] if plan["plan"] == advice["recommended"])
    assert advice["command"] == chosen["command"]
    assert chosen["over_recommended"]["mean"] == 0
    assert all(
        0 <= plan["metrics"]["hr@10"]["low"] <= plan["metrics"]["hr@10"]["high"] <= 1 for plan in advice["plans"]
    )
    assert all(plan["cpu_s"] > 0 for plan in advice["plans"][-2:])
    assert "transfer=frozen" in advice["plans"][-2]["command"]
    (folder,) = Path("runs").glob("advise-boutique-*")
    for name in ("frozen", "full"):
        outcome = json.loads((folder / name / "metrics.json").read_text())
        assert outcome["domains"] == []
        best = outcome["validation"]["ndcg@10"]
        (plan,) = [plan for plan in advice["plans"] if plan["plan"] == name]
        assert plan["metrics"]["ndcg@10"]["mean"] == pytest.approx(best, abs=1e-9)
    log = (folder / "full.log").read_bytes()
    again = pmmrec(*asked)
    assert again.code == 0, again.output
    assert (folder / "full.log").read_bytes() == log
    assert json.loads(again.stdout)["recommended"] == advice["recommended"]
    other = pmmrec(*asked, "--out", folder, "--minutes", 3)
    assert (other.code, "holds the advice on another question; name a new folder" in other.output) == (2, True)
    table = pmmrec(*asked[:-1])
    assert "no test target was read" in " ".join(table.output.split())
    assert "recommended: " in table.output
    assert chosen["command"].split()[1] in table.output


def test_a_folder_with_something_else_in_it_is_left_as_it_is(at_hub: Path, world: Path, pmmrec: Pmmrec) -> None:
    before = sorted((world / "boutique").iterdir())
    told = pmmrec("advise", "small", world / "boutique", *TINY, "--out", world / "boutique")
    assert (told.code, "holds something else; name a new folder" in told.output) == (2, True)
    assert sorted((world / "boutique").iterdir()) == before


def test_a_domain_that_the_checkpoint_learned_from_and_a_loss_as_judge_are_refused(
    at_hub: Path, world: Path, pmmrec: Pmmrec
) -> None:
    told = pmmrec("advise", "small", world / "bazaar")
    assert (told.code, "learned from bazaar; name a domain that is new to it" in told.output) == (2, True)
    told = pmmrec("advise", "small", world / "boutique", "validation.judge=loss", "rank_test=false")
    assert (told.code, "advice compares rankings" in told.output) == (2, True)


@pytest.mark.parametrize("recipe", ["zoo/ids/small/sasrec", "zoo/ids/small/dssm"])
def test_a_checkpoint_that_knows_ids_is_refused_before_anything_is_measured(
    recipe: str, world: Path, pmmrec: Pmmrec, tmp_path: Path
) -> None:
    with working_in(tmp_path):
        trained = pmmrec("finetune", recipe, "--from", "none", "--on", world / "bazaar", "name=ids", "train.epochs=1")
        assert trained.code == 0, trained.output
        told = pmmrec("advise", "runs/ids/checkpoint", world / "boutique")
        assert (told.code, "knows items or users by id" in told.output) == (2, True)
        assert not list(Path("runs").glob("advise-*"))
