"""Settings of text encoders are checked before anything is read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pmmrec.encoders.text import HFTextConfig


def test_one_origin_must_be_given(bert: dict[str, Any]) -> None:
    for settings in ({}, {"weights": "minilm", "architecture": bert}):
        with pytest.raises(ValidationError, match="give one of `weights`"):
            HFTextConfig(**settings)


def test_a_vocabulary_for_a_pretrained_backbone_is_an_error() -> None:
    with pytest.raises(ValidationError, match="vocab_size: has no effect"):
        HFTextConfig(weights="minilm", vocab_size=500)


def test_settings_survive_a_round_trip(bert: dict[str, Any]) -> None:
    for config in (HFTextConfig(weights="minilm"), HFTextConfig(architecture=bert, trainable_blocks="all")):
        assert HFTextConfig.model_validate(config.model_dump(mode="json")) == config
