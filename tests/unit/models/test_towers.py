"""Towers lay rows over items, fuse what is there, and never leave a parameter unused."""
# Shapes: R rows given to one encoder, U distinct items, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pmmrec.contracts import Modality, TokenStates
from pmmrec.errors import RecipeError
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.towers import TowersConfig
from pmmrec.packing import HostArray
from pmmrec.rows import place_rows

MakeWorld = Callable[..., Any]
ALL, NONE = [True, True, True], [False, False, False]


def rows_of(count: int) -> TokenStates:
    token_KD = (torch.arange(count * 4, dtype=torch.float32).view(-1, 2) + 1).requires_grad_()
    start_R = np.arange(count) * 2
    return TokenStates(token_KD, start_R, np.full(count, 2), token_KD[start_R] * 10)


def test_rows_go_to_the_items_they_are_of() -> None:
    rows = rows_of(2)
    placed = place_rows(rows, HostArray([2, 0]), 3)
    assert torch.equal(placed.cls_RD[[2, 0]], rows.cls_RD)
    assert torch.equal(placed.of_item(2), rows.of_item(0))
    assert torch.equal(placed.of_item(0), rows.of_item(1))
    assert placed.length_R.tolist() == [2, 0, 2]
    assert not placed.cls_RD[1].any()


def test_a_row_that_stands_in_leaves_nothing_and_gets_a_gradient_of_zero() -> None:
    rows = rows_of(1)
    placed = place_rows(rows, HostArray([3]), 3)
    assert not placed.length_R.any()
    assert not placed.cls_RD.any()
    placed.cls_RD.sum().backward()
    assert rows.token_KD.grad is not None
    assert not rows.token_KD.grad.any()


def test_the_vectors_are_zero_where_an_item_lacks_the_modality(world: MakeWorld) -> None:
    made = world()
    vectors = made.recommender.item_encoder(made.items([True, False, True], [False, True, True]))
    assert vectors.fused_UD.shape == (3, 8)
    assert vectors.cls_UD[Modality.TEXT].any(1).tolist() == [True, False, True]
    assert vectors.cls_UD[Modality.IMAGE].any(1).tolist() == [False, True, True]
    assert vectors.has_U[Modality.TEXT].tolist() == [True, False, True]


def test_an_item_is_the_same_in_any_company(world: MakeWorld) -> None:
    made = world()
    encoder = made.recommender.eval().double().item_encoder
    together = encoder(made.items(ALL, [True, False, True]))
    alone = encoder(made.items([True], [True]))
    torch.testing.assert_close(alone.fused_UD[0], together.fused_UD[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("plan", "modality"), [("text", Modality.TEXT), ("vision", Modality.IMAGE)])
def test_with_one_modality_its_cls_vector_is_the_item(world: MakeWorld, plan: str, modality: Modality) -> None:
    made = world(plan)
    vectors = made.recommender.eval().item_encoder(made.items(ALL, ALL))
    assert torch.equal(vectors.fused_UD, vectors.cls_UD[modality])
    assert set(vectors.cls_UD) == set(vectors.has_U) == {modality}


@pytest.mark.parametrize(("has_text", "has_image"), [(NONE, ALL), (ALL, NONE), (NONE, NONE)])
def test_every_trainable_parameter_is_used_by_a_batch_without_a_modality(
    world: MakeWorld, has_text: list[bool], has_image: list[bool]
) -> None:
    made = world()
    vectors = made.recommender.item_encoder(made.items(has_text, has_image))
    (vectors.fused_UD.sum() + sum(cls.sum() for cls in vectors.cls_UD.values())).backward()
    for name, parameter in made.recommender.item_encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    absent = [("text_encoder", has_text), ("vision_encoder", has_image)]
    for part, has in absent:
        gradients = [p.grad for p in made.recommender.parts[part].parameters() if p.grad is not None]
        assert any(gradient.any() for gradient in gradients) == any(has)
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("plan", ["both", "text", "vision"])
def test_an_item_with_nothing_to_read_is_the_zero_vector_and_teaches_nothing(
    world: MakeWorld, plan: str, normalize: str, pool: str
) -> None:
    made = world(plan, normalize=normalize)
    encoder = made.recommender.eval().item_encoder
    if encoder.fusion is not None:
        encoder.fusion.pool = pool
    fused_UD = encoder(made.items([True, False, True], [True, False, True])).fused_UD
    assert fused_UD.any(1).tolist() == [True, False, True]
    fused_UD[1].sum().backward()
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


def test_parts_are_named_as_in_a_checkpoint(world: MakeWorld) -> None:
    assert list(world().recommender.item_encoder.parts) == ["text_encoder", "vision_encoder", "fusion"]


def test_a_single_tower_has_no_other_parts(world: MakeWorld) -> None:
    made = world("text")
    assert list(made.recommender.item_encoder.parts) == ["text_encoder"]
    assert made.recommender.item_encoder.fields == frozenset({Modality.TEXT})


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["text", "vision", "fusion"], "an item encoder must read something"),
        (["fusion"], "fusion: text and vision are read"),
        (["vision"], "fusion: has no effect, only one field is read"),
        (["text"], "fusion: has no effect, only one field is read"),
    ],
)
def test_a_fusion_is_for_two_modalities(world: MakeWorld, missing: list[str], message: str) -> None:
    tree = world().config.item_encoder.model_dump()
    with pytest.raises(ValidationError, match=message):
        TowersConfig.model_validate({key: value for key, value in tree.items() if key not in missing})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_fields": ["text", "about"], "fusion": None}, "fusion: text and about and vision are read"),
        ({"text_fields": ["text", "text"]}, "text_fields: name each text once"),
        ({"text_fields": ["text", "image"]}, "text_fields: name each text once; images are read by `vision`"),
        ({"text_fields": []}, "needs 1 or more entries"),
        ({"text_fields": ["about"], "text": None, "fusion": None}, "text_fields: has no effect without `text`"),
    ],
)
def test_texts_are_named_once_and_read_by_a_text_encoder(
    world: MakeWorld, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TowersConfig.model_validate({**world().config.item_encoder.model_dump(), **changes})


def test_one_text_encoder_reads_several_texts_each_alone(world: MakeWorld) -> None:
    made = world("text", text_fields=["text", "about"], fusion={"type": "merge_attention", "num_heads": 2})
    encoder, items = made.recommender.item_encoder.eval(), made.items(ALL, ALL)
    assert list(encoder.parts) == ["text_encoder", "fusion"]
    assert encoder.encoders == {"text": encoder.text_encoder, "about": encoder.text_encoder}
    assert encoder.fields == {"text", "about"}
    text = items.fields["text"]
    about = dataclasses.replace(text, item_index_R=HostArray([2, 3, 0]))  # 3: of no item
    text = dataclasses.replace(text, item_index_R=HostArray([0, 1, 2]))
    has_U = {"text": torch.tensor(ALL), "about": torch.tensor([True, False, True])}
    vectors = encoder(dataclasses.replace(items, fields={"text": text, "about": about}, has_U=has_U))
    assert torch.equal(vectors.cls_UD["about"][[0, 2]], vectors.cls_UD["text"][[2, 0]])
    assert not vectors.cls_UD["about"][1].any()
    assert made.config.item_encoder.keeping(["text_encoder", "fusion"]) == made.config.item_encoder


def test_a_backbone_without_a_folder_is_an_error(world: MakeWorld) -> None:
    made = world()
    with pytest.raises(RecipeError, match="no backbone folder for vision_encoder; there are: text_encoder"):
        build(made.config, {"text_encoder": made.backbones["text_encoder"]})


def test_settings_keep_what_each_part_says_when_dumped(world: MakeWorld) -> None:
    config = world().config
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config


def test_items_without_texts_for_a_model_that_reads_them_are_an_error(world: MakeWorld, tmp_path: Path) -> None:
    made = world()
    items = made.items(ALL, ALL)
    with pytest.raises(ValueError, match="items hold no text, but the model reads it"):
        made.recommender.item_encoder(
            type(items)(items.domain_U, items.row_U, items.has_U, {"image": items.fields["image"]})
        )


def test_normalised_item_vectors_have_mean_0_and_variance_1_and_add_no_parameter(world: MakeWorld) -> None:
    made = world("text", normalize="layer_norm")
    vectors_UD = made.recommender.item_encoder(made.items([True, False, True], ALL)).fused_UD
    assert not vectors_UD[1].any()
    for vector_D in vectors_UD[[0, 2]]:
        assert vector_D.mean().item() == pytest.approx(0, abs=1e-6)
        assert vector_D.var(unbiased=False).item() == pytest.approx(1, abs=1e-3)  # LayerNorm's own 1e-5 under the root
    assert list(made.recommender.parts) == ["text_encoder", "user_encoder"]
