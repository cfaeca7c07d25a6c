"""Describe each part for its `part.json`, so that a part can be used without its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pmmrec.encoders import joint_encoders, text_encoders, vision_encoders
from pmmrec.errors import CheckpointError
from pmmrec.family import Family, PartGroup
from pmmrec.fusion import fusions
from pmmrec.models import item_encoders, scorers
from pmmrec.models.build import ModelConfig
from pmmrec.objectives import objectives as objective_family
from pmmrec.propagations import propagations
from pmmrec.users import user_encoders

FORMAT = 1
OBJECTIVES = "objectives"
_FAMILIES: tuple[Family[Any], ...] = (
    text_encoders,
    vision_encoders,
    joint_encoders,
    fusions,
    user_encoders,
    item_encoders,
    propagations,
    scorers,
    objective_family,
)


def about_parts(model_config: ModelConfig, parts: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Family, type, width and settings of each part, by name."""
    item_encoder = model_config.item_encoder
    own = item_encoder.model_dump(mode="json")
    inner = own.get("content", {})  # of an item encoder around another one
    nested = {name: one for name, one in {**inner, **own}.items() if isinstance(one, Mapping)}
    settings = {name: encoder.model_dump(mode="json") for name, encoder in item_encoder.encoders.items()}
    settings["user_encoder"] = model_config.user_encoder.model_dump(mode="json")
    settings["propagation"] = model_config.propagation.model_dump(mode="json")
    settings["scorer"] = model_config.scorer.model_dump(mode="json")
    about = {}
    for name, part in parts.items():
        family, type_name = _kind(part) or (item_encoders.name, item_encoder.type)
        about[name] = {"family": family, "type": type_name, "width": model_config.width}
        about[name]["settings"] = settings.get(name, nested.get(name, own))
    return about


def about_heads(model_config: ModelConfig, heads: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Family, type and width of each head of an objective, by its folder."""
    about = {}
    for name, head in heads.items():
        family, type_name = _kind(head) or (objective_family.name, name)
        about[f"{OBJECTIVES}/{name}"] = {"family": family, "type": type_name, "width": model_config.width}
    return about


def group_of(family: str) -> PartGroup:
    """What the parts of a family work on, by its name in an index. CheckpointError for an unknown family."""
    groups = {one.name: one.group for one in _FAMILIES}
    group = groups.get(family)
    if group is None:
        raise CheckpointError(f"no family of parts is called {family!r}; there are {', '.join(groups)}")
    return group


def _kind(part: nn.Module) -> tuple[str, str] | None:
    """Family and type of a part; None if it is registered in no family, such as a table of ids."""
    for ancestor in type(part).__mro__:  # sharding replaces a registered class by a subclass
        for family in _FAMILIES:
            for entry in family:
                if entry.part_class is ancestor:
                    return family.name, entry.name
    return None
