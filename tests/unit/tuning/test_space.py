"""A search space is read and checked against the recipe, and every mistake is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmmrec.errors import RecipeError
from pmmrec.recipe import FinetuneRecipe, PretrainRecipe, read_recipe, recipe_tree
from pmmrec.shipped import find_recipe, shipped_file, shipped_recipes
from pmmrec.tuning.space import Space, keys_of, read_space


def _space(folder: Path, *lines: str) -> Space:
    path = folder / "space.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_space(path)


def _against(space: Space, name: str = "zoo/ids/small/sasrec_in_batch", *overrides: str) -> dict:
    path = find_recipe(name)
    recipe_class = PretrainRecipe if name.startswith("pretrain") else FinetuneRecipe
    recipe, tree = read_recipe(recipe_class, path, overrides), recipe_tree(path, overrides)
    space.refuse_invalid(recipe, tree)
    return space.own_values(recipe, tree)


def _told(folder: Path, *lines: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        _against(_space(folder, *lines))
    first, *problems = str(caught.value).splitlines()
    assert first.startswith(f"{folder / 'space.yaml'}: {len(problems)} problem")
    return [problem.strip() for problem in problems]


def test_four_kinds_of_dimension_are_read(tmp_path: Path) -> None:
    space = _space(
        tmp_path,
        "train.optimizer.learning_rate: {log: [1e-4, 1e-2]}",
        "train.optimizer.warmup: {uniform: [0, 0.5]}",
        "model.user_encoder.num_layers: {int: [1, 3]}",
        "data.window.policy: {choice: [latest, all]}",
    )
    assert [dimension.probes for dimension in space.dimensions.values()] == [
        (1e-4, pytest.approx(0.00388146, rel=1e-5), 1e-2),
        (0, pytest.approx(0.190983, rel=1e-5), 0.5),
        (1, 3),
        ("latest", "all"),
    ]
    own = {"learning_rate": 1e-3, "warmup": 0.0, "num_layers": 2, "policy": "all"}
    assert {path.rpartition(".")[2]: value for path, value in _against(space).items()} == own


def test_a_value_outside_the_space_is_not_the_recipes_own(tmp_path: Path) -> None:
    space = _space(
        tmp_path,
        "train.optimizer.learning_rate: {log: [1e-5, 1e-4]}",
        "train.optimizer.weight_decay: {choice: [0, 0.1]}",
        "train.clip_norm: {uniform: [0.5, 2]}",
    )
    assert _against(space) == {"train.clip_norm": 1.0}
    assert _against(
        space, "zoo/ids/small/sasrec_in_batch", "train.optimizer.weight_decay=0", "train.clip_norm=null"
    ) == {"train.optimizer.weight_decay": 0}


def test_a_setting_may_be_searched_under_its_earlier_name(tmp_path: Path) -> None:
    space = _space(tmp_path, "data.corruption.shuffle: {choice: [0.15, 0.5]}")
    assert _against(space, "pretrain/tiny", "data.sources=[a]") == {"data.corruption.shuffle": 0.15}
    without = ("objectives.nid=null", "objectives.rcl=null")
    with pytest.raises(RecipeError, match=r"1 problem\n  data\.corruption: has no effect"):
        _against(space, "pretrain/tiny", "data.sources=[a]", *without)


def test_a_choice_can_be_a_mapping(tmp_path: Path) -> None:
    space = _space(tmp_path, "objectives.dap: {choice: [{type: next_item, temperature: 1.0}, {type: next_item}]}")
    assert _against(space) == {"objectives.dap": {"type": "next_item", "temperature": 1.0}}


def test_a_key_that_contains_dots_is_written_in_quotes(tmp_path: Path) -> None:
    path = 'train.optimizer.parts."text_encoder.backbone".learning_rate'
    assert keys_of(path) == ["train", "optimizer", "parts", "text_encoder.backbone", "learning_rate"]
    space = _space(tmp_path, f"{path}: {{log: [1e-5, 1e-3]}}")
    override = "train.optimizer.parts={text_encoder.backbone: {learning_rate: 2e-4}}"
    assert _against(space, "finetune/scratch", override) == {path: 2e-4}
    parts = space.tree({path: 0.5})["train"]["optimizer"]["parts"]
    assert parts == {"text_encoder.backbone": {"learning_rate": 0.5}}


def test_every_problem_of_a_file_is_reported_at_once(tmp_path: Path) -> None:
    assert _told(
        tmp_path,
        "a.a: {lgo: [1e-4, 1e-2]}",
        "a.b: {log: [0, 1]}",
        'a.c: {uniform: [1, "2"]}',
        "a.d: {int: [3, 2]}",
        "a.e: {int: [1, 2.5]}",
        "a.f: {uniform: [true, 2]}",
        "a.g: {choice: [3]}",
        "a.h: {choice: [3, 4, 3]}",
        "a.i: {log: [1, 2], int: [1, 2]}",
        "a.j: {}",
        "a.k: 3",
        "a.l: {uniform: [0, .inf]}",
        "a.m: {choice: [1, 1.0, true]}",
        "a.n: {int: [1, 99999999999999999999]}",
    ) == [
        "a.a.lgo: unknown key; did you mean 'log'?",
        "a.b.log[0]: input should be greater than 0 (found 0)",
        "a.c.uniform[1]: input should be a valid number (found '2')",
        "a.d: the first end must be below the second, found [3, 2]",
        "a.e.int[1]: input should be a valid integer (found 2.5)",
        "a.f.uniform[0]: input should be a valid number (found True)",
        "a.g.choice: needs 2 or more entries (found [3])",
        "a.h: choice: 3 is listed twice; keep one",
        "a.i: give one of log, uniform, int, choice; found log and int",
        "a.j: give one of log, uniform, int, choice; found none",
        "a.k: must be a mapping, such as {key: value} (found 3)",
        "a.l.uniform[1]: input should be a finite number (found inf)",
        "a.m: choice: 1.0 is listed twice; keep one",
        "a.n.int[1]: input should be less than or equal to 9007199254740992 (found 99999999999999999999)",
    ]


def test_settings_that_would_make_trials_incomparable_cannot_be_searched(tmp_path: Path) -> None:
    told = _told(
        tmp_path,
        "seed: {int: [1, 9]}",
        "validation.metric: {choice: [hr@10, ndcg@10]}",
        "data: {choice: [{}, {sources: [a]}]}",
        "rank_test: {choice: [true, false]}",
    )
    assert [problem.partition(" cannot be searched: ")[0] for problem in told] == [
        "seed: seed",
        "validation.metric: validation.metric",
        "data: data.sources",
        "data: data.holdout",
        "data: data.users",
        "rank_test: rank_test",
    ]


def test_invalid_and_overlapping_paths_are_reported(tmp_path: Path) -> None:
    told = _told(
        tmp_path,
        "train..epochs: {int: [1, 2]}",
        'train."epochs: {int: [1, 2]}',
        "model.user_encoder: {choice: [{type: transformer}, {}]}",
        "model.user_encoder.num_layers: {int: [1, 2]}",
    )
    assert [problem.partition(":")[0] for problem in told] == ["train..epochs", 'train."epochs', "model.user_encoder"]
    assert "overlaps with model.user_encoder.num_layers" in told[2]


def test_every_end_and_choice_is_checked_against_the_recipe(tmp_path: Path) -> None:
    assert _told(
        tmp_path,
        "train.optimizer.learning_rat: {log: [1e-4, 1e-2]}",
        "train.optimizer.weight_decay: {choice: [0, -0.01]}",
        "model.user_encoder.num_layers: {int: [0, 3]}",
        "train.optimizer.parts.a.b.learning_rate: {uniform: [0, 0.5]}",
        "model.user_encoder.num_heads: {int: [2, 3]}",
    )[:4] == [
        "train.optimizer.learning_rat: unknown key; did you mean 'learning_rate'?",
        "train.optimizer.weight_decay: input should be greater than or equal to 0 (found -0.01)",
        "model.user_encoder.num_layers: input should be greater than or equal to 1 (found 0)",
        "train.optimizer.parts.a.b: unknown key; known here: learning_rate, warmup, weight_decay "
        '(a key that contains dots is written in quotes: a."b.c".d)',
    ]


def test_a_uniform_dimension_of_a_setting_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    (problem,) = _told(tmp_path, "train.batch_users: {uniform: [1, 2]}")
    assert problem.startswith("train.batch_users: input should be a valid integer, got a number with a fractional part")


@pytest.mark.parametrize("text", ["", "{}", "- a", "3: {int: [1, 2]}", "a: {int: [1, 2]}\na: {int: [1, 3]}"])
def test_a_file_that_is_not_a_space_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"space\.yaml"):
        read_space(path)


def test_the_shipped_space_fits_the_recipe_it_is_made_for() -> None:
    space = read_space(shipped_file("finetune/spaces/small.yaml"))
    assert _against(space, "finetune/small").keys() == space.dimensions.keys()
    assert not [name for name in shipped_recipes() if "spaces" in name]
