"""An objective is refused where the user encoder has seen what is to be predicted, or cannot hide it."""

from __future__ import annotations

from typing import Any

import pytest

from pmmrec.context import BuildContext, Catalogue
from pmmrec.contracts import Term, Views
from pmmrec.errors import RecipeError
from pmmrec.family import Entry
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender
from pmmrec.objectives import Objective, objectives
from pmmrec.requests import Dropped, NextItems, Noised, Requests, WindowRequest
from pmmrec.testing.world import LearnedItems
from pmmrec.train.task import TrainingTask

NEXT = [{"type": name} for name in ("next_item", "catalogue_ce", "bce", "bpr", "target_contrast")]


def model_that_attends(attends: str) -> Recommender:
    tree = {
        "width": 8,
        "item_encoder": {"type": "ids"},
        "user_encoder": {
            "type": "mean_mlp" if attends == "others" else "transformer",
            "attends": attends,
            "max_inputs": 4,
        },
    }
    return build(ModelConfig.model_validate(tree), {}, [Catalogue("books", 9, "aa")])


def task_of(attends: str, tree: dict[str, object]) -> TrainingTask:
    return TrainingTask.of(model_that_attends(attends), {"term": objectives.config(tree)}, 8)


def test_what_the_item_encoder_does_not_give_is_refused() -> None:
    for tree, hint in (
        ({"type": "sequence_contrast", "dropped": {"reworded": 0.1}}, r"reworded vectors .*item_encoder.reworded"),
        ({"type": "target_contrast", "synthetic": True}, r"synthetic vectors .*of type codes"),
    ):
        with pytest.raises(RecipeError, match=rf"objectives\.term: asks for {hint}"):
            task_of("past", tree)


@pytest.mark.parametrize("targets", ["next", "last"])
@pytest.mark.parametrize("tree", NEXT, ids=lambda tree: tree["type"])
def test_the_next_item_is_not_predicted_from_itself(tree: dict[str, object], targets: str) -> None:
    for attends, instead in (("all", "masked"), ("others", "each")):
        with pytest.raises(RecipeError, match=rf"objectives\.term: predicts the next item, .*targets={instead}"):
            task_of(attends, {**tree, "targets": targets})
    assert task_of("past", {**tree, "targets": targets}).requests


@pytest.mark.parametrize("tree", NEXT, ids=lambda tree: tree["type"])
def test_masked_items_need_both_sides(tree: dict[str, object]) -> None:
    for attends in ("past", "others"):
        with pytest.raises(RecipeError, match=r"objectives\.term: predicts masked items, .*attends: all"):
            task_of(attends, {**tree, "targets": "masked"})
    assert task_of("all", {**tree, "targets": "masked"}).requests


@pytest.mark.parametrize("tree", NEXT, ids=lambda tree: tree["type"])
def test_each_item_is_predicted_by_an_encoder_without_order(tree: dict[str, object]) -> None:
    for attends, instead in (("past", "next"), ("all", "masked")):
        with pytest.raises(RecipeError, match=rf"each item from the others .*, such as mean_mlp .*targets={instead}$"):
            task_of(attends, {**tree, "targets": "each"})
    assert task_of("others", {**tree, "targets": "each"}).requests


def test_an_objective_without_the_setting_is_not_told_to_change_its_targets() -> None:
    for attends in ("all", "others"):
        with pytest.raises(RecipeError, match=r"already seen; take it away \(objectives\.term=null\), or set model\."):
            task_of(attends, {"type": "sequence_contrast"})
    assert task_of("past", {"type": "sequence_contrast"}).requests


class NextItemsOfAPlugin(Objective):
    """Predicts the next items, and says nothing about it beyond the pass that it asks for."""

    def __init__(self, request: WindowRequest) -> None:
        super().__init__()
        self.requests = Requests.of(request)

    def forward(self, views: Views) -> Term:
        raise NotImplementedError


@pytest.mark.parametrize("request_", [NextItems(), Noised(), Dropped()], ids=repr)
def test_an_objective_that_says_nothing_is_taken_to_predict_what_its_pass_shows(
    monkeypatch: pytest.MonkeyPatch, request_: WindowRequest
) -> None:
    part: Any = lambda *_: NextItemsOfAPlugin(request_)  # noqa: E731 - stands for a class
    monkeypatch.setitem(objectives._entries, "bce", Entry("bce", objectives["bce"].config_class, part))
    with pytest.raises(RecipeError, match=r"objectives\.term: predicts the next item"):
        task_of("all", {"type": "bce"})
    assert task_of("past", {"type": "bce"}).requests


def test_noise_is_detected_under_either_attention() -> None:
    for attends in ("past", "all"):
        for name in ("noise_detection", "robustness"):
            assert task_of(attends, {"type": name}).requests


def test_a_share_of_masks_without_masks_is_refused() -> None:
    with pytest.raises(RecipeError, match="mask_share: has no effect without targets: masked"):
        objectives.config({"type": "bce", "mask_share": 0.5})


def test_objectives_are_built_from_a_context() -> None:
    for entry in objectives:
        config = objectives.config({**entry.config_class.examples[0], "type": entry.name})
        assert entry.part_class(config, BuildContext(8)).requests is not None


class OneVectorOfBoth(LearnedItems):
    """Reads texts and images, and gives no vector of either."""

    cls_fields = frozenset()


def test_texts_are_compared_with_images_only_where_each_has_a_vector() -> None:
    recommender, config = model_that_attends("past"), {"term": objectives.config({"type": "alignment"})}
    for items, found in ((recommender.item_encoder, "reads ids only"), (OneVectorOfBoth(), "makes one vector of both")):
        recommender.item_encoder = items
        with pytest.raises(RecipeError, match=rf"compares text with image, but the model {found}; take it away"):
            TrainingTask.of(recommender, config, 8)
    recommender.item_encoder = LearnedItems()
    assert TrainingTask.of(recommender, config, 8).requests


@pytest.mark.parametrize("settings", [{"count": 2}, {"by": "popularity"}])
def test_the_l2_term_shares_the_negatives_of_another_objective(settings: dict[str, Any]) -> None:
    model = model_that_attends("past")
    bpr, l2 = {"type": "bpr", "negatives": {"count": 1}}, {"type": "embedding_l2", "negatives": {"count": 1}}

    def task(*trees: dict[str, Any]) -> TrainingTask:
        named = {tree["type"]: objectives.config(tree) for tree in trees}
        return TrainingTask.of(model, named, 8)

    assert task(bpr, l2).requests.passes == task(bpr).requests.passes
    assert task(bpr, {**l2, "negatives": None})
    for trees in ([bpr, {**l2, "negatives": settings}], [l2]):
        with pytest.raises(RecipeError, match=r"objectives\.embedding_l2\.negatives: no other objective draws these"):
            task(*trees)
