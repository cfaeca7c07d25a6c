"""Threads are chosen among the free cores by the time of a step; a number that the user sets is followed."""

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
from pmmrec.train.threads import (
    ThreadChoice,
    choose_threads,
    cores_of_others,
    fastest,
    is_small,
    measured,
    threads_for,
    usable_cores,
    using_threads,
)


def _model(recipe: str, **changes: Any) -> ModelConfig:
    return validate(ModelConfig, {**read_extended(find_recipe(recipe), shipped_recipe)["model"], **changes}, recipe)


@pytest.mark.parametrize(
    ("recipe", "small"),
    [("zoo/tiny", True), ("zoo/ids/small/sasrec_in_batch", True), ("zoo/small", False), ("zoo/pmmrec", False)],
)
def test_models_that_start_narrow_are_small_and_pretrained_encoders_are_not(recipe: str, small: bool) -> None:
    assert is_small(_model(recipe)) is small


def test_a_wide_layer_anywhere_makes_a_model_large() -> None:
    assert is_small(_model("zoo/ids/small/sasrec_in_batch", width=128))
    assert not is_small(_model("zoo/ids/small/sasrec_in_batch", width=192))
    tree = read_extended(find_recipe("zoo/tiny"), shipped_recipe)["model"]
    tree["item_encoder"]["vision"]["architecture"]["hidden_size"] = 256
    assert not is_small(validate(ModelConfig, tree, "tree"))
    del tree["item_encoder"]["vision"]["architecture"]["hidden_size"]  # transformers makes it 768
    assert not is_small(validate(ModelConfig, tree, "tree"))


def test_the_setting_wins_over_the_environment_and_that_over_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 12)
    monkeypatch.setattr(threads, "cores_of_others", lambda: 0.2)
    small, large = _model("zoo/tiny"), _model("zoo/pmmrec")
    assert choose_threads(5, small, {"OMP_NUM_THREADS": "3"}).number == 5
    with using_threads(3):
        assert choose_threads("auto", small, {"OMP_NUM_THREADS": "3"}).number == 3
    assert choose_threads("auto", small, {}).number == 1
    assert choose_threads("auto", large, {}).number == 12
    assert choose_threads("auto", None, {}).number == 12
    assert choose_threads("auto", large, {"LOCAL_WORLD_SIZE": "4"}).number == 3
    assert choose_threads("auto", large, {"LOCAL_WORLD_SIZE": "16"}).number == 1
    assert choose_threads("auto", large, {"LOCAL_WORLD_SIZE": "0"}).number == 12


@pytest.mark.parametrize(("others", "number"), [(0.1, 8), (3.4, 5), (7.9, 1), (8.0, 1)])
def test_cores_that_other_programs_use_are_left_to_them(
    monkeypatch: pytest.MonkeyPatch, others: float, number: int
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    monkeypatch.setattr(threads, "cores_of_others", lambda: others)
    choice = choose_threads("auto", _model("zoo/pmmrec"), {})
    assert (choice.number, choice.most) == (number, number)
    assert choice.why == f"{number} of 8 cores {'is' if number == 1 else 'are'} free"


def test_other_programs_keep_no_more_cores_busy_than_there_are() -> None:
    assert 0 <= cores_of_others(listen_s=0.02) <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("best_s", "number"),
    [
        ({1: 1.0, 2: 0.6, 8: 0.3}, 8),
        ({1: 1.0, 2: 0.97, 8: 0.96}, 1),
        ({1: 1.0, 2: 0.6, 8: 0.58}, 2),
        ({1: 1.0, 2: 0.96, 8: 0.94}, 2),
        ({1: 1.0}, 1),
    ],
)
def test_more_threads_must_be_faster_by_a_twentieth(best_s: dict[int, float], number: int) -> None:
    assert fastest(best_s) == number


def test_each_number_is_timed_several_times_and_the_number_of_before_comes_back() -> None:
    used: list[int] = []
    before = torch.get_num_threads()
    choice = measured(3, lambda: used.append(torch.get_num_threads()))
    assert used == [1, *([1, 2, 3] * threads.ROUNDS)]
    assert torch.get_num_threads() == before
    assert choice.most is None
    assert choice.why.startswith("a step takes ")


def test_a_resumed_run_keeps_its_number_unless_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    free = ThreadChoice(4, "free", most=4)
    assert free.kept({"threads": 2}) == ThreadChoice(2, "as when this run began")
    assert free.kept({"threads": 8}) is free  # of a larger machine
    assert free.kept({}) is free
    set_now = ThreadChoice(1, "set by machine.threads")
    assert set_now.kept({"threads": 2}) is set_now


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
