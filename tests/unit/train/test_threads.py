"""Small models get one thread, larger ones all cores; a number that the user sets is followed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pmmrec.models.build import ModelConfig
from pmmrec.recipe import FinetuneRecipe, PretrainRecipe, read_recipe
from pmmrec.settings import read_extended, validate
from pmmrec.shipped import find_recipe, shipped_recipe
from pmmrec.train import threads
from pmmrec.train.threads import choose_threads, is_small, threads_for, usable_cores, using_threads


def _model(recipe: str, **changes: Any) -> ModelConfig:
    return validate(ModelConfig, {**read_extended(find_recipe(recipe), shipped_recipe)["model"], **changes}, recipe)


@pytest.mark.parametrize(
    ("recipe", "small"), [("zoo/tiny", True), ("zoo/sasrec", True), ("zoo/small", False), ("zoo/pmmrec", False)]
)
def test_models_that_start_narrow_are_small_and_pretrained_encoders_are_not(recipe: str, small: bool) -> None:
    assert is_small(_model(recipe)) is small


def test_a_wide_layer_anywhere_makes_a_model_large() -> None:
    assert is_small(_model("zoo/sasrec", width=128))
    assert not is_small(_model("zoo/sasrec", width=192))
    tree = read_extended(find_recipe("zoo/tiny"), shipped_recipe)["model"]
    tree["item_encoder"]["vision"]["architecture"]["hidden_size"] = 256
    assert not is_small(validate(ModelConfig, tree, "tree"))
    del tree["item_encoder"]["vision"]["architecture"]["hidden_size"]  # transformers makes it 768
    assert not is_small(validate(ModelConfig, tree, "tree"))


def test_the_setting_wins_over_the_environment_and_that_over_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 12)
    small, large = _model("zoo/tiny"), _model("zoo/pmmrec")
    assert choose_threads(5, small, {"OMP_NUM_THREADS": "3"}) == 5
    with using_threads(3):
        assert choose_threads("auto", small, {"OMP_NUM_THREADS": "3"}) == 3
    assert choose_threads("auto", small, {}) == 1
    assert choose_threads("auto", large, {}) == 12
    assert choose_threads("auto", None, {}) == 12
    assert choose_threads("auto", large, {"LOCAL_WORLD_SIZE": "4"}) == 3
    assert choose_threads("auto", large, {"LOCAL_WORLD_SIZE": "16"}) == 1
    assert choose_threads("auto", large, {"LOCAL_WORLD_SIZE": "0"}) == 12


@pytest.mark.parametrize(("told", "cores"), [("200000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 8)])
def test_the_quota_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(told)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores() == cores
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "none")
    assert usable_cores() == 8


def test_a_system_computes_with_its_own_number_of_threads_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with using_threads(2):
        with threads_for(_model("zoo/tiny")):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2


def test_the_number_of_threads_is_a_setting_that_changes_no_figure() -> None:
    recipe = read_recipe(PretrainRecipe, find_recipe("pretrain/tiny"), ["machine.threads=2"])
    assert recipe.machine.threads == 2
    assert recipe.told() == read_recipe(PretrainRecipe, find_recipe("pretrain/tiny")).told()
    assert read_recipe(FinetuneRecipe, find_recipe("finetune/tiny")).machine.threads == "auto"


_TELL = "import os, pmmrec, sys; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"


@pytest.mark.parametrize(("said", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_waiting_threads_sleep_unless_the_user_sets_otherwise(said: dict[str, str], policy: str) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    told = subprocess.run(
        [sys.executable, "-c", _TELL], env={**plain, **said}, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["False", policy]
