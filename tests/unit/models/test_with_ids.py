"""An item encoder that knows ids and reads items serves its own catalogue, and can be taken apart."""

from __future__ import annotations

from typing import Any

import pytest

from pmmrec.context import BuildContext, Catalogue
from pmmrec.errors import CheckpointError
from pmmrec.models.features import FeaturesConfig
from pmmrec.models.with_ids import WithIds, WithIdsConfig

BOOKS, FILMS = Catalogue("books", 3, "aa"), Catalogue("films", 2, "bb")
CLIP: dict[str, Any] = {"type": "features", "features": {"clip": 3}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"content": {"type": "ids"}}, "content: ids knows items by id already"),
        ({"content": {"type": "with_ids", "content": CLIP}}, "content: with_ids knows items by id already"),
        ({"content": {"type": "features", "features": {"item_id": 3}}}, "item_id stands for the id of an item"),
        ({"content": CLIP, "content_width": 5}, "content_width: vectors that are added have the width of the model"),
        ({"content": CLIP, "join": "concat", "layers": 0}, "layers: 0 would leave two vectors side by side"),
        ({"content": CLIP, "join": "stream", "layers": 1}, "layers: has no effect with join: stream"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WithIdsConfig.model_validate(settings)


def test_its_parts_are_the_table_those_of_the_content_and_the_join_where_it_learns() -> None:
    context = BuildContext(4, catalogues=[BOOKS])
    added, joined = (WithIds(WithIdsConfig(content=CLIP, join=join), context) for join in ("add", "concat"))
    assert list(added.parts) == ["item_table", "feature_encoder"]
    assert list(joined.parts) == ["item_table", "feature_encoder", "join"]
    assert all(encoder.knows_ids and encoder.fields == {"clip", "item_id"} for encoder in (added, joined))


def test_without_its_table_the_content_is_left() -> None:
    config = WithIdsConfig(content=CLIP)
    assert config.keeping(["item_table", "feature_encoder"]) == config
    assert config.keeping(["feature_encoder"]) == FeaturesConfig.model_validate(CLIP)
    assert not config.reads_new_items
    assert config.knows_ids
    assert not config.content.knows_ids


def test_another_catalogue_is_refused_in_clear_words() -> None:
    config = WithIdsConfig(content=CLIP)
    state = WithIds(config, BuildContext(4, catalogues=[BOOKS])).state_dict()
    with pytest.raises(CheckpointError, match="an id means nothing elsewhere"):
        WithIds(config, BuildContext(4, catalogues=[FILMS])).load_state_dict(state)
