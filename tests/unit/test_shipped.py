"""Recipes and programs are found in a checkout by the names that people use."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmmrec import shipped
from pmmrec.errors import RecipeError
from pmmrec.renamed import RenamedSettingWarning
from pmmrec.shipped import (
    RENAMED_RECIPES,
    ROOMS,
    find_recipe,
    shipped_file,
    shipped_recipe,
    shipped_recipes,
    shipped_root,
)


def test_a_checkout_is_read_where_it_stands() -> None:
    root = shipped_root()
    assert root == Path(__file__).resolve().parents[2]
    assert all((root / room).is_dir() for room in ROOMS)


def test_both_programs_and_the_launch_files_are_shipped() -> None:
    for name in ("pretrain/run.py", "finetune/run.py", "launch/quickstart.sh"):
        assert shipped_file(name).is_file()


@pytest.mark.parametrize(
    "name", ["pretrain/none.yaml", "pretrain", "../pyproject.toml", "pmmrec/cli/zoo.py", "/etc/hosts"]
)
def test_what_is_not_shipped_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="no such file, here or among the shipped ones"):
        shipped_file(name)


def test_recipes_are_named_by_folders_and_file() -> None:
    for name, path in shipped_recipes().items():
        assert path.is_file()
        assert path == shipped_root() / f"{name}.yaml"


def test_a_plan_of_measurements_is_shipped_but_no_recipe() -> None:
    assert shipped_file("zoo/evidence.yaml").is_file()
    assert "zoo/evidence" not in shipped_recipes()


def test_recipes_are_found_by_their_folders_and_plans_of_measurements_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = ["finetune/evidence", "zoo/small", "zoo/ids/a", "zoo/ids/small/a"]
    others = ["zoo/evidence", "zoo/evidence_gpu", "finetune/spaces/small", "zoo/results/a/b/c"]
    for name in (f"{recipe}.yaml" for recipe in (*recipes, *others)):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("name: x\n")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "pmmrec")  # as if this were the checkout
    assert list(shipped_recipes()) == recipes


def test_a_recipe_is_found_with_and_without_its_ending(home: Path) -> None:
    assert find_recipe("pretrain/tiny") == find_recipe("pretrain/tiny.yaml") == shipped_recipes()["pretrain/tiny"]


@pytest.mark.parametrize("name", RENAMED_RECIPES)
def test_a_recipe_is_found_by_its_earlier_name_with_a_word_about_todays(name: str) -> None:
    today = RENAMED_RECIPES[name]
    with pytest.warns(RenamedSettingWarning, match=f"recipe {name} is called {today} now"):
        assert find_recipe(f"{name}.yaml") == shipped_recipe(f"../{name}.yaml") == shipped_recipes()[today]


def test_a_file_of_the_user_wins_over_a_shipped_one(home: Path) -> None:
    (home / "pretrain").mkdir()
    (home / "pretrain" / "tiny.yaml").write_text("name: mine\n")
    assert find_recipe("pretrain/tiny.yaml") == Path("pretrain/tiny.yaml")


def test_a_typo_is_told_the_nearest_name_and_a_stranger_all_names(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'pretrain/pmmrec_paper'\?"):
        find_recipe("pretrain/pmmrec_papr")
    with pytest.raises(RecipeError, match=r"shipped recipes: .*finetune/full"):
        find_recipe("zzz")
