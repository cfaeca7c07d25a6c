"""Settings become a recommender, also a dry one that holds shapes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pmmrec.context import Backbone, Catalogue, InteractionGraph
from pmmrec.errors import RecipeError
from pmmrec.models.build import ModelConfig, ParameterRow, build, parameter_table
from pmmrec.settings import validate
from pmmrec.users.transformer import TransformerUserEncoder

MakeWorld = Callable[..., Any]
IDS = {"width": 8, "item_encoder": {"type": "ids"}, "user_encoder": {"type": "transformer"}}


def test_the_scorer_is_a_dot_product_unless_told_otherwise() -> None:
    config = validate(ModelConfig, IDS, "recipe")
    assert config.scorer.type == "dot"
    assert validate(ModelConfig, config.model_dump(mode="json"), "recipe") == config


@pytest.mark.parametrize(
    ("users", "num_domains", "message"),
    [
        ("transformer", 1, "passes on vectors of users, and model.user_encoder: transformer has none"),
        ("user_table", 2, "holds the users and items of one domain, found 2"),
        ("user_table", 0, "needs the interactions of the domain that it serves"),
    ],
)
def test_a_graph_needs_users_and_one_domain(users: str, num_domains: int, message: str) -> None:
    tree = {**IDS, "user_encoder": {"type": users}, "propagation": {"type": "lightgcn"}}
    nobody = np.empty(0, np.int64)
    graphs = [InteractionGraph(4, 10, lambda: (nobody, nobody))] * num_domains
    with pytest.raises(RecipeError, match=message):
        build(validate(ModelConfig, tree, "recipe"), {}, [Catalogue("books", 10, "aa", 4, "bb")], graphs)


def test_a_user_encoder_says_how_long_a_history_it_reads() -> None:
    class Endless(TransformerUserEncoder):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            del self.max_inputs

    config = validate(ModelConfig, IDS, "recipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pmmrec.models.build.user_encoders.part_class", lambda _: Endless)
        with pytest.raises(RecipeError, match="transformer has no max_inputs, the longest history that it reads"):
            build(config, {}, [Catalogue("books", 10, "aa")])


def test_the_table_counts_what_each_part_holds_and_trains() -> None:
    recommender = build(validate(ModelConfig, IDS, "recipe"), {}, [Catalogue("books", 10, "aa")])
    table, user = parameter_table(recommender.parts)
    assert table == ParameterRow("item_table", all=80, trainable=80)
    blocks = 2 * ((3 * 64 + 64 + 8) + (32 * 8 + 32) + (32 * 8 + 8) + 2 * 16)
    assert user == ParameterRow("user_encoder", all=20 * 8 + 16 + blocks, trainable=20 * 8 + 16 + blocks)


def test_frozen_blocks_are_counted_as_such(world: MakeWorld) -> None:
    made = world()
    rows = {row.part: row for row in parameter_table(made.recommender.parts)}
    assert 0 < rows["text_encoder"].trainable < rows["text_encoder"].all
    assert sum(row.all for row in rows.values()) == sum(p.numel() for p in made.recommender.parameters())


def test_a_dry_build_counts_the_same(world: MakeWorld) -> None:
    made = world()
    pretrained = {name: Backbone(backbone.folder, is_pretrained=True) for name, backbone in made.backbones.items()}
    with torch.device("meta"):
        dry = build(made.config, pretrained)
    assert all(tensor.is_meta for tensor in [*dry.parameters(), *dry.buffers()])
    assert parameter_table(dry.parts) == parameter_table(made.recommender.parts)


def test_the_same_seed_builds_the_same_recommender(world: MakeWorld) -> None:
    made = world()
    torch.manual_seed(0)
    again = build(made.config, made.backbones)
    for (name, one), other in zip(made.recommender.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_tensors_stand_under_the_names_of_their_parts(world: MakeWorld) -> None:
    recommender = world().recommender
    state = recommender.state_dict()
    expected = {
        f"{home}.{part}.{name}" if home else f"{part}.{name}"
        for part, module in recommender.parts.items()
        for home in (["item_encoder"] if part in recommender.item_encoder.parts else [""])
        for name in module.state_dict()
    }
    assert set(state) == expected


def test_a_near_miss_is_named() -> None:
    with pytest.raises(RecipeError, match="no user encoder is called 'transfomer'; did you mean 'transformer'"):
        validate(ModelConfig, {**IDS, "user_encoder": {"type": "transfomer"}}, "recipe")
