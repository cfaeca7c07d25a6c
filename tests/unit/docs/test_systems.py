"""Every row of docs/systems.md that is a setting of a recipe is one that the recipe takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pmmrec.recipe import FinetuneRecipe, read_recipe
from pmmrec.shipped import find_recipe

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "systems.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+) \| `(zoo/[a-z0-9_/]+)` \| `(.+)` \|$", PAGE, flags=re.MULTILINE)


def test_the_rows_are_read() -> None:
    folders = re.findall(r"^\| `zoo/[a-z_]+` \|", PAGE, flags=re.MULTILINE)
    assert len(ROWS) == PAGE.count("| `zoo/") - len(folders)
    assert len(ROWS) > 20


@pytest.mark.parametrize(("row", "recipe", "settings"), ROWS, ids=lambda word: word[:40])
def test_a_recipe_takes_the_settings_of_a_row(row: str, recipe: str, settings: str) -> None:
    path = find_recipe(recipe)
    changed = read_recipe(FinetuneRecipe, path, shlex.split(settings))
    assert changed != read_recipe(FinetuneRecipe, path), row
