"""The list of systems says of each what its parts say."""

from __future__ import annotations

import json

import pytest
from command_line import Pmmrec

from pmmrec.errors import RecipeError
from pmmrec.report.systems import SystemFacts, system_facts, systems_table
from pmmrec.shipped import shipped_recipes


@pytest.fixture(scope="module")
def facts() -> dict[str, SystemFacts]:
    return {one.recipe: one for one in system_facts()}


def test_every_system_is_listed_once(facts: dict[str, SystemFacts]) -> None:
    in_folders = [name for name in shipped_recipes() if name.count("/") > 1]
    listed = [*facts, *(one.small for one in facts.values() if one.small not in (None, one.recipe))]
    assert sorted(listed) == sorted([*in_folders, "zoo/pmmrec", "zoo/pmmrec_text", "zoo/pmmrec_vision"])


@pytest.mark.parametrize(
    ("recipe", "reads", "objective", "trains", "transfers", "scorer"),
    [
        ("zoo/ids/sasrec_s2o", "ids", "bce (last)", "item_table, user_encoder", "user_encoder", "dot"),
        ("zoo/ids/dssm", "ids, users", "bce", "item_table, user_encoder", "none", "dot"),
        ("zoo/ids/lightgcn", "ids, users, graph", "bpr, embedding_l2", "item_table, user_encoder", "none", "dot"),
        (
            "zoo/content/mmsr",
            "text, image",
            "bce",
            "text_encoder (top 2 blocks), vision_encoder (top 2 blocks), fusion, user_encoder",
            "text_encoder, vision_encoder, fusion, user_encoder",
            "dot",
        ),
        ("zoo/content/dssm_text", "text, users", "bce", "text_encoder, user_encoder", "text_encoder", "dot"),
        (
            "zoo/vectors/ts",
            "feature content",
            "bce",
            "feature_encoder, user_encoder",
            "feature_encoder, user_encoder",
            "dot",
        ),
        (
            "zoo/content/adapter4rec",
            "as its checkpoint",
            "bce",
            "houlsby in text_encoder, houlsby in user_encoder",
            "all parts",
            "as its checkpoint",
        ),
        (
            "zoo/ids/small/sasrec_attention",
            "ids",
            "bce",
            "item_table, user_encoder, scorer",
            "user_encoder, scorer",
            "attention, num_heads 2",
        ),
    ],
)
def test_a_row_is_read_off_the_parts_of_the_recipe(
    facts: dict[str, SystemFacts],
    recipe: str,
    reads: str,
    objective: str,
    trains: str,
    transfers: str,
    scorer: str,
) -> None:
    (row,) = systems_table([facts[recipe]]).rows
    assert (row[0], *row[3:]) == (recipe, reads, objective, trains, transfers, scorer)


def test_a_papers_systems_are_found_in_any_case(facts: dict[str, SystemFacts]) -> None:
    found = {one.recipe for one in system_facts("ninerec")}
    assert found == {name for name, one in facts.items() if "NineRec" in one.paper + one.table}
    with pytest.raises(RecipeError, match="no system has 'nobody' in its name, paper or table"):
        system_facts("nobody")


def test_the_command_prints_a_table_or_json(pmmrec: Pmmrec) -> None:
    shown = pmmrec("zoo", "systems", "--of", "Adapter4Rec")
    assert shown.code == 0, shown.output
    assert "houlsby in text_encoder" in shown.output
    (told,) = json.loads(pmmrec("zoo", "systems", "--of", "Adapter4Rec", "--json").stdout)["systems"]
    assert (told["recipe"], told["small"]) == ("zoo/content/adapter4rec", "zoo/content/small/adapter4rec")
    assert told["table"] == "the Houlsby row of Adapter4Rec"
