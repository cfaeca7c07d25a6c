"""A pretraining whose epochs are judged by the validation targets of a platform that is no source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_line import SMALL, Pmmrec

from pmmrec.data.domain import Domain

BRIEF = (*SMALL, "train.epochs=2", "cache=c", "name=abroad")


def sources(world: Path, *names: str) -> str:
    return f"data.sources={json.dumps([str(world / name) for name in names])}"


def test_the_best_epoch_is_that_of_the_platform_and_all_files_say_so(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    judge = f"validation.domain={world / 'boutique'}"
    told = pmmrec("pretrain", "pretrain/tiny", *BRIEF, sources(world, "bazaar", "gallery"), judge, "rank_test=false")
    assert told.code == 0, told.output
    assert "epochs are judged by the validation targets of boutique, which is no source" in told.output
    run = home / "runs" / "abroad"
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    validations = [event for event in events if event["event"] == "validation"]
    assert {name for event in validations for name in event["domains"]} == {"boutique"}
    outcome = json.loads((run / "metrics.json").read_text())
    best = max(validations, key=lambda event: event["mean"]["ndcg@10"])
    assert (outcome["judged_by"], outcome["best_epoch"]) == ("boutique", best["epoch"])
    index = json.loads((run / "checkpoint" / "model_index.json").read_text())
    assert index["provenance"]["judged_by"] == {"boutique": Domain.open(world / "boutique").fingerprint}
    assert set(index["provenance"]["domains"]) == {"bazaar", "gallery"}  # nothing was learned from it
    pushed = pmmrec("zoo", "push", run / "checkpoint", home / "shelf" / "abroad")
    assert pushed.code == 0, pushed.output
    card = (home / "shelf" / "abroad" / "README.md").read_text(encoding="utf-8")
    assert "Its epoch was chosen by the validation targets of boutique, of which nothing was learned." in card
    assert yaml.safe_load((run / "checkpoint" / "recipe.yaml").read_text())["validation"]["domain"] == "boutique"
    again = pmmrec(
        "evaluate", run / "checkpoint", world / "boutique", "--scenario", "validation", "--out", "same", "--cache", "c"
    )
    assert again.code == 0, again.output
    measured = json.loads(Path("same/metrics.json").read_text())["domains"][0]["metrics"]["ndcg@10"]["mean"]
    assert measured == pytest.approx(best["mean"]["ndcg@10"], abs=1e-6)


@pytest.mark.parametrize(
    ("verb", "more", "why"),
    [
        ("pretrain", ("validation.domain=WORLD/gallery",), "gallery is a source, gallery; name a domain that is none"),
        ("pretrain", ("validation.domain=nowhere",), "nowhere"),
        (
            "pretrain",
            ("validation.domain=WORLD/boutique", "validation.judge=loss", "rank_test=false"),
            "domain: without effect, judge: loss ranks nothing",
        ),
        ("finetune", ("validation.domain=WORLD/bazaar",), "a fine-tuning is judged by the domain that it trains on"),
        ("ids", ("validation.domain=WORLD/boutique",), "knows items or users by id and can rank its sources alone"),
    ],
)
def test_a_platform_that_cannot_judge_is_refused(
    home: Path, world: Path, pmmrec: Pmmrec, verb: str, more: tuple[str, ...], why: str
) -> None:
    more = tuple(setting.replace("WORLD", str(world)) for setting in more)
    asked: tuple[object, ...] = ("pretrain", "pretrain/tiny", *BRIEF, sources(world, "bazaar", "gallery"), *more)
    if verb == "finetune":
        asked = ("finetune", "finetune/tiny", "--from", "none", "--on", world / "boutique", *more)
    if verb == "ids":
        asked = ("pretrain", "pretrain/peterrec", sources(world, "bazaar"), *more)
    told = pmmrec(*asked)
    assert told.code in (2, 3), told.output
    assert why in " ".join(told.output.split())
    assert not (home / "runs").exists()
