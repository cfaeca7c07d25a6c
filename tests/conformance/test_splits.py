"""A recipe chooses every split, and the example in its docstring splits; the other checks are inherited."""

from __future__ import annotations

from typing import Any

import pytest
from examples import example_of

from pmmrec.data.batches import DataConfig
from pmmrec.data.splits import split_of, splits
from pmmrec.family import Entry
from pmmrec.settings import validate
from pmmrec.testing.shop import shop

every_split = pytest.mark.parametrize("entry", list(splits), ids=lambda entry: entry.name)


@every_split
def test_settings_survive_a_recipe(entry: Entry[Any]) -> None:
    for example in entry.config_class.examples:
        config = validate(DataConfig, {"split": {"type": entry.name, **example}}, "data")
        again = validate(DataConfig, config.model_dump(mode="json"), "data")
        assert again == config
        assert type(again.split) is entry.config_class


@every_split
def test_the_example_of_its_docstring_splits(entry: Entry[Any]) -> None:
    config = validate(DataConfig, example_of(entry.part_class)["data"], "data")
    assert type(split_of(config.split, shop())) is entry.part_class
