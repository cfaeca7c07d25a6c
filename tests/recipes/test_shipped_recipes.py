"""Every shipped recipe is valid, keeps all its settings when dumped, and says in its first line what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pmmrec.errors import RecipeError
from pmmrec.recipe import FinetuneRecipe, PretrainRecipe, read_recipe, recipe_class_for, recipe_tree
from pmmrec.renamed import RenamedSettingWarning
from pmmrec.report.systems import Head
from pmmrec.requests import Noised
from pmmrec.settings import validate
from pmmrec.shipped import find_recipe, shipped_file, shipped_recipes

RECIPES = shipped_recipes()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_its_dump_reads_as_the_same(name: str) -> None:
    path = RECIPES[name]
    recipe_class = recipe_class_for(recipe_tree(path))
    recipe = read_recipe(recipe_class, path)
    again = validate(recipe_class, yaml.safe_load(recipe.to_yaml()), "dump")
    assert again == recipe
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", [name for name in RECIPES if name.count("/") > 1 or name.startswith("zoo/pmmrec")])
def test_the_recipe_of_a_system_begins_with_its_paper_its_table_and_what_differs(name: str) -> None:
    assert Head.read(RECIPES[name]) is not None
    for line in RECIPES[name].read_text(encoding="utf-8").splitlines()[:3]:
        assert line.endswith("."), f"{line}: one sentence"
        assert ". " not in line, f"{line}: one sentence"
        assert len(line) <= 120, line


@pytest.mark.parametrize("name", [name for name in RECIPES if "/small/" in name])
def test_a_small_system_is_64_wide(name: str) -> None:
    assert (
        recipe_tree(RECIPES[name]).get("model", {"width": 64})["width"] == 64
    )  # adapters have the model of their base


def test_a_fine_tuning_has_another_folder_of_runs_than_its_pretraining() -> None:
    pairs = {
        "zoo/ids/peterrec": "pretrain/peterrec",
        **{name: name.replace("finetune/", "pretrain/") for name in RECIPES if name.startswith("finetune/")},
    }
    both = [(one, before) for one, before in pairs.items() if before in RECIPES]
    assert len(both) > 6
    for one, before in both:
        assert recipe_tree(RECIPES[one])["name"] != recipe_tree(RECIPES[before])["name"], one


def test_the_paper_recipe_is_literal_and_the_other_is_scaled() -> None:
    paper = read_recipe(PretrainRecipe, RECIPES["pretrain/pmmrec_paper"]).active_objectives
    ours = read_recipe(PretrainRecipe, RECIPES["pretrain/pmmrec"]).active_objectives
    assert list(paper) == list(ours) == ["dap", "nicl", "nid", "rcl"]
    assert paper["dap"].temperature == 1.0
    assert ours["dap"].temperature == "sqrt_width"
    assert (paper["nicl"].temperature, paper["nicl"].positives_in_denominator) == (1.0, False)
    assert (ours["nicl"].temperature, ours["nicl"].positives_in_denominator) == (0.1, True)
    assert (paper["rcl"].normalize, ours["rcl"].normalize) == (False, True)


def test_both_large_recipes_have_the_sizes_of_the_released_code() -> None:
    for name in ("pretrain/pmmrec", "pretrain/pmmrec_paper"):
        recipe = read_recipe(PretrainRecipe, RECIPES[name])
        towers = recipe.model.item_encoder
        assert recipe.model.width == 768
        assert (towers.text.max_tokens, towers.text.trainable_blocks, towers.vision.trainable_blocks) == (50, 2, 2)
        assert recipe.data.window.size == 21
        assert (recipe.train.optimizer.learning_rate, recipe.train.optimizer.weight_decay) == (1e-4, 0.1)
        for part in ("text_encoder.backbone", "vision_encoder.backbone"):
            assert recipe.train.optimizer.parts[part].weight_decay == 0


def test_contradictory_settings_are_refused_with_their_path() -> None:
    with pytest.raises(RecipeError, match=r"objectives\.nicl: .*temperature"):
        read_recipe(PretrainRecipe, RECIPES["pretrain/pmmrec"], ["objectives.nicl.positives_in_denominator=false"])
    with pytest.raises(RecipeError, match="fusion"):
        read_recipe(PretrainRecipe, RECIPES["pretrain/pmmrec"], ["model.item_encoder.fusion=null"])


@pytest.mark.parametrize("name", ["a.b", "training", "keys", "", "../x"])
def test_a_name_under_which_nothing_can_be_kept_is_no_name_of_an_objective(name: str) -> None:
    with pytest.raises(RecipeError, match=r"objectives\."):
        read_recipe(PretrainRecipe, RECIPES["pretrain/tiny"], [f"objectives={{'{name}': {{type: next_item}}}}"])


def test_noise_is_read_where_earlier_versions_kept_it() -> None:
    with pytest.warns(RenamedSettingWarning, match=r"objectives\.nid\.noise and objectives\.rcl\.noise"):
        recipe = read_recipe(PretrainRecipe, RECIPES["pretrain/tiny"], ["data.corruption={shuffle: 0.5}"])
    noised = [recipe.objectives[name].noise for name in ("nid", "rcl")]
    assert noised == [Noised(shuffle=0.5)] * 2
    told = recipe.to_yaml().replace(
        "data:\n", "data:\n  corruption: {replace: 0.05, replace_from: domain, shuffle: 0.15}\n"
    )
    assert recipe.reread(told) == recipe.to_yaml()


@pytest.mark.parametrize("name", ["pretrain/tiny", "zoo/ids/small/sasrec_in_batch"])
def test_what_an_earlier_search_recorded_of_a_recipe_is_read_in_the_words_of_today(name: str) -> None:
    recipe_class = PretrainRecipe if name == "pretrain/tiny" else FinetuneRecipe
    recipe = read_recipe(recipe_class, RECIPES[name], ["data.sources=[a, b]"] if name == "pretrain/tiny" else [])
    today = json.loads(json.dumps(recipe.told()))
    earlier = json.loads(json.dumps(today))
    earlier["data"]["corruption"] = {"replace": 0.05, "replace_from": "domain", "shuffle": 0.15}
    for objective in earlier["objectives"].values():
        objective.pop("noise", None)
    del earlier["data"]["split"], earlier["validation"]["judge"], earlier["validation"]["cutoffs"]
    encoder = earlier["model"]["user_encoder"]
    encoder["is_causal"] = encoder.pop("attends") == "past"
    assert json.loads(json.dumps(recipe.retold(earlier))) == today != earlier
    unreadable = {**earlier, "nonsense": 1}
    assert recipe.retold(unreadable) == unreadable


def test_noise_that_no_objective_reads_is_refused_where_earlier_versions_kept_it() -> None:
    without = ["objectives.nid=null", "objectives.rcl=null"]
    read_recipe(PretrainRecipe, RECIPES["pretrain/tiny"], [*without, "data.corruption.shuffle=0.15"])  # as it is
    with pytest.raises(RecipeError, match=r"data\.corruption: has no effect"):
        read_recipe(PretrainRecipe, RECIPES["pretrain/tiny"], [*without, "data.corruption.shuffle=0.5"])


def test_a_transfer_from_nothing_is_refused() -> None:
    recipe = read_recipe(FinetuneRecipe, RECIPES["finetune/tiny"], ["transfer={load: ['*']}"])
    with pytest.raises(RecipeError, match="transfer: has no effect with `--from none`"):
        recipe.model_from(None)


def test_a_feature_that_a_recipe_reads_can_be_left_out() -> None:
    content = "model.item_encoder.content"
    changed = [f"{content}.features.image_content=null", f"{content}.join=add", f"{content}.attributes.brand=3"]
    encoder = read_recipe(FinetuneRecipe, RECIPES["zoo/ids_and_content/fdsa"], changed).model.item_encoder
    assert encoder.content.features == {"content": 768}
    assert encoder.content.attributes == {"brand": 3}
    with pytest.raises(RecipeError, match="join: attention weighs several fields, and there is one"):
        read_recipe(FinetuneRecipe, RECIPES["zoo/ids_and_content/fdsa"], changed[:1])


def test_taking_every_objective_away_is_refused() -> None:
    with pytest.raises(RecipeError, match="at least one"):
        read_recipe(FinetuneRecipe, RECIPES["finetune/full"], ["objectives.dap=null"])


def test_a_file_of_the_user_wins_and_a_typo_is_told_the_nearest(home: Path) -> None:
    (home / "mine.yaml").write_text("name: mine")
    assert find_recipe("mine.yaml") == Path("mine.yaml")
    with pytest.raises(RecipeError, match="did you mean 'finetune/scratch'"):
        find_recipe("finetune/scrach")


def test_shipped_files_cannot_lead_out_of_their_rooms() -> None:
    for name in ("../pyproject.toml", "pmmrec/cli/zoo.py", "pretrain/../pyproject.toml"):
        with pytest.raises(RecipeError, match="no such file"):
            shipped_file(name)
