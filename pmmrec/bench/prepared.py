"""Prepare a training as `pretrain` and `finetune` do, in a folder that goes when it was measured."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pmmrec.data.items import ItemReader
from pmmrec.errors import MachineError, RecipeError
from pmmrec.models.build import build
from pmmrec.recipe import FinetuneRecipe, PretrainRecipe, RunRecipe, read_recipe, recipe_class_for, recipe_tree
from pmmrec.shipped import find_recipe
from pmmrec.train.frozen_items import compute_items
from pmmrec.train.prepare import Batches, Sources, open_backbones, open_reader
from pmmrec.train.run import Run
from pmmrec.train.stages import freeze_for_good
from pmmrec.train.task import TrainingTask
from pmmrec.zoo.adapters import insert_adapters
from pmmrec.zoo.checkpoint import starting_point
from pmmrec.zoo.transfer import apply, plan_full


@dataclass(frozen=True)
class BenchPlan:
    """What is to be measured, as the command line says it."""

    recipe: str  # a file or a shipped recipe
    overrides: Sequence[str] = ()
    steps: int = 10
    device: str = "auto"
    start_from: str = "none"  # for a fine-tuning: its checkpoint
    on: Path | None = None  # for a fine-tuning: its domain
    base: str | None = None
    weights: Mapping[str, Path] | None = None

    def read(self) -> RunRecipe:
        """The recipe with its overrides and the device asked for. RecipeError where options do not fit it."""
        path, overrides = find_recipe(self.recipe), list(self.overrides)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise MachineError("--device cuda: torch finds no GPU here; give cpu, or leave it out")
        if self.device == "cpu":
            overrides.append("machine.device=cpu")
        elif self.device != "auto":
            overrides.append("machine.device=auto")
        recipe = read_recipe(recipe_class_for(recipe_tree(path, overrides)), path, overrides)
        if isinstance(recipe, PretrainRecipe) and (self.on is not None or self.start_from != "none"):
            raise RecipeError("--from, --on: are for recipes of fine-tuning; a pretraining names its own domains")
        if isinstance(recipe, FinetuneRecipe) and self.on is None:
            raise RecipeError(f"{self.recipe}: is a recipe of fine-tuning; say the domain with --on DOMAIN")
        return recipe


@dataclass(frozen=True)
class PreparedRun:
    """A training before its first step."""

    recipe: RunRecipe
    run: Run
    sources: Sources
    task: TrainingTask
    reader: ItemReader
    batches: Batches


@contextmanager
def prepared(plan: BenchPlan, warn: Callable[[str], object] = warnings.warn) -> Iterator[PreparedRun]:
    """Open the data, build the model and keep the states of frozen blocks as the recipe says.

    Raises what the training itself would raise before its first step.
    """
    recipe = plan.read()
    checkpoint = None
    sources_of = list(recipe.data.sources) if isinstance(recipe, PretrainRecipe) else [plan.on or Path()]
    if isinstance(recipe, FinetuneRecipe):
        checkpoint = starting_point(plan.start_from, plan.base, recipe.hub, warn)
        model, given = recipe.model_from(checkpoint), recipe.backbones_from(checkpoint)
    elif isinstance(recipe, PretrainRecipe):
        model, given = recipe.model, {}
    sources = Sources.open(sources_of, recipe.data)
    with tempfile.TemporaryDirectory(prefix="pmmrec-bench-") as scratch:
        train = recipe.train.model_copy(update={"epochs": 1})
        machine = recipe.machine.model_copy(update={"trackers": ()})
        recipe = recipe.model_copy(update={"runs": Path(scratch), "train": train, "machine": machine})
        with Run.start(recipe, model=model) as run:
            run.limit_time(step_minutes=train.step_minutes, phase_hours=train.phase_hours)
            backbones = open_backbones(model, run, sources.train_texts, plan.weights or {}, given)
            run.processes.seed(recipe.seed, same=True)
            recommender = build(model, backbones, sources.catalogues, sources.graphs, recipe.seed)
            task = TrainingTask.of(recommender, recipe.active_objectives, model.width)
            if checkpoint is not None and isinstance(recipe, FinetuneRecipe):
                transfer = recipe.transfer or plan_full(checkpoint, recommender)
                report = apply(transfer, checkpoint, recommender, task.heads)
                task.loaded = report.loaded
                if recipe.adapters is not None:
                    insert_adapters(checkpoint, recommender, recipe.adapters, report.loaded)
            freeze_for_good(task, recipe.train.stages)
            reader = open_reader(sources, recommender, recipe, run)
            if isinstance(recipe, FinetuneRecipe):
                reader = compute_items(sources, task, reader, recipe, model, run)
            batches = Batches.of(recipe.data, sources, reader, task, train, recipe.seed, run)
            run.processes.seed(recipe.seed, same=False)
            yield PreparedRun(recipe, run, sources, task, reader, batches)
