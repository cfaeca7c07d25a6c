"""Every registered part passes the checks of its family."""

from __future__ import annotations

from typing import Any

import pytest

from pmmrec.adapters import adapters
from pmmrec.data.examples import example_kinds
from pmmrec.data.splits import splits
from pmmrec.encoders import text_encoders, vision_encoders
from pmmrec.family import Family
from pmmrec.fusion import fusions
from pmmrec.models import item_encoders, scorers
from pmmrec.objectives import objectives
from pmmrec.propagations import propagations
from pmmrec.testing import conformance
from pmmrec.testing.twins import find_twin
from pmmrec.users import user_encoders

test_text_encoders = conformance(text_encoders)
test_vision_encoders = conformance(vision_encoders)
test_fusions = conformance(fusions)
test_item_encoders = conformance(item_encoders)
test_user_encoders = conformance(user_encoders)
test_propagations = conformance(propagations)
test_scorers = conformance(scorers)
test_objectives = conformance(objectives)
test_adapters = conformance(adapters)
test_splits = conformance(splits)
test_example_kinds = conformance(example_kinds)


@pytest.mark.parametrize("family", [objectives, scorers], ids=lambda family: family.name)
def test_every_part_of_the_project_has_its_twin(family: Family[Any]) -> None:
    own = [entry.name for entry in family if entry.part_class.__module__.startswith("pmmrec.")]
    assert [name for name in own if find_twin(family, name) is None] == []
