"""Recipes and programs are found in a checkout by the names that people use."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmmrec import shipped
from pmmrec.errors import RecipeError
from pmmrec.shipped import ROOMS, find_recipe, shipped_file, shipped_recipes, shipped_root


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


def test_recipes_are_named_by_room_and_file() -> None:
    for name, path in shipped_recipes().items():
        assert path.is_file()
        assert name == f"{path.parent.name}/{path.stem}"


def test_a_plan_of_measurements_is_shipped_but_no_recipe() -> None:
    assert shipped_file("zoo/evidence.yaml").is_file()
    assert "zoo/evidence" not in shipped_recipes()


def test_only_plans_of_measurements_in_the_zoo_are_no_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zoo/evidence.yaml", "zoo/evidence_gpu.yaml", "zoo/small.yaml", "finetune/evidence.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("name: x\n")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "pmmrec")  # as if this were the checkout
    assert list(shipped_recipes()) == ["finetune/evidence", "zoo/small"]


def test_a_recipe_is_found_with_and_without_its_ending(home: Path) -> None:
    assert find_recipe("pretrain/tiny") == find_recipe("pretrain/tiny.yaml") == shipped_recipes()["pretrain/tiny"]


def test_a_file_of_the_user_wins_over_a_shipped_one(home: Path) -> None:
    (home / "pretrain").mkdir()
    (home / "pretrain" / "tiny.yaml").write_text("name: mine\n")
    assert find_recipe("pretrain/tiny.yaml") == Path("pretrain/tiny.yaml")


def test_a_typo_is_told_the_nearest_name_and_a_stranger_all_names(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'pretrain/pmmrec_paper'\?"):
        find_recipe("pretrain/pmmrec_papr")
    with pytest.raises(RecipeError, match=r"shipped recipes: .*finetune/full"):
        find_recipe("zzz")
