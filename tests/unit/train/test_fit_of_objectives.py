"""An objective is refused where the user encoder has seen what is to be predicted, or cannot hide it."""

from __future__ import annotations

import pytest

from pmmrec.context import BuildContext, Catalogue
from pmmrec.errors import RecipeError
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender
from pmmrec.objectives import objectives
from pmmrec.train.task import TrainingTask

NEXT = [{"type": "next_item"}, {"type": "catalogue_ce"}, {"type": "bce"}, {"type": "bpr"}]


def model_that_attends(attends: str) -> Recommender:
    tree = {
        "width": 8,
        "item_encoder": {"type": "ids"},
        "user_encoder": {"type": "transformer", "attends": attends, "max_inputs": 4},
    }
    return build(ModelConfig.model_validate(tree), {}, [Catalogue("books", 9, "aa")])


def task_of(attends: str, tree: dict[str, object]) -> TrainingTask:
    return TrainingTask.of(model_that_attends(attends), {"term": objectives.config(tree)}, 8)


@pytest.mark.parametrize("targets", ["next", "last"])
@pytest.mark.parametrize("tree", NEXT, ids=lambda tree: tree["type"])
def test_the_next_item_is_not_predicted_from_itself(tree: dict[str, object], targets: str) -> None:
    with pytest.raises(RecipeError, match=r"objectives\.term: predicts the next item, .*targets=masked"):
        task_of("all", {**tree, "targets": targets})
    assert task_of("past", {**tree, "targets": targets}).requests


@pytest.mark.parametrize("tree", NEXT, ids=lambda tree: tree["type"])
def test_masked_items_need_both_sides(tree: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"objectives\.term: predicts masked items, .*attends: all"):
        task_of("past", {**tree, "targets": "masked"})
    assert task_of("all", {**tree, "targets": "masked"}).requests


def test_noise_is_detected_under_either_attention() -> None:
    for attends in ("past", "all"):
        for name in ("noise_detection", "robustness"):
            assert task_of(attends, {"type": name}).requests


def test_a_share_of_masks_without_masks_is_refused() -> None:
    with pytest.raises(RecipeError, match="mask_share: has no effect without targets: masked"):
        objectives.config({"type": "bce", "mask_share": 0.5})


def test_objectives_are_built_from_a_context() -> None:
    for entry in objectives:
        config = objectives.config({"type": entry.name})
        assert entry.part_class(config, BuildContext(8)).requests is not None
