"""What a recipe says of places, names and parts, beyond what its owners check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pmmrec.errors import RecipeError
from pmmrec.recipe import FinetuneRecipe, PretrainRecipe, read_recipe
from pmmrec.settings import validate
from pmmrec.shipped import find_recipe
from pmmrec.zoo.checkpoint import Checkpoint

PLAIN = {"name": "one", "objectives": {"dap": {"type": "next_item"}}}


def finetuning(**values: Any) -> FinetuneRecipe:
    return validate(FinetuneRecipe, {**PLAIN, **values}, "f")


def test_a_home_folder_is_no_folder_called_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = finetuning(runs="~/runs", hub="~")
    assert (recipe.folder, recipe.hub) == (tmp_path / "runs" / "one", tmp_path)
    with pytest.raises(RecipeError, match=r"f: 1 problem\n  hub: .*nobody's home folder here; write the whole path"):
        finetuning(hub="~nobody-of-this-name/hub")


@pytest.mark.parametrize("values", [{"system": ""}, {"system": "../x"}, {"licence": ""}, {"licence": "mit\ntags: [x]"}])
def test_words_that_go_into_a_checkpoint_are_short_and_plain(values: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=rf"f: 1 problem\n  {next(iter(values))}: string should match"):
        finetuning(**values)


def test_what_is_published_of_a_recipe_names_no_place_of_the_machine(tmp_path: Path) -> None:
    places = [f"{key}={tmp_path / key}" for key in ("runs", "hub", "cache")]
    sources = f"data.sources=[{tmp_path / 'shop'}, demo/gallery/]"
    recipe = read_recipe(PretrainRecipe, find_recipe("pretrain/tiny"), [*places, sources])
    assert str(tmp_path) in recipe.to_yaml()
    assert str(tmp_path) not in recipe.to_public_yaml()
    again = validate(PretrainRecipe, yaml.safe_load(recipe.to_public_yaml()), "published")
    assert again.data.sources == (Path("shop"), Path("gallery"))
    assert again.model == recipe.model


@pytest.mark.parametrize("setting", [{"prefix_precision": "bfloat16"}, {"prefix_budget_gb": 7}])
def test_settings_of_kept_states_are_refused_where_none_are_kept(setting: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"{next(iter(setting))}: without effect, prefix_cache=off keeps no states"):
        finetuning(prefix_cache=False, **setting)
    for use in ("auto", "on"):
        finetuning(prefix_cache=use, **setting)


def test_a_recipe_without_kept_states_may_be_written_out_and_read_again() -> None:
    recipe = finetuning(prefix_cache="off")
    assert validate(FinetuneRecipe, yaml.safe_load(recipe.to_yaml()), "again") == recipe


@pytest.mark.parametrize("plan", [{}, {"fresh": ["*"], "drop": ["*"]}, {"load": ["text*"]}])
def test_a_transfer_that_takes_nothing_over_is_no_transfer(small_run: Path, plan: dict[str, list[str]]) -> None:
    checkpoint = Checkpoint.open(small_run / "hub" / "small")
    with pytest.raises(
        RecipeError, match=r"one: transfer: takes over no part of .*small, which holds text_encoder, vis"
    ):
        finetuning(transfer=plan).model_from(checkpoint)
    assert finetuning(transfer={"load": ["*"]}).model_from(checkpoint) == checkpoint.model_config


def test_validation_computes_metrics_at_any_cutoffs_and_chooses_by_any_of_them() -> None:
    validation = finetuning(validation={"cutoffs": [5, 100], "metric": "recall@7"}).validation
    assert list(validation.measured.names(of_several=False)) == [
        *("hr@5", "ndcg@5", "mrr@5", "hr@100", "ndcg@100", "mrr@100", "recall@7"),
    ]
    usual = finetuning().validation.measured.names(of_several=False)
    assert list(usual) == [f"{measure}@{cutoff}" for cutoff in (10, 20, 50) for measure in ("hr", "ndcg", "mrr")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "auc@10"}, r"validation.metric: 'auc@10' is not a metric; name hr, recall, ndcg, mrr or map"),
        ({"metric": "ndcg@0"}, r"validation.metric: 'ndcg@0' is not a metric"),
        ({"cutoffs": [10, 5, 10]}, r"validation.cutoffs: 10, 5, 10: a cut-off is listed twice; name each once"),
        ({"cutoffs": []}, r"validation.cutoffs"),
        ({"cutoffs": [0]}, r"validation.cutoffs\[0\]"),
    ],
)
def test_wrong_metrics_and_cutoffs_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        finetuning(validation=settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": {"judge": "loss"}}, "validation.judge: loss is for a stage that ranks nothing; say rank_test"),
        (
            {"validation": {"judge": "loss", "metric": "mrr", "cutoffs": [5]}, "rank_test": False},
            r"validation: metric, cutoffs: without effect, judge: loss ranks nothing; leave out, or say what is usual "
            r"over an extended recipe \(metric: ndcg@10, cutoffs: \[10, 20, 50\]\)",
        ),
    ],
)
def test_a_stage_judged_by_its_loss_ranks_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        finetuning(**settings)
    assert finetuning(validation={"judge": "loss"}, rank_test=False).validation.judged_by == "loss"
