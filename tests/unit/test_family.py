"""Families: parts by name, with all their settings kept."""

from __future__ import annotations

import pytest

from pmmrec.errors import RecipeError
from pmmrec.family import Family
from pmmrec.settings import Config, PartConfig, validate


class GateConfig(PartConfig):
    num_heads: int = 2


gates: Family[object] = Family("gate", home="pmmrec.fusion")


@gates.register("plain", GateConfig)
class Plain:
    """A plain gate.

    With more words.
    """


class Owner(Config):
    gate: gates.field


def test_a_part_is_found_by_its_name() -> None:
    assert gates["plain"].part_class is Plain
    assert gates["plain"].summary == "A plain gate."


def test_a_name_taken_twice_is_an_error() -> None:
    with pytest.raises(RecipeError, match="registered twice"):
        gates.register("plain", GateConfig)(type("Other", (), {}))


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"gate: no gate is called 'plein'; did you mean 'plain'\?"):
        validate(Owner, {"gate": {"type": "plein"}}, "r")


def test_a_dump_keeps_all_settings_of_a_part() -> None:
    owner = validate(Owner, {"gate": {"type": "plain", "num_heads": 7}}, "r")
    assert owner.model_dump() == {"gate": {"type": "plain", "num_heads": 7}}
    assert validate(Owner, owner.model_dump(mode="json"), "r") == owner


def test_a_part_without_a_type_is_told_what_there_is() -> None:
    with pytest.raises(RecipeError, match="gate: must be a mapping with `type`, one of: plain"):
        validate(Owner, {"gate": {"num_heads": 7}}, "r")


def test_problems_inside_a_part_name_the_whole_path() -> None:
    with pytest.raises(RecipeError, match=r"gate\.num_head: unknown key; did you mean 'num_heads'\?"):
        validate(Owner, {"gate": {"type": "plain", "num_head": 7}}, "r")
