"""Settings from YAML and overrides: every problem in one report, nothing unsafe read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from pmmrec.errors import RecipeError
from pmmrec.settings import (
    Config,
    overlay,
    parse_overrides,
    parse_yaml,
    read_extended,
    read_yaml,
    validate,
)
from pmmrec.shipped import shipped_recipe


class Inner(Config):
    learning_rate: float = Field(1e-4, gt=0)
    epochs: int


class Outer(Config):
    inner: Inner
    several: list[Inner] = []
    blocks: int | str = 2


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert parse_yaml("a: 1e-4\nb: -1.5E+3\nc: 12", "f") == {"a": 1e-4, "b": -1500.0, "c": 12}


def test_all_problems_come_in_one_report_with_path_and_nearest_key() -> None:
    tree = {"inner": {"learning_rat": 1, "learning_rate": -1}, "several": [{"epoch": 3}], "inne": 1}
    with pytest.raises(RecipeError) as caught:
        validate(Outer, tree, "my.yaml")
    assert str(caught.value).splitlines() == [
        "my.yaml: 6 problems",
        "  inner.learning_rate: input should be greater than 0 (found -1)",
        "  inner.epochs: field required",
        "  inner.learning_rat: unknown key; did you mean 'learning_rate'?",
        "  several[0].epochs: field required",
        "  several[0].epoch: unknown key; did you mean 'epochs'?",
        "  inne: unknown key; did you mean 'inner'?",
    ]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: 2024-13-45", "f: line 1: '2024-13-45' is no timestamp; quote it if it is meant as text"),
        ("a: 1\nseed: !!int x", "f: line 2: 'x' is no int"),
        ("a: !!bool perhaps", "f: line 1: 'perhaps' is no bool"),
        ("a: !!timestamp now", "f: line 1: 'now' is no timestamp"),
        ("seed: " + "9" * 5000, "f: line 1: '999.* is no int"),
        ('runs: "a\\0b"', "f: line 1: .* holds a NUL"),
        ("a: " + "[" * 20_000, "f: nested too deeply"),
        ("a: " + "{a: " * 3_000 + "1" + "}" * 3_000, "f: nested too deeply"),
    ],
)
def test_a_value_that_yaml_itself_cannot_read_is_named(text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        parse_yaml(text, "f")


def test_not_a_number_is_no_setting() -> None:
    with pytest.raises(RecipeError, match="finite"):
        validate(Inner, {"epochs": 1, "learning_rate": float("nan")}, "f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2: key 'a' stands twice"),
        ("a: &x 1\nb: *x", "aliases are not read"),
        ("a: !!python/object/apply:os.system ['touch canary']", "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("? [1, 2]\n: 3", "a key must be a word"),
    ],
)
def test_unsafe_or_broken_yaml_is_refused_with_its_line(text: str, message: str, home: Path) -> None:
    with pytest.raises(RecipeError, match="f: line") as caught:
        parse_yaml(text, "f")
    assert message in str(caught.value)
    assert not (home / "canary").exists()


def test_a_file_that_is_no_mapping_or_no_text_is_refused(home: Path) -> None:
    (home / "list.yaml").write_text("- 1")
    (home / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(RecipeError, match="key: value"):
        read_yaml(home / "list.yaml")
    with pytest.raises(RecipeError, match="not UTF-8 text at byte 3"):
        read_yaml(home / "latin.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_yaml(home / "absent.yaml")
    for endless in (Path("/dev/zero"), home):
        with pytest.raises(RecipeError, match=rf"{endless}: is not a file"):
            read_yaml(endless)


def test_extends_lays_a_file_over_another_relative_to_itself(home: Path) -> None:
    (home / "below").mkdir()
    (home / "base.yaml").write_text("a: {x: 1, y: 2}\nb: 3")
    (home / "below" / "mine.yaml").write_text("extends: ../base.yaml\na: {y: 5}")
    assert read_extended(home / "below" / "mine.yaml", shipped_recipe) == {"a": {"x": 1, "y": 5}, "b": 3}


def test_a_circle_of_extends_is_refused(home: Path) -> None:
    (home / "a.yaml").write_text("extends: b.yaml")
    (home / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(RecipeError, match="leads back to itself"):
        read_extended(home / "a.yaml", shipped_recipe)


def test_extends_takes_a_shipped_name_where_no_file_lies_beside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mine.yaml").write_text("extends: pretrain/tiny\nname: mine")
    tiny = read_extended(shipped_recipe("pretrain/tiny"), shipped_recipe)
    assert read_extended(home / "mine.yaml", shipped_recipe) == {**tiny, "name": "mine"}
    (home / "mine.yaml").write_text("extends: pretrain/tiny.yaml")
    assert read_extended(home / "mine.yaml", shipped_recipe) == tiny
    (home / "pretrain").mkdir()
    (home / "pretrain" / "tiny.yaml").write_text("name: beside")
    assert read_extended(home / "mine.yaml", shipped_recipe) == {"name": "beside"}
    monkeypatch.setenv("HOME", str(home))
    (home / "mine.yaml").write_text("extends: ~/pretrain/tiny.yaml")
    assert read_extended(home / "mine.yaml", shipped_recipe) == {"name": "beside"}


def test_extends_of_nothing_says_where_it_looked_and_what_is_near(home: Path) -> None:
    (home / "mine.yaml").write_text("extends: pretrain/tny")
    with pytest.raises(
        RecipeError, match=r"mine\.yaml: extends: no file .*/pretrain/tny; .*did you mean 'pretrain/tiny'"
    ):
        read_extended(home / "mine.yaml", shipped_recipe)


def test_another_type_replaces_a_part_whole() -> None:
    base = {"fusion": {"type": "merge_attention", "num_heads": 12}}
    assert overlay(base, {"fusion": {"type": "sum"}}) == {"fusion": {"type": "sum"}}
    assert overlay(base, {"fusion": {"num_heads": 4}}) == {"fusion": {"type": "merge_attention", "num_heads": 4}}


def test_overrides_are_yaml_values_at_dotted_paths() -> None:
    assert parse_overrides(["a.b=1e-3", "a.c=[x, y]", "d=null"], {}) == {"a": {"b": 1e-3, "c": ["x", "y"]}, "d": None}


@pytest.mark.parametrize("wrong", ["a.b", "=1", "a..b=1"])
def test_an_override_without_key_or_value_is_refused(wrong: str) -> None:
    with pytest.raises(RecipeError, match="an override looks like"):
        parse_overrides([wrong], {})


@pytest.mark.parametrize("overrides", [["a.b=1"], ["a=word", "a.b=1"]])
def test_an_override_below_a_plain_value_is_refused(overrides: list[str]) -> None:
    base = {"a": "plan" if len(overrides) == 1 else None}
    with pytest.raises(RecipeError, match=r"'a.b=1': a is '(plan|word)', which has no b; give all of it as a=VALUE"):
        parse_overrides(overrides, base)


def test_an_override_below_nothing_makes_a_mapping() -> None:
    assert parse_overrides(["a.b.c=1"], {"a": None}) == {"a": {"b": {"c": 1}}}


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        Inner(epochs=1).epochs = 2  # type: ignore[misc]  # what is tested


class Shapes(Config):
    names: tuple[str, ...] = ()
    pair: tuple[float, float] = (0, 1)
    folder: Path = Path("here")
    inner: Inner = Inner(epochs=1)
    count: int | None = None
    blocks: int | Literal["all"] = "all"
    share: Annotated[float, Field(ge=0)] = 0.0
    is_on: bool = False


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"names": "one"}, r"names: must be a list, such as \[a, b\] \(found 'one'\)"),
        ({"names": [1]}, r"names\[0\]: must be text; quote it if it looks like something else \(found 1\)"),
        ({"pair": [1]}, r"pair\[1\]: field required"),
        ({"folder": 3}, r"folder: must be a path; quote it"),
        ({"inner": [1]}, r"inner: must be a mapping, such as {key: value} \(found \[1\]\)"),
    ],
)
def test_a_value_of_another_shape_is_told_in_words_of_yaml(tree: dict[str, object], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        validate(Shapes, tree, "f")


@pytest.mark.parametrize("name", ["count", "blocks", "share"])
def test_yes_is_no_number(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"f: 2 problems\n  colour: .*\n  {name}: must be a number, found true"):
        validate(Shapes, {name: True, "colour": 1}, "f")
    assert validate(Shapes, {"is_on": True}, "f").is_on


@pytest.mark.parametrize(
    ("text", "problem"),
    [("a: 1\nb: \x07", r"f: line 2: not valid YAML: unacceptable character"), ('a: "\\ud800"', "holds half a letter")],
)
def test_letters_that_are_none_are_refused(text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        parse_yaml(text, "f")
