"""`pmmrec.fit` trains from Python and gives the run, its system and its metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pmmrec
from pmmrec.data.domain import Domain
from pmmrec.errors import RecipeError

RECIPE = "zoo/ids/small/sasrec"
QUICK = ("train.epochs=1", "cache=c")


def test_tables_become_a_domain_and_a_run_with_its_system_and_metrics(home: Path, world: Path) -> None:
    goods, sales = Domain.open(world / "boutique").to_arrow()
    run = pmmrec.fit(RECIPE, "name=first", *QUICK, on=(goods, sales), domain="shop", start_from="none", k_core=None)
    assert run.folder == home / "runs" / "first"
    told = json.loads((run.folder / "metrics.json").read_text())["domains"][0]["metrics"]
    assert run.metrics["shop"] == {name: interval["mean"] for name, interval in told.items()}
    assert "ndcg@10" in run.metrics["shop"]
    domain = Domain.open(home / "shop")
    run.system.encode_items(domain)
    best = run.system.recommend(domain.item_ids.to_pylist()[:2], k=3)
    assert len(best) == 3
    again = pmmrec.fit(RECIPE, "name=again", *QUICK, on=domain, start_from="none")
    assert again.metrics == run.metrics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on": "shop"}, "on= and start_from= go together"),
        ({"on": ({}, {}), "start_from": "none"}, "domain=FOLDER go together"),
        ({"on": "shop", "start_from": "none", "k_core": 3}, "domain=FOLDER go together"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(home: Path, settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        pmmrec.fit(RECIPE, **settings)
    assert not list(home.iterdir())
