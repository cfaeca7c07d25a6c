"""Settings of DAP."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from views import views_of

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, Windows
from pmmrec.errors import RecipeError
from pmmrec.objectives import objectives
from pmmrec.objectives.next_item import NextItem, NextItemConfig
from pmmrec.requests import View


def test_the_family_builds_it_by_name() -> None:
    config = objectives.config({"type": "next_item", "temperature": "sqrt_width", "weight": 0.5})
    objective = objectives.part_class(config)(config, BuildContext(16))
    assert isinstance(objective, NextItem)
    assert objective.temperature == 4.0


def test_the_default_is_the_paper() -> None:
    config = NextItemConfig()
    assert (config.negatives, config.temperature, config.logq, config.weight) == ("unseen", 1.0, "none", 1.0)


@pytest.mark.parametrize(("logq", "asked"), [("none", set()), ("all_columns", {View.POPULARITY})])
def test_popularity_is_asked_for_only_when_scores_are_corrected(logq: str, asked: set[View]) -> None:
    assert NextItem(NextItemConfig.model_validate({"logq": logq}), BuildContext(4)).requests.views == asked


@pytest.mark.parametrize("temperature", [0, -1.0, "root_width"])
def test_a_temperature_is_positive_or_a_known_word(temperature: object) -> None:
    with pytest.raises(RecipeError, match="temperature"):
        objectives.config({"type": "next_item", "temperature": temperature})


def test_a_missing_popularity_is_named() -> None:
    windows = Windows(torch.tensor([[0, 1], [2, 3]]), torch.ones(2, 2, dtype=torch.bool))
    views = views_of(ItemVectors(torch.ones(4, 4)), windows, torch.ones(2, 1, 4))
    objective = NextItem(NextItemConfig(logq="negatives_only"), BuildContext(4))
    with pytest.raises(ValueError, match=r"needs views\.log_q_U"):
        objective(views)
    assert objective(dataclasses.replace(views, log_q_U=torch.zeros(4))).count.item() == 2
