"""The verbs of recipes: what is copied, shown and listed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import yaml
from command_line import Pmmrec

from pmmrec.recipe import PretrainRecipe, read_recipe
from pmmrec.shipped import find_recipe


def test_a_copied_recipe_stands_alone_and_means_the_same(home: Path, pmmrec: Pmmrec) -> None:
    assert pmmrec("recipe", "copy", "pretrain/pmmrec_paper", "mine.yaml").code == 0
    text = (home / "mine.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Pretrain PMMRec as the paper prints it")
    assert "extends" not in yaml.safe_load(text)
    assert pmmrec("recipe", "validate", "mine.yaml").output == "mine.yaml: valid, a recipe for `pmmrec pretrain`\n"
    shipped = read_recipe(PretrainRecipe, find_recipe("pretrain/pmmrec_paper"))
    assert read_recipe(PretrainRecipe, home / "mine.yaml") == shipped


@pytest.mark.parametrize("name", ["mine", "mine.json", "mine.yaml.txt"])
def test_a_copy_is_called_what_it_is(home: Path, pmmrec: Pmmrec, name: str) -> None:
    result = pmmrec("recipe", "copy", "pretrain/tiny", name)
    assert result.code == 2
    assert result.output.startswith(f"error: argument {name}: ")
    assert result.output.endswith("end the name in .yaml or .yml\n")
    assert not list(home.iterdir())


def test_a_copy_never_overwrites(home: Path, pmmrec: Pmmrec) -> None:
    (home / "mine.yaml").write_text("name: mine\n")
    result = pmmrec("recipe", "copy", "pretrain/tiny", "mine.yaml")
    assert (result.code, result.output) == (2, "error: mine.yaml: exists; choose another file\n")
    assert (home / "mine.yaml").read_text() == "name: mine\n"


def test_a_shown_recipe_holds_every_default_and_the_overrides(home: Path, pmmrec: Pmmrec) -> None:
    shown = pmmrec("recipe", "show", "pretrain/tiny", "train.epochs=3", "objectives.rcl=null")
    assert shown.code == 0
    tree = yaml.safe_load(shown.output)
    assert tree["train"]["epochs"] == 3
    assert tree["train"]["optimizer"]["betas"] == [0.9, 0.999]
    assert tree["objectives"]["rcl"] is None
    (home / "shown.yaml").write_text(shown.output, encoding="utf-8")
    assert pmmrec("recipe", "validate", "shown.yaml").code == 0


def test_listed_recipes_come_with_their_first_sentence(pmmrec: Pmmrec) -> None:
    lines = pmmrec("recipe", "list").output.splitlines()
    (full,) = [line for line in lines if line.startswith("finetune/full ")]
    assert full.split(maxsplit=1)[1].startswith("Full transfer: every part of the checkpoint")
    assert full.endswith("as finetune/scratch trains there.")


def test_a_recipe_that_cannot_be_copied_whole_leaves_nothing(
    home: Path, pmmrec: Pmmrec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(path: Path, text: str, **_: object) -> int:
        path.write_bytes(text[:10].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", cut_short)
    result = pmmrec("recipe", "copy", "pretrain/tiny", "mine.yaml")
    assert result.code == 4
    assert "mine.yaml: the disk is full" in result.output
    assert not list(home.iterdir())
