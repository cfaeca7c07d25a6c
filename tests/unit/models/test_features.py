"""Settings of the encoder of stored features; tests/numerics holds its twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pmmrec.context import BuildContext, Catalogue
from pmmrec.models.features import FeaturesConfig, ValueTable


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vectors": 3, "length": 2, "pool": "one"}, "says which vector `pool: one` reads"),
        ({"vectors": 3, "length": 2, "index": 1}, "says which vector `pool: one` reads"),
        ({"vectors": 3, "length": 2, "pool": "one", "index": 3}, "index: 3, but an item has 3 vectors"),
        (0, "greater than or equal to 1"),
    ],
)
def test_settings_of_several_vectors_that_make_no_sense_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeaturesConfig.model_validate({"features": {"layers": settings}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "an item encoder must read something"),
        ({"attributes": {"brand": 0}}, "greater than or equal to 1"),
        ({"features": {"brand": 2}, "attributes": {"brand": 2}}, "brand: is a feature and an attribute"),
        ({"attributes": {"text": 2}}, "text: neither a stored feature nor an attribute; towers read it"),
    ],
)
def test_fields_that_cannot_be_read_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeaturesConfig.model_validate(settings)


def table_of(num_values: int, **counts: dict[int, int]) -> ValueTable:
    """A table for the values of some domains."""
    domains = [Catalogue(name, 9, name, value_counts=lambda _, of=of: of) for name, of in counts.items()]
    return ValueTable("brand", num_values, BuildContext(3, catalogues=domains))


def test_the_most_frequent_values_of_all_domains_have_vectors() -> None:
    table = table_of(2, books={5: 2, 9: 3, 7: 1}, films={7: 2, 8: 3})
    assert table.value_key_V.tolist() == [7, 8]  # of 7, 8 and 9 with three items each, the first two
    found = table(torch.tensor([8, 7, 9, 5, 0]))
    assert torch.equal(found[:2], table.vector.weight[[2, 1]])
    assert not found[2:].any()


def test_a_table_may_have_more_vectors_than_there_are_values() -> None:
    table = table_of(4, books={5: 2})
    assert torch.equal(table(torch.tensor([5, 6])), table.vector.weight[[1, 0]])


def test_values_keep_their_vectors_in_another_domain() -> None:
    learned, moved = table_of(2, books={5: 2, 6: 1}), table_of(2, films={6: 4, 1: 1})
    moved.load_state_dict(learned.state_dict())
    keys = torch.tensor([6, 1, 5])
    assert torch.equal(moved(keys), learned(keys))
    assert not moved(keys)[1].any()
