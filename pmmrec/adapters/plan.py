"""Which parts of a model carry adapters, what else learns, and what keeps the rest still."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from pmmrec.adapters import Adapter, AdapterConfig, Host, adapter_tensors, adapters, chosen_blocks
from pmmrec.errors import RecipeError
from pmmrec.settings import Config

if TYPE_CHECKING:
    AdapterField: TypeAlias = AdapterConfig
else:
    AdapterField = adapters.field


class AdapterPlan(Config):
    """Adapters by part; they alone learn, with what `train` names and the parts that start fresh."""

    text_encoder: AdapterField | None = None
    vision_encoder: AdapterField | None = None
    user_encoder: AdapterField | None = None
    train: tuple[str, ...] = Field(
        (), description="What else learns, whole: parts such as fusion, or modules such as text_encoder.projection."
    )

    @model_validator(mode="after")
    def _some_part_carries_them(self) -> Self:
        if not self.by_part:
            raise ValueError("give adapters to a part: text_encoder, vision_encoder or user_encoder")
        if len(set(self.train)) < len(self.train):
            raise ValueError("train names something twice; keep one")
        return self

    @property
    def by_part(self) -> dict[str, AdapterConfig]:
        named = {
            "text_encoder": self.text_encoder,
            "vision_encoder": self.vision_encoder,
            "user_encoder": self.user_encoder,
        }
        return {name: config for name, config in named.items() if config is not None}


@dataclass(frozen=True)
class AdaptedPart:
    """A part that stands on learned weights and learns only beside them: adapters, some modules whole, or both."""

    part: nn.Module
    host: Host | None
    adapter: Adapter | None
    holders: tuple[str, ...]  # modules of the host that hold the tensors of adapters
    heads: tuple[str, ...]  # modules of the part that learn whole

    @property
    def learners(self) -> tuple[str, ...]:
        """All modules of the part in which something learns."""
        return (*(self.host.in_part(holder) for holder in self.holders), *self.heads) if self.host else self.heads

    @property
    def adapter_names(self) -> dict[str, str]:
        """Tensors of the adapters: name in the part -> name on disk."""
        if self.host is None or self.adapter is None:
            return {}
        names = adapter_tensors(self.host, self.holders)
        return {self.host.in_part(name): self.adapter.name_on_disk(name) for name in names}

    @property
    def head_names(self) -> list[str]:
        """Tensors of the modules that learn whole, by their names in the part."""
        return [f"{head}.{key}" for head in self.heads for key in self.part.get_submodule(head).state_dict()]

    def merge(self) -> None:
        """Make the part plain weights that compute the same. RecipeError where that cannot be."""
        if self.host is not None and self.adapter is not None:
            self.adapter.merge(self.host, self.holders)


@dataclass(frozen=True)
class AdaptedModel:
    """What learns of a model that carries adapters; all else is frozen and in eval mode."""

    parts: Mapping[str, AdaptedPart]  # by name
    whole: tuple[str, ...]  # parts that learn as they were built to


def adapt(parts: Mapping[str, nn.Module], plan: AdapterPlan, fresh: Collection[str] = ()) -> AdaptedModel:
    """Insert fresh adapters, in place, and freeze all but them, what the plan trains and the `fresh` parts.

    Until something learns, the model computes what it did. RecipeError where the plan does not suit the model.
    """
    _refuse_unfit(parts, plan, fresh)
    whole = tuple(name for name in parts if name in fresh or name in plan.train)
    adapted_parts: dict[str, AdaptedPart] = {}
    for name, part in parts.items():
        if name in whole:
            continue
        adapted_part = adapt_part(name, part, plan)
        if adapted_part.learners:
            adapted_parts[name] = adapted_part
        keep_in_eval(part, adapted_part.learners)
    return AdaptedModel(adapted_parts, whole)


def adapt_part(name: str, part: nn.Module, plan: AdapterPlan) -> AdaptedPart:
    """Insert the fresh adapters of one part; they and what the plan trains of it learn, all else of it is frozen."""
    heads = _heads(name, part, plan)
    adapted_part = _insert(name, part, plan.by_part.get(name), heads)
    _refuse_overlap(name, adapted_part)
    for head in heads:
        part.get_submodule(head).requires_grad_(requires_grad=True)
    return adapted_part


def keep_in_eval(part: nn.Module, learners: Sequence[str]) -> None:
    """Keep a part in eval mode but for its modules `learners`, whatever `train()` is called on around it."""
    _settle(learners, part)
    part.register_forward_pre_hook(partial(_settle, tuple(learners)))


def _settle(learners: Sequence[str], part: nn.Module, *_: Any) -> None:
    if part.training:
        part.eval()
        for name in learners:
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
        raise RecipeError(f"{where}: {type(part).__name__} cannot carry adapters; leave it out")
    adapter_class: Any = adapters.part_class(config)
    adapter: Adapter = adapter_class(config)
    holders = adapter.insert(host, chosen_blocks(host, config, where), where)
    lowest = min(place for place, block in enumerate(host.blocks) if any(h.startswith(f"{block}.") for h in holders))
    host.learns_from_top(len(host.blocks) - lowest)
    part.requires_grad_(requires_grad=False)
    learned = set(adapter_tensors(host, holders))
    for key, parameter in host.module.named_parameters():
        parameter.requires_grad_(key in learned)
    return AdaptedPart(part, host, adapter, holders, heads)


def _heads(name: str, part: nn.Module, plan: AdapterPlan) -> tuple[str, ...]:
    """The modules of a part that the plan trains. RecipeError for those that it has not, or that have no weights."""
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
            raise RecipeError(f"adapters.{name}: the part starts fresh, and adapters stand on learned weights; load it")
        if name in plan.train:
            raise RecipeError(
                f"adapters.train: {name} carries adapters, so it does not learn whole; name a module of it, such as "
                f"{name}.projection, or take its adapters away"
            )
    for name in plan.train:
        if name.partition(".")[0] not in parts:
            raise RecipeError(f"adapters.train: the model has no part {name!r}; it has {', '.join(parts)}")
        if "." in name and name.partition(".")[0] in fresh:
            raise RecipeError(f"adapters.train: {name}: its part starts fresh and learns whole; leave the name out")


def _refuse_overlap(name: str, adapted_part: AdaptedPart) -> None:
    """RecipeError where a module that learns whole holds adapters, lies in another, or lies in the frozen backbone."""
    backbone = f"{adapted_part.host.path}." if adapted_part.host is not None and adapted_part.host.path else None
    for head in adapted_part.heads:
        others = [learner for learner in adapted_part.learners if learner != head]
        inside = backbone is not None and f"{head}.".startswith(backbone)
        if inside or any(head.startswith(f"{o}.") or f"{o}.".startswith(f"{head}.") for o in others):
            raise RecipeError(
                f"adapters.train: {name}.{head}: lies in what is frozen or learns already; choose a module beside it, "
                "or raise trainable_blocks and leave adapters out"
            )
