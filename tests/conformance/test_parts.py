"""Every registered part passes the checks of its family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pmmrec.adapters import adapters
from pmmrec.data.examples import example_kinds
from pmmrec.data.importers.kinds import importers
from pmmrec.data.splits import splits
from pmmrec.encoders import joint_encoders, text_encoders, vision_encoders
from pmmrec.family import Family
from pmmrec.fusion import fusions
from pmmrec.models import item_encoders, scorers
from pmmrec.models.towers import TowersConfig
from pmmrec.objectives import objectives
from pmmrec.propagations import propagations
from pmmrec.testing import conformance
from pmmrec.testing.checks import Check, checks_of
from pmmrec.testing.subjects import Subject
from pmmrec.testing.twins import find_twin
from pmmrec.users import user_encoders

# Item encoders around and inside others, which the examples of the parts alone leave out.
CONTENT: tuple[dict[str, Any], ...] = (
    {"type": "mixture", "feature": "content", "length": 5, "experts": 2, "noise": False},
    {"type": "codes", "feature": "codes", "parts": 3, "values": 4},
    {"type": "side_towers", "text": "words", "image": "looks", "vectors": 5, "length": 4, "bottleneck": 3},
    {"type": "features", "features": {"content": 5, "image_content": 4}, "join": "attention"},
    TowersConfig.examples[1],
)
JOINT = [
    *({"type": "with_ids", "content": {"type": "towers", **tree}} for tree in CONTENT),
    *({"type": "with_ids", "content": {"type": "towers", **tree}, "join": "concat"} for tree in CONTENT),
    {"type": "with_ids", "content": CONTENT[0], "join": "stream"},
]
ALIGNED = {"type": "codes", "feature": "codes", "parts": 3, "values": 4, "permutation": {}}

test_text_encoders = conformance(text_encoders)
test_vision_encoders = conformance(vision_encoders)
test_joint_encoders = conformance(joint_encoders)
test_fusions = conformance(fusions)
test_item_encoders = conformance(item_encoders)
test_ids_beside_other_item_encoders = conformance(item_encoders, *JOINT)
test_user_encoders = conformance(user_encoders)
test_propagations = conformance(propagations)
test_scorers = conformance(scorers)
test_objectives = conformance(objectives)
test_adapters = conformance(adapters)
test_splits = conformance(splits)
test_example_kinds = conformance(example_kinds)
test_importers = conformance(importers)


@pytest.mark.parametrize("one", checks_of(item_encoders), ids=lambda one: one.name)
def test_codes_that_are_aligned(one: Check, tmp_path: Path) -> None:
    """Their permutation learns in training mode alone: what "gradients" asks in evaluation, "all used" asks there."""
    if one.name == "gradients":
        pytest.skip("looks at evaluation mode, in which the assignment counts")
    if (reason := one.run(Subject(item_encoders, item_encoders.config(ALIGNED), tmp_path))) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("family", [objectives, scorers], ids=lambda family: family.name)
def test_every_part_of_the_project_has_its_twin(family: Family[Any]) -> None:
    own = [entry.name for entry in family if entry.part_class.__module__.startswith("pmmrec.")]
    assert [name for name in own if find_twin(family, name) is None] == []
