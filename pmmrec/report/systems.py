"""List the systems of papers that come as recipes: what each reads, trains, transfers and scores by."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pmmrec.adapters.plan import AdapterPlan
from pmmrec.context import Backbone, Catalogue, InteractionGraph, ItemFeature
from pmmrec.contracts import FieldSpec, PixelSpec, TextSpec, ValueSpec
from pmmrec.encoders import EncoderConfig, encoder_class
from pmmrec.errors import RecipeError
from pmmrec.modality import VectorSpec
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender
from pmmrec.objectives import ObjectiveConfig
from pmmrec.recipe import FinetuneRecipe, read_recipe
from pmmrec.row_table import RowTable
from pmmrec.settings import PartConfig
from pmmrec.shipped import shipped_recipes
from pmmrec.tables import PlainTable
from pmmrec.zoo.transfer import EVERY, FULL, Names

SMALL = "small"  # folder of the recipes for two cores, beside those of the papers' sizes
COLUMNS = ["recipe", "paper", "table", "reads", "objective", "trains", "transfers", "scorer"]
CHECKPOINT = "as its checkpoint"  # what a recipe without a model reads, and scores by
_NUM_ITEMS = 1000  # as many as the neighbours of any shipped recipe, and more
_TEXTS = ("a red shoe", "a blue shirt")


@dataclass(frozen=True)
class Head:
    """The first lines of a system's recipe: `# Paper: ...`, `# Table: ...`, `# Differs: ...`, one sentence each."""

    paper: str
    table: str
    differs: str

    @classmethod
    def read(cls, recipe: Path) -> Head | None:
        """The head of a recipe; None where it begins otherwise."""
        starts = [f"# {field.name.capitalize()}: " for field in fields(cls)]
        with recipe.open(encoding="utf-8") as file:
            lines = [next(file, "").strip() for _ in starts]
        if not all(map(str.startswith, lines, starts)):
            return None
        return cls(*(line.removeprefix(start).removesuffix(".") for line, start in zip(lines, starts, strict=True)))


@dataclass(frozen=True)
class SystemFacts(Head):
    """A system of a paper, as its recipe builds it.

    Attributes:
        recipe: Its name.
        small: The recipe of the same system for two cores; None where there is none.
        trains: The parts that learn; of an encoder also which blocks, where not all do.
        transfers: The parts that serve other platforms: those without a row for each item or user. Where a recipe needs
            a checkpoint, the parts that it takes from there.
    """

    recipe: str
    small: str | None
    reads: tuple[str, ...]
    objective: tuple[str, ...]
    trains: tuple[str, ...]
    transfers: tuple[str, ...]
    scorer: str


def system_facts(of: str | None = None) -> list[SystemFacts]:
    """The shipped systems, one of each; `of`: those whose name, paper or table has this text, in any case.

    RecipeError where none has it.
    """
    read = {name: (path, Head.read(path)) for name, path in shipped_recipes().items()}
    systems = {name: (path, head) for name, (path, head) in read.items() if head is not None}
    facts = []
    for name, (path, head) in systems.items():
        folder, _, stem = name.rpartition("/")
        large = f"{folder.removesuffix(f'/{SMALL}')}/{stem}"
        if large != name and large in systems:
            continue
        if of is None or any(of.casefold() in text.casefold() for text in (name, head.paper, head.table)):
            small = f"{large.rpartition('/')[0]}/{SMALL}/{stem}"
            facts.append(_facts(name, small if small in systems else None, path, head))
    if not facts:
        raise RecipeError(f"no system has {of!r} in its name, paper or table; see them all with `pmmrec zoo systems`")
    return facts


def systems_table(facts: list[SystemFacts]) -> PlainTable:
    """Systems for people, a row for each."""
    rows = [[_cell(getattr(one, column)) for column in COLUMNS] for one in facts]
    return PlainTable("", COLUMNS, rows)


def _cell(value: str | tuple[str, ...] | None) -> str:
    return ", ".join(value or ("none",)) if not isinstance(value, str) else value


def _facts(name: str, small: str | None, path: Path, head: Head) -> SystemFacts:
    recipe = read_recipe(FinetuneRecipe, path)
    objectives = tuple(_objective_words(one) for one in recipe.active_objectives.values())
    if recipe.model is None:
        reads: tuple[str, ...] = (CHECKPOINT,)
        plan, scorer = recipe.transfer or FULL, CHECKPOINT
        trains, transfers = (
            (*_adapted(recipe.adapters), *_named(plan.fresh, "all parts that are not loaded")),
            _named(plan.load, "all parts"),
        )
    else:
        model = skeleton(recipe.model)
        reads, trains, scorer = _reads(model), _trained(model, recipe.model), _part_words(recipe.model.scorer)
        transfers = tuple(name for name, part in model.parts.items() if _has_weights(part) and not _has_rows(part))
    return SystemFacts(head.paper, head.table, head.differs, name, small, reads, objectives, trains, transfers, scorer)


def skeleton(config: ModelConfig) -> Recommender:
    """The model without weights, over an invented platform; its encoders are small ones that are quickly made."""
    config = config.model_copy(update={"item_encoder": _with_small_encoders(config.item_encoder)})
    catalogue = Catalogue("platform", _NUM_ITEMS, "items", 2, "users", lambda _: {0: 1})
    none_N = np.zeros(_NUM_ITEMS, dtype=bool)
    feature = ItemFeature("", lambda: (np.zeros((_NUM_ITEMS, 1)), none_N))
    graph = InteractionGraph(2, _NUM_ITEMS, lambda: (np.array([0, 1]), np.array([0, 1])), lambda _: feature)
    with tempfile.TemporaryDirectory() as folder:
        backbones = {}
        for part, encoder in config.item_encoder.encoders.items():
            place = Path(folder) / part
            place.mkdir()
            encoder_class(encoder).start(encoder, place, _TEXTS)
            backbones[part] = Backbone(place, is_pretrained=False)
        with torch.device("meta"):
            return build(config, backbones, [catalogue], [graph])


def _with_small_encoders(config: PartConfig) -> PartConfig:
    """The settings of a part with the first of their examples for each encoder in it, which trains or not as before."""
    changes: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, EncoderConfig):
            depth = 0 if getattr(value, "trainable_blocks", "all") == 0 else "all"
            changes[name] = type(value).model_validate({**type(value).examples[0], "trainable_blocks": depth})
        elif isinstance(value, PartConfig):
            changes[name] = _with_small_encoders(value)
    return config.model_copy(update=changes)


def _reads(recommender: Recommender) -> tuple[str, ...]:
    read = ["ids"] if recommender.item_encoder.knows_ids else []
    read += [
        words for words in (_field_words(name, spec) for name, spec in recommender.item_encoder.reads.items()) if words
    ]
    read += ["users"] if recommender.user_encoder.reads_users else []
    return (*read, *(["graph"] if recommender.propagation.reads_graph else []))


def _field_words(name: str, spec: FieldSpec) -> str:
    if isinstance(spec, TextSpec | PixelSpec):
        return name
    kinds: Mapping[type, str] = {VectorSpec: "feature", ValueSpec: "attribute"}
    return f"{kinds[type(spec)]} {name}" if type(spec) in kinds else ""


def _trained(recommender: Recommender, config: ModelConfig) -> tuple[str, ...]:
    trained = [name for name, part in recommender.parts.items() if any(p.requires_grad for p in part.parameters())]
    return tuple(f"{name}{_depth(config.item_encoder.encoders.get(name))}" for name in trained)


def _depth(encoder: EncoderConfig | None) -> str:
    depth = getattr(encoder, "trainable_blocks", "all")
    return {"all": "", 0: " above its backbone"}.get(depth, f" (top {depth} blocks)")


def _has_weights(part: nn.Module) -> bool:
    return any(True for _ in part.parameters())


def _has_rows(part: nn.Module) -> bool:
    return any(isinstance(module, RowTable) for module in part.modules())


def _named(parts: Names, every: str) -> tuple[str, ...]:
    return tuple(every if name == EVERY else name for name in parts)


def _adapted(plan: AdapterPlan | None) -> tuple[str, ...]:
    return () if plan is None else (*(f"{config.type} in {part}" for part, config in plan.by_part.items()), *plan.train)


def _objective_words(config: ObjectiveConfig) -> str:
    targets = getattr(config, "targets", "next")
    return config.type if targets == "next" else f"{config.type} ({targets})"


def _part_words(config: PartConfig) -> str:
    """A part and what of its settings is not at its default."""
    chosen = config.model_dump(mode="json", exclude_defaults=True, exclude={"type"})
    return ", ".join([config.type, *(f"{name} {value}" for name, value in chosen.items())])
