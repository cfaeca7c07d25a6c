"""Identify a measurement by its settings and data, and find what has changed since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pmmrec.errors import RecipeError
from pmmrec.recipe import FinetuneRecipe, PretrainRecipe, RunRecipe, read_recipe
from pmmrec.renamed import renamed_recipe
from pmmrec.settings import Tree
from pmmrec.shipped import find_recipe
from pmmrec.tuning.space import read_space
from tests.real.evidence.plan import (
    SCRATCH,
    BaselinesCell,
    EvidencePlan,
    FinetuneCell,
    StartingCell,
    ZeroShotCell,
    domain_of,
)

SEED = "seed"  # the seeds of a cell are listed separately
FINGERPRINT = "fingerprint"
STORED = ("text_vectors", "text_states", "text_codes", "image_vectors")  # features of a planned domain
EVIDENCE_VERSION = 1  # raise it when the same settings and data give other metrics than before


@dataclass(frozen=True)
class Identity:
    """All inputs of a measurement as a tree, and the same without settings that have their default value."""

    tree: Tree
    chosen: Tree

    @property
    def hash(self) -> str:
        """sha256 of the tree."""
        text = json.dumps(self.tree, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def changes_since(self, stored: Mapping[str, Any]) -> list[str]:
        """Paths at which this differs from a stored tree.

        A new setting at its default value is not a change, nor is one that has another name now, nor a fingerprint that
        is unknown now because the data is missing.
        """
        stored = _with_renamed_recipes(stored)
        return [] if stored == self.tree else list(_changes(stored, self.tree, self.chosen, ""))

    def with_(self, **more: Any) -> Identity:
        return Identity({**self.tree, **more}, {**self.chosen, **more})


def _with_renamed_recipes(stored: Mapping[str, Any]) -> Tree:
    """A stored tree with the settings of its recipes under the names that they have now."""
    tree = {key: _with_renamed_recipes(value) if isinstance(value, Mapping) else value for key, value in stored.items()}
    return {
        key: renamed_recipe(value) if key == "recipe" and isinstance(value, dict) else value
        for key, value in tree.items()
    }


class Identities:
    """The identities of all measurements of a plan. `fingerprints`: those of the imported domains."""

    def __init__(self, plan: EvidencePlan, fingerprints: Mapping[str, str]) -> None:
        self._plan, self._fingerprints = plan, fingerprints

    def pretraining(self, name: str) -> Identity:
        planned = self._plan.pretrainings[name]
        sources = {source: self._domain(source) for source in planned.sources}
        told: Tree = {**_version(), "kind": "pretrain", "seed": planned.seed, "sources": sources}
        if planned.judged_by is not None:
            told["judged_by"] = {planned.judged_by: self._domain(planned.judged_by)}
        with _told_of(f"pretrainings.{name}"):
            return _told_with_recipe(told, _pretrain_settings(planned.recipe, planned.overrides))

    def cell(self, cell_id: str) -> Identity:
        """The identity of a measured cell with all its seeds."""
        cell = self._plan.measured[cell_id]
        told: Tree = {**_version(), "kind": cell.kind, "domain": self._domain(domain_of(cell_id))}
        if isinstance(cell, ZeroShotCell) and cell.popularity is not None:
            told["popularity"] = cell.popularity
        if isinstance(cell, StartingCell) and cell.blend:
            told["blend"] = True
        if self._plan.targets != "test":
            told["targets"] = self._plan.targets
        if not self._plan.has_single_targets:
            told["split"] = self._plan.split.model_dump(mode="json")
        if isinstance(cell, BaselinesCell | FinetuneCell) and cell.users is not None:
            told["users"] = cell.users
        start = getattr(cell, "start_from", SCRATCH)
        before = self.pretraining(start) if start != SCRATCH else Identity({}, {})
        if isinstance(cell, BaselinesCell) and cell.seeds is not None:
            told["seeds"] = list(cell.seeds)
        if isinstance(cell, FinetuneCell):
            told["seeds"] = list(cell.seeds)
            told |= self._searched(cell_id)
            if cell.weights:
                told["weights"] = {**cell.weights, **{name: self.pretraining(name).tree for name in cell.tuned}}
            with _told_of(f"cells.{cell_id}"):
                identity = _told_with_recipe(told, _finetune_settings(cell.recipe, cell.overrides))
        else:
            identity = Identity(told, told)
        if start == SCRATCH:
            return identity
        return Identity({**identity.tree, "from": before.tree}, {**identity.chosen, "from": before.chosen})

    def search(self, cell_id: str) -> Identity:
        """The identity of the search for the settings of a cell, which others may share."""
        identity, searched = self.cell(cell_id), self._searched(cell_id)["search"]
        return identity.with_(kind="search", seeds=[], domain=searched["domain"])

    def _searched(self, cell_id: str) -> Tree:
        """The search for the settings of a cell, where there is one."""
        search = self._plan.search_of(cell_id)
        if search is None or search.domain is None:
            return {}
        told = {"space": _space(search.file), "trials": search.trials, SEED: search.seed}
        return {"search": {**told, "domain": self._domain(search.domain)}}

    def run(self, cell_id: str, seed: int | None) -> Identity:
        """The identity of one training of a cell; `seed` None: of a cell without training."""
        identity = self.cell(cell_id)
        return identity if seed is None else identity.with_(seeds=[seed])

    def _domain(self, name: str) -> Tree:
        planned = self._plan.domains[name]
        cut = planned.cut.model_dump(mode="json") if planned.cut else None
        stored = {name: value for name in STORED if (value := getattr(planned, name)) is not None}
        return {"k_core": planned.k_core, "cut": cut, **stored, FINGERPRINT: self._fingerprints.get(name)}


def _version() -> Tree:
    """The version entry; empty for version 1, whose results have none."""
    return {"version": EVIDENCE_VERSION} if EVIDENCE_VERSION > 1 else {}


def settings_of(recipe: RunRecipe) -> Identity:
    """The resolved recipe without its seed and settings that do not affect metrics."""
    full, chosen = recipe.told(), recipe.told(only_chosen=True)
    return Identity(*({key: value for key, value in tree.items() if key != SEED} for tree in (full, chosen)))


@contextmanager
def _told_of(place: str) -> Iterator[None]:
    """Prefix the errors of a recipe with its place in the plan."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}") from error


@cache
def _pretrain_settings(recipe: str, overrides: tuple[str, ...]) -> Identity:
    return settings_of(read_recipe(PretrainRecipe, find_recipe(recipe), [*overrides, "data.sources=[unknown]"]))


@cache
def _finetune_settings(recipe: str, overrides: tuple[str, ...]) -> Identity:
    return settings_of(read_recipe(FinetuneRecipe, find_recipe(recipe), overrides))


@cache
def _space(source: Path) -> Tree:
    dimensions = read_space(source).dimensions
    return {path: dimension.model_dump(mode="json", exclude_none=True) for path, dimension in dimensions.items()}


def _told_with_recipe(told: Tree, settings: Identity) -> Identity:
    return Identity({**told, "recipe": settings.tree}, {**told, "recipe": settings.chosen})


def _changes(stored: Any, now: Any, chosen: Any, path: str) -> Iterator[str]:
    if not isinstance(stored, Mapping) or not isinstance(now, Mapping):
        is_unknown = path.rpartition(".")[2] == FINGERPRINT and now is None
        if stored != now and not is_unknown:
            yield path
        return
    chosen = chosen if isinstance(chosen, Mapping) else {}
    for key in dict.fromkeys((*stored, *now)):
        inner = f"{path}.{key}" if path else str(key)
        if key in stored and key in now:
            yield from _changes(stored[key], now[key], chosen.get(key), inner)
        elif path.rpartition(".")[2] == "objectives" and {**now, **stored}[key] is None:
            continue  # an objective that another recipe has and this one takes away
        elif key in stored or key in chosen:
            yield inner
