"""Decide which parts of a model get adapters and what else is trained; freeze the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ConfigDict, Field, model_validator
from torch import nn
from typing_extensions import Self

from pmmrec.adapters import Adapter, AdapterConfig, Host, adapter_tensors, adapters, chosen_blocks
from pmmrec.errors import RecipeError
from pmmrec.feed_forward import part_activations
from pmmrec.settings import Config

if TYPE_CHECKING:
    AdapterField: TypeAlias = AdapterConfig
else:
    AdapterField = adapters.field


class AdapterPlan(Config):
    """The adapters of each part, by its name. Only they, what `train` names and the fresh parts are trained.

    Example:
        adapters:
          text_encoder: {type: lora, r: 8}
          user_encoder: {type: houlsby, width: 16}
          train: [fusion]
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, AdapterField] = Field(init=False)

    train: tuple[str, ...] = Field(
        (), description="What else is trained whole: parts such as fusion, or modules such as text_encoder.projection."
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_parts_without(cls, value: Any) -> Any:
        """Earlier versions wrote null for a part without adapters."""
        return {key: one for key, one in value.items() if one is not None} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.by_part:
            raise ValueError("give adapters to a part, such as text_encoder or user_encoder")
        if len(set(self.train)) < len(self.train):
            raise ValueError("train names something twice; keep one")
        return self

    @property
    def by_part(self) -> dict[str, AdapterConfig]:
        """The settings of the adapters of each part that has them."""
        return dict(self.__pydantic_extra__)


@dataclass(frozen=True)
class AdaptedPart:
    """A part with loaded weights of which only adapters, some whole modules (heads), or both are trained."""

    part: nn.Module
    host: Host | None
    adapter: Adapter | None
    holders: tuple[str, ...]  # modules of the host that hold adapter tensors
    heads: tuple[str, ...]  # modules of the part that are trained whole

    @property
    def trained_modules(self) -> tuple[str, ...]:
        """All modules of the part that are trained."""
        return (*(self.host.in_part(holder) for holder in self.holders), *self.heads) if self.host else self.heads

    @property
    def adapter_names(self) -> dict[str, str]:
        """Map adapter tensors from the name in the part to the name on disk."""
        if self.host is None or self.adapter is None:
            return {}
        names = adapter_tensors(self.host, self.holders)
        return {self.host.in_part(name): self.adapter.name_on_disk(name) for name in names}

    @property
    def head_names(self) -> list[str]:
        """Names in the part of the tensors of its heads."""
        return [f"{head}.{key}" for head in self.heads for key in self.part.get_submodule(head).state_dict()]

    def merge(self) -> None:
        """Merge the adapters into the weights of the part. Raises RecipeError where they cannot be merged."""
        if self.host is not None and self.adapter is not None:
            self.adapter.merge(self.host, self.holders)


@dataclass(frozen=True)
class AdaptedModel:
    """What is trained of a model with adapters; everything else is frozen and in eval mode."""

    parts: Mapping[str, AdaptedPart]  # by name
    whole: tuple[str, ...]  # parts that are trained as configured


def adapt(parts: Mapping[str, nn.Module], plan: AdapterPlan, fresh: Collection[str] = ()) -> AdaptedModel:
    """Insert new adapters, in place, and freeze everything except them, what the plan trains and the `fresh` parts.

    The model computes the same until it is trained. Raises RecipeError where the plan does not fit the model.
    """
    _refuse_unfit(parts, plan, fresh)
    whole = tuple(name for name in parts if name in fresh or name in plan.train)
    adapted_parts: dict[str, AdaptedPart] = {}
    for name, part in parts.items():
        if name in whole:
            continue
        adapted_part = adapt_part(name, part, plan)
        if adapted_part.trained_modules:
            adapted_parts[name] = adapted_part
        keep_in_eval(part, adapted_part.trained_modules)
    return AdaptedModel(adapted_parts, whole)


def adapt_part(name: str, part: nn.Module, plan: AdapterPlan) -> AdaptedPart:
    """Insert the new adapters of one part and freeze all of it except them and what the plan trains."""
    heads = _heads(name, part, plan)
    adapted_part = _insert(name, part, plan.by_part.get(name), heads)
    _refuse_overlap(name, adapted_part)
    for head in heads:
        part.get_submodule(head).requires_grad_(requires_grad=True)
    return adapted_part


def keep_in_eval(part: nn.Module, trained: Sequence[str]) -> None:
    """Keep a part, except its modules `trained`, in eval mode when `train()` is called on a parent module."""
    _set_modes(trained, part)
    part.register_forward_pre_hook(partial(_set_modes, tuple(trained)))


def _set_modes(trained: Sequence[str], part: nn.Module, *_: Any) -> None:
    if part.training:
        part.eval()
        for name in trained:
            part.get_submodule(name).train()


def _insert(name: str, part: nn.Module, config: AdapterConfig | None, heads: tuple[str, ...]) -> AdaptedPart:
    host: Host | None = getattr(part, "host", None)
    if config is None:
        if host is not None:
            host.learns_from_top(0)
        part.requires_grad_(requires_grad=False)
        return AdaptedPart(part, host, None, (), heads)
    where = f"adapters.{name}"
    if host is None:
        raise RecipeError(f"{where}: {type(part).__name__} cannot have adapters; leave it out")
    adapter_class: Any = adapters.part_class(config)
    adapter: Adapter = adapter_class(config)
    part_activations(host.module)
    holders = adapter.insert(host, chosen_blocks(host, config, where), where)
    lowest = min(level for level, block in enumerate(host.blocks) if any(h.startswith(f"{block}.") for h in holders))
    host.learns_from_top(len(host.blocks) - lowest)
    part.requires_grad_(requires_grad=False)
    learned = set(adapter_tensors(host, holders))
    for key, parameter in host.module.named_parameters():
        parameter.requires_grad_(key in learned)
    return AdaptedPart(part, host, adapter, holders, heads)


def _heads(name: str, part: nn.Module, plan: AdapterPlan) -> tuple[str, ...]:
    """The modules of a part that the plan trains. Raises RecipeError for unknown modules or modules without weights."""
    heads = tuple(full.removeprefix(f"{name}.") for full in plan.train if full.startswith(f"{name}."))
    modules = dict(part.named_modules())
    for head in heads:
        if head not in modules or not any(True for _ in modules[head].parameters()):
            there = ", ".join(key for key, child in part.named_children() if any(True for _ in child.parameters()))
            raise RecipeError(f"adapters.train: {name}.{head}: no such module with weights; {name} has {there}")
    return heads


def _refuse_unfit(parts: Mapping[str, nn.Module], plan: AdapterPlan, fresh: Collection[str]) -> None:
    for name in plan.by_part:
        if name not in parts:
            raise RecipeError(f"adapters.{name}: the model has no such part; it has {', '.join(parts)}")
        if name in fresh:
            raise RecipeError(f"adapters.{name}: the part starts fresh, and adapters need trained weights; load it")
        if name in plan.train:
            raise RecipeError(
                f"adapters.train: {name} has adapters, so it is not trained whole; name a module of it, such as "
                f"{name}.projection, or remove its adapters"
            )
    for name in plan.train:
        if name.partition(".")[0] not in parts:
            raise RecipeError(f"adapters.train: the model has no part {name!r}; it has {', '.join(parts)}")
        if "." in name and name.partition(".")[0] in fresh:
            raise RecipeError(f"adapters.train: {name}: its part starts fresh and is trained whole; leave the name out")


def _refuse_overlap(name: str, adapted_part: AdaptedPart) -> None:
    """Raise RecipeError where a head contains adapters or another head, or is in the frozen backbone."""
    backbone = f"{adapted_part.host.path}." if adapted_part.host is not None and adapted_part.host.path else None
    for head in adapted_part.heads:
        others = [other for other in adapted_part.trained_modules if other != head]
        inside = backbone is not None and f"{head}.".startswith(backbone)
        if inside or any(head.startswith(f"{o}.") or f"{o}.".startswith(f"{head}.") for o in others):
            raise RecipeError(
                f"adapters.train: {name}.{head}: is in a module that is frozen or trained already; choose another "
                "module, or raise trainable_blocks and leave adapters out"
            )
