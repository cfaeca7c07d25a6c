"""Settings of the encoder of stored features; tests/numerics holds its twin."""

from __future__ import annotations

from typing import Any

import pytest

from pmmrec.models.features import FeaturesConfig


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
