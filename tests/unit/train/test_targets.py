"""A run whose recipe leaves nothing to validate or to test on is refused before it starts."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pmmrec.data.batches import DataConfig
from pmmrec.data.domain import Domain
from pmmrec.data.importers.given_split import store_split
from pmmrec.data.importers.impressions import store_impressions
from pmmrec.data.splits import splits
from pmmrec.errors import DataError, RecipeError
from pmmrec.models.build import ModelConfig
from pmmrec.settings import validate
from pmmrec.train.callbacks import ValidationConfig
from pmmrec.train.prepare import Sources
from pmmrec.train.targets import check_targets, check_users


@dataclass(frozen=True)
class _Recipe:
    validation: ValidationConfig = field(default=ValidationConfig())
    rank_test: bool = True
    data: DataConfig = field(default=DataConfig())


@pytest.fixture
def shop(world: Path, tmp_path: Path) -> Path:
    """A domain of 36 items."""
    return Path(shutil.copytree(world / "boutique", tmp_path / "shop"))


def _table(path: Path, *rows: tuple[object, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def _sources(shop: Path, **split: Any) -> Sources:
    return Sources.open([shop], DataConfig(split=splits.config(split)))


def _given(shop: Path, last_two: tuple[str, str], num_unseen: int = 0) -> Sources:
    """The split whose last interactions of each user are in these parts; all others of some users are in the first."""
    domain, rows = Domain.open(shop), []
    for user, user_id in enumerate(domain.user_ids.to_pylist()):
        items = domain.sequence(user).tolist()
        parts = [*[last_two[0] if user < num_unseen else "train"] * (len(items) - 2), *last_two]
        rows += [(user_id, domain.item_ids[item].as_py(), part) for item, part in zip(items, parts, strict=True)]
    path = _table(shop.parent / "parts.csv", ("user_id", "item_id", "split"), *rows)
    store_split(shop, path, "paper")
    return _sources(shop, type="given", name="paper")


@pytest.mark.parametrize("last_two", [("train", "test"), ("train", "validation")])
def test_a_given_split_without_a_part_is_refused(shop: Path, last_two: tuple[str, str]) -> None:
    lacking = "validation" if "test" in last_two else "test"
    sources = _given(shop, last_two)
    with pytest.raises(DataError, match=f"shop: no user has .*, so there is no {lacking} target to rank; choose"):
        check_targets(_Recipe(), sources)
    assert not sources.splits[0].has_query("validation" if lacking == "validation" else "test")


def _model(user_encoder: str) -> ModelConfig:
    tree = {"width": 8, "item_encoder": {"type": "ids"}, "user_encoder": {"type": user_encoder}}
    return ModelConfig.model_validate(tree)


def test_users_known_by_id_who_have_nothing_in_training_are_refused_and_counted(shop: Path) -> None:
    sources = _given(shop, ("validation", "test"), num_unseen=3)
    message = "3 of 40 users with test targets have no interaction in training, and model.user_encoder: user_table"
    with pytest.raises(DataError, match=message):
        check_users(_Recipe(), _model("user_table"), sources)
    check_users(_Recipe(), _model("gru"), sources)
    check_users(_Recipe(rank_test=False), _model("user_table"), sources)  # they are no queries of validation
    check_users(_Recipe(), _model("user_table"), _sources(shop, type="leave_one_out"))


def test_a_run_that_leaves_the_test_alone_needs_no_test_targets(shop: Path) -> None:
    sources = _given(shop, ("train", "validation"))
    check_targets(_Recipe(rank_test=False), sources)


def test_a_validation_loss_of_items_needs_no_validation_targets(shop: Path) -> None:
    sources, judged = _given(shop, ("train", "test")), ValidationConfig(judge="loss")
    check_targets(_Recipe(judged, rank_test=False, data=DataConfig(examples="items")), sources)
    with pytest.raises(DataError, match="there is no validation target to rank"):
        check_targets(_Recipe(judged, rank_test=False), sources)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_impressions_without_a_part_are_refused(shop: Path, part: str) -> None:
    domain = Domain.open(shop)
    shown = [(1, domain.user_ids[0].as_py(), domain.item_ids[row].as_py()) for row in range(2)]
    rows = [(*shown[0], 1, part), (*shown[1], 0, part)]
    header = ("impression_id", "user_id", "item_id", "clicked", "split")
    store_impressions(shop, _table(shop.parent / "shown.csv", header, *rows), "mind")
    lacking = "test" if part == "validation" else "validation"
    with pytest.raises(DataError, match=f"no impression of this part, so there is no {lacking} target to rank"):
        check_targets(_Recipe(), _sources(shop, type="impressions", name="mind"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutoffs": [3, 37]}, r"validation\.cutoffs: 37 is more than the 36 items of boutique, .*; choose up to 36"),
        ({"metric": "recall@37"}, r"validation\.metric: 37 is more than the 36 items of boutique"),
        ({"cutoffs": [10**30]}, r"validation\.cutoffs: 10+ is more than the 36 items of boutique"),
    ],
)
def test_a_cut_off_beyond_the_catalogue_is_refused(shop: Path, settings: dict[str, Any], message: str) -> None:
    config = ValidationConfig.model_validate(settings)
    with pytest.raises(RecipeError, match=message):
        check_targets(_Recipe(config), _sources(shop, type="leave_one_out"))


@pytest.mark.parametrize("settings", [{}, {"cutoffs": [1, 36], "metric": "ndcg@36"}, {"cutoffs": [50]}])
def test_usual_cut_offs_fit_any_catalogue(shop: Path, settings: dict[str, Any]) -> None:
    config = ValidationConfig.model_validate(settings)
    check_targets(_Recipe(config), _sources(shop, type="leave_one_out"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"cutoffs": [0]}, r"cutoffs\[0\]: input should be greater than or equal to 1 \(found 0\)$"),
        ({"cutoffs": []}, r"cutoffs: needs 1 or more entries \(found \[\]\)$"),
    ],
)
def test_a_wrong_list_of_cut_offs_is_one_problem(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=rf"f: 1 problem\n  {problem}"):
        validate(ValidationConfig, settings, "f")
