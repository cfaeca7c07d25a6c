"""Changes of settings and data make results stale, and others do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pmmrec.errors import RecipeError
from pmmrec.recipe import UNTOLD, FinetuneRecipe, read_recipe
from pmmrec.shipped import find_recipe
from tests.real.evidence import identity
from tests.real.evidence.identity import SEED, Identities, Identity, settings_of
from tests.real.evidence.read_plan import read_plan

REPOSITORY = Path(__file__).resolve().parents[3]
IDS, FULL, UNSEEN = "t/shop/ids", "t/shop/full", "t/shop/unseen"


def identities(
    folder: Path,
    *,
    ids: tuple[str, ...] = (),
    before: tuple[str, ...] = (),
    prints: dict[str, str] | None = None,
    words: str = "not tuned",
    **more: Any,
) -> Identities:
    """The identities of a plan with overrides of the id-only row (`ids`) and the pretraining (`before`)."""
    row = {
        "kind": "finetune",
        "recipe": "zoo/ids/small/sasrec_in_batch",
        "from": "none",
        "tuning": "none",
        "overrides": list(ids),
    }
    tree = {
        "title": "T",
        "tunings": {"none": words},
        "domains": {"films": {"folder": "films"}, "shop": {"folder": "shop"}},
        "pretrainings": {"films": {"recipe": "pretrain/tiny", "sources": ["films"], "overrides": list(before)}},
        "cells": {
            IDS: row | more,
            FULL: {"kind": "finetune", "recipe": "finetune/full", "from": "films", "tuning": "none"},
            UNSEEN: {"kind": "zero_shot", "from": "films", "tuning": "none"},
        },
        "tables": {"t": {"title": "T", "rows": [{"cell": IDS, "label": "ids"}]}},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(tree))
    return Identities(read_plan(folder / "plan.yaml"), {"films": "f1", "shop": "s1"} if prints is None else prints)


@pytest.fixture
def then(tmp_path: Path) -> Identities:
    return identities(tmp_path)


def test_the_same_plan_gives_the_same_hash(then: Identities, tmp_path: Path) -> None:
    again = identities(tmp_path)
    assert again.cell(IDS).hash == then.cell(IDS).hash
    assert again.cell(IDS).changes_since(then.cell(IDS).tree) == []
    assert len({then.cell(cell_id).hash for cell_id in (IDS, FULL, UNSEEN)}) == 3


def test_a_changed_setting_seed_or_fingerprint_makes_a_result_stale(then: Identities, tmp_path: Path) -> None:
    epochs = identities(tmp_path, ids=("train.epochs=3",)).cell(IDS)
    assert epochs.changes_since(then.cell(IDS).tree) == ["recipe.train.epochs"]
    assert epochs.hash != then.cell(IDS).hash
    assert identities(tmp_path, seeds=[1, 2]).cell(IDS).changes_since(then.cell(IDS).tree) == ["seeds"]
    other_data = identities(tmp_path, prints={"films": "f1", "shop": "s2"}).cell(IDS)
    assert other_data.changes_since(then.cell(IDS).tree) == ["domain.fingerprint"]


def test_a_changed_pretraining_only_makes_results_that_started_from_it_stale(then: Identities, tmp_path: Path) -> None:
    now = identities(tmp_path, before=("train.epochs=3",))
    for cell_id in (FULL, UNSEEN):
        assert now.cell(cell_id).changes_since(then.cell(cell_id).tree) == ["from.recipe.train.epochs"]
    assert now.cell(IDS).changes_since(then.cell(IDS).tree) == []
    other_source = identities(tmp_path, prints={"films": "f2", "shop": "s1"})
    assert other_source.cell(UNSEEN).changes_since(then.cell(UNSEEN).tree) == ["from.sources.films.fingerprint"]


def test_another_evidence_version_makes_everything_stale_and_version_one_is_not_stored(
    then: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, run, full = then.cell(IDS), then.run(IDS, 1), then.cell(FULL)
    assert "version" not in full.tree
    monkeypatch.setattr(identity, "EVIDENCE_VERSION", 2)
    now = identities(tmp_path)
    assert now.cell(IDS).changes_since(ids.tree) == ["version"]
    assert now.run(IDS, 1).changes_since(run.tree) == ["version"]
    assert now.cell(FULL).changes_since(full.tree) == ["from.version", "version"]
    assert now.cell(IDS).hash != ids.hash


def test_missing_data_makes_nothing_stale(then: Identities, tmp_path: Path) -> None:
    now = identities(tmp_path, prints={})
    for cell_id in (IDS, FULL, UNSEEN):
        assert now.cell(cell_id).changes_since(then.cell(cell_id).tree) == []


@pytest.mark.parametrize("setting", ["train.log_every=7", "machine.device=cpu", "cache=elsewhere", "hub=elsewhere"])
def test_settings_that_do_not_affect_metrics_make_nothing_stale(then: Identities, tmp_path: Path, setting: str) -> None:
    assert identities(tmp_path, ids=(setting,)).cell(IDS).hash == then.cell(IDS).hash


def test_the_text_on_tuning_makes_nothing_stale(then: Identities, tmp_path: Path) -> None:
    assert identities(tmp_path, words="20 trials").cell(IDS).hash == then.cell(IDS).hash


def test_a_new_setting_only_makes_results_stale_if_it_is_not_at_its_default(then: Identities) -> None:
    now = then.cell(IDS)
    kept: Any = yaml.safe_load(yaml.safe_dump(now.tree))
    del kept["recipe"]["train"]["clip_norm"]  # as if it were new; it stands at its default
    assert now.changes_since(kept) == []
    del kept["recipe"]["train"]["epochs"]  # as if it were new; the recipe chooses it
    assert now.changes_since(kept) == ["recipe.train.epochs"]


def test_an_added_or_removed_objective_makes_results_stale_even_without_settings() -> None:
    dap = {"type": "next_item", "weight": 1.0}
    one, two = {"objectives": {"dap": dap}}, {"objectives": {"dap": dap, "nid": {"type": "noise_detection"}}}
    assert Identity(two, {"objectives": {"dap": {}, "nid": {}}}).changes_since(one) == ["objectives.nid"]
    assert Identity(one, {"objectives": {"dap": {}}}).changes_since(two) == ["objectives.nid"]


def test_an_objective_that_is_taken_away_is_as_one_that_never_was() -> None:
    dap = {"type": "next_item", "weight": 1.0}
    one, two = {"objectives": {"dap": dap}}, {"objectives": {"dap": dap, "bce": None}}
    assert Identity(two, {"objectives": {"dap": {}, "bce": None}}).changes_since(one) == []
    assert Identity(one, {"objectives": {"dap": {}}}).changes_since(two) == []
    assert Identity(two, {"objectives": {"dap": {}, "bce": None}}).changes_since({"objectives": {"bce": dap}}) != []


def test_every_ignored_setting_exists() -> None:
    recipe = read_recipe(FinetuneRecipe, find_recipe("zoo/ids/small/sasrec_in_batch"))
    full, told = recipe.model_dump(mode="json"), settings_of(recipe).tree
    only_of_pretrainings = {"publish_as", "replace", "data.sources"}
    for path in {*UNTOLD, SEED} - only_of_pretrainings:
        before, after = full, told
        *above, last = path.split(".")
        for key in above:
            before, after = before[key], after[key]
        assert last in before, path
        assert last not in after, path


def test_an_error_in_a_recipe_names_its_place_in_the_plan(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"(?s)cells\.t/shop/ids: .*train\.epoch: unknown key; did you mean 'epochs'?"
    ):
        identities(tmp_path, ids=("train.epoch=3",)).cell(IDS)


def test_no_changed_default_makes_the_committed_results_stale() -> None:
    plan = read_plan(REPOSITORY / "zoo" / "evidence.yaml")
    now, found = Identities(plan, {}), 0
    for cell_id in plan.measured:
        path = REPOSITORY / "zoo" / "results" / f"{cell_id}.json"
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))["identity"]
            assert now.cell(cell_id).changes_since(stored) == [], cell_id
            found += 1
    assert found > 50
