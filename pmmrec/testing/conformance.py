"""Tests for pytest out of the checks that parts inherit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pmmrec.family import Family
from pmmrec.settings import PartConfig
from pmmrec.testing import (
    adapter_checks,
    example_checks,
    importer_checks,
    item_checks,
    objective_checks,
    propagation_checks,
    scorer_checks,
    split_checks,
    user_checks,
)
from pmmrec.testing.checks import Check, checks_of
from pmmrec.testing.subjects import Subject

# importing them adds their checks
assert_registered = (
    *(item_checks, objective_checks, propagation_checks, scorer_checks, user_checks),
    *(adapter_checks, split_checks, example_checks, importer_checks),
)
LONGEST_SHOWN = 60  # characters of settings inside a setting


def conformance(family: Family[Any], *parts: str | Mapping[str, Any]) -> Callable[..., None]:
    """A test function that runs every check of a family on some of its parts, or on all that are registered.

    Args:
        family: `user_encoders`, `objectives`, `scorers`, `propagations`, `item_encoders`, `fusions`,
            `text_encoders`, `vision_encoders`, `joint_encoders`, `adapters`, `splits`, `example_kinds` or
            `importers`.
        parts: Registered names, tested with the settings in `examples` of their settings class; or settings with
            `type`. None: every registered part.

    Example:
        test_user_encoders = conformance(user_encoders, "gru", {"type": "transformer", "attends": "all"})
    """
    import pytest

    cases = [
        pytest.param(config, check, id=f"{title(config)}-{check.name}")
        for config in configs_of(family, *parts)
        for check in checks_of(family)
    ]

    @pytest.mark.parametrize(("config", "check"), cases)
    def test(config: PartConfig, check: Check, tmp_path: Path) -> None:
        reason = check.run(Subject(family, config, tmp_path))
        if reason is not None:
            pytest.skip(reason)

    return test


def configs_of(family: Family[Any], *parts: str | Mapping[str, Any]) -> list[PartConfig]:
    """Settings to test parts with: as given, or the examples of the named parts, or of all."""
    configs: list[PartConfig] = []
    for part in parts or tuple(entry.name for entry in family):
        if isinstance(part, str):
            configs += [family.config({"type": part, **tree}) for tree in family[part].config_class.examples]
        else:
            configs.append(family.config(part))
    return configs


def title(config: PartConfig) -> str:
    """The name of a part and the settings that are not as usual; of many settings inside, their name alone."""
    changed = config.model_dump(exclude_defaults=True, exclude={"type"})
    return ", ".join([config.type, *(_shown(name, value) for name, value in changed.items())])


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{name}={value}"
    inside = ", ".join(_shown(key, one) for key, one in value.items())
    return f"{name}({inside})" if len(inside) <= LONGEST_SHOWN else name
