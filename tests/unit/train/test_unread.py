"""Parts that no objective reads do not learn, and adapters in them are refused."""

from __future__ import annotations

from typing import Any

import pytest

from pmmrec.errors import RecipeError
from pmmrec.objectives import objectives
from pmmrec.train.optim import OptimizerConfig, build_optimizer
from pmmrec.train.task import TrainingTask

CONTRAST = {"itc": {"type": "item_contrast"}}


def task_with(reading: Any, terms: dict[str, dict[str, str]]) -> TrainingTask:
    """A task for the model of `reading`, all of whose parts may learn before."""
    recommender = reading.task.recommender.requires_grad_(True)
    return TrainingTask.of(recommender, {name: objectives.config(tree) for name, tree in terms.items()}, 16)


@pytest.mark.parametrize(
    ("more", "unread"),
    [
        ({}, ["fusion", "user_encoder"]),
        ({"dap": {"type": "next_item"}}, []),
        ({"nicl": {"type": "alignment"}}, ["fusion", "user_encoder"]),
    ],
)
def test_parts_without_a_reader_are_frozen(reading: Any, more: dict[str, dict[str, str]], unread: list[str]) -> None:
    task = task_with(reading, {**CONTRAST, **more})
    assert task.unread == unread
    for name, part in task.recommender.parts.items():
        assert any(tensor.requires_grad for tensor in part.parameters()) == (name not in unread)
    task(reading.batch)["itc"][0].backward()
    for name in ("text_encoder", "vision_encoder"):
        assert any(tensor.grad is not None for tensor in task.recommender.parts[name].parameters())


def test_what_learns_in_a_part_without_a_reader_is_refused(reading: Any) -> None:
    task = task_with(reading, CONTRAST)
    build_optimizer(task, OptimizerConfig())
    next(iter(task.recommender.user_encoder.parameters())).requires_grad_(True)  # as adapters would
    with pytest.raises(RecipeError, match="those of user_encoder cannot learn, since no objective reads the part"):
        build_optimizer(task, OptimizerConfig())
