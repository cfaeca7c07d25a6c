"""What a run would do: check recipe, data and shapes without training, and print the plan."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from pmmrec.adapters.plan import AdapterPlan
from pmmrec.context import Backbone
from pmmrec.contracts import History
from pmmrec.data.batches import DataConfig, Division, refuse_empty_shares
from pmmrec.data.contents import check_codes, check_features, check_readable, is_readable, kinds_of
from pmmrec.data.examples import Examples
from pmmrec.data.mixing import MixingConfig, StepSampler
from pmmrec.data.negatives import NegativePool
from pmmrec.data.prefix import PrefixConfig
from pmmrec.launch import Spread
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.computed import Computed
from pmmrec.models.recommender import Recommender
from pmmrec.objectives import ObjectiveConfig
from pmmrec.tables import PlainTable
from pmmrec.train.accumulate import checkpoint_activations, refuse_batch_statistics, refuse_idle_parts
from pmmrec.train.average import Average
from pmmrec.train.callbacks import ValidationConfig
from pmmrec.train.config import TrainConfig
from pmmrec.train.cost import TrainingCost
from pmmrec.train.division import gathers
from pmmrec.train.example_checks import check_examples, check_judged, refuse_unasked
from pmmrec.train.frozen_items import stays_as_it_is
from pmmrec.train.log import RunLog
from pmmrec.train.memory import Drawing, Launched, memory_lines
from pmmrec.train.meta_items import item_inputs
from pmmrec.train.optim import build_optimizer
from pmmrec.train.pair_checks import check_pairs
from pmmrec.train.prepare import Sources, find_backbones, find_prefixes, start_backbones
from pmmrec.train.run import Runnable
from pmmrec.train.run_folder import refuse_taken
from pmmrec.train.spread import refuse_shared_batches, refuse_unfit
from pmmrec.train.stages import Stages, refuse_frozen_at_random
from pmmrec.train.task import TrainingTask
from pmmrec.train.toward_start import TowardStart
from pmmrec.train.trackers import tracker_openers
from pmmrec.zoo.adapters import insert_adapters
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.transfer import TransferPlan, apply, plan_full


class Plannable(Runnable, Protocol):
    """What a plan must know of its recipe."""

    @property
    def seed(self) -> int: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def validation(self) -> ValidationConfig: ...
    @property
    def model(self) -> ModelConfig | None: ...
    @property
    def active_objectives(self) -> dict[str, ObjectiveConfig]: ...
    @property
    def prefix(self) -> PrefixConfig: ...


def print_plan(
    recipe: Plannable,
    model: ModelConfig,
    data: DataConfig,
    sources: Sources,
    weights: Mapping[str, Path],
    given: Mapping[str, Backbone] | None = None,
    checkpoint: Checkpoint | None = None,
    plan: TransferPlan | None = None,
    adapters: AdapterPlan | None = None,
    launched: Launched | None = None,
) -> None:
    """Print the resolved recipe, parameters of each part, steps and, where `launched`, memory of each process.

    Raises what the run itself would raise. The model is built on the meta device: weights are neither read nor drawn.
    """
    refuse_taken(recipe.folder)
    log = RunLog(None, is_main=True)
    with tempfile.TemporaryDirectory() as scratch:
        start_backbones(model, Path(scratch), sources.train_texts, given)
        backbones = find_backbones(model, Path(scratch), weights, given, warn=log.warn)
        with torch.device("meta"):
            recommender = build(model, backbones, sources.catalogues, sources.graphs, recipe.seed)
            task = TrainingTask.of(recommender, recipe.active_objectives, model.width)
            refuse_unasked(recipe.model, task)
            check_examples(data, task, log)
            _check_shapes(recommender, data.kind.num_inputs)
    report = None
    if checkpoint is not None:
        report = apply(plan or plan_full(checkpoint, recommender), checkpoint, recommender, task.heads)
        task.loaded = report.loaded
        if adapters is not None:
            insert_adapters(checkpoint, recommender, adapters, report.loaded)
    spread = Spread.ONE if launched is None else launched.file.spread
    _check_stages(recipe, task, spread, () if report is None else report.loaded, log)
    _check_items(sources, recommender, data, log)
    prefixes = find_prefixes(recommender, recipe.prefix, log)
    optimizer = build_optimizer(task, recipe.train.optimizer, spread)
    TowardStart(recipe.train.toward_start, task, optimizer, spread)
    is_computed = given is not None and stays_as_it_is(task)
    if launched is not None and is_computed and recipe.prefix.use != "off":
        width = task.width + sum(recommender.item_encoder.streams.values())
        vectors_ND = [torch.empty(domain.num_items, width, device="meta") for domain in sources.domains]
        recommender.item_encoder = Computed(recommender.item_encoder, vectors_ND)
    examples = [data.kind.training(split) for split in sources.splits]
    judged = _judged(recipe, data, task, sources, launched) if recipe.validation.judge == "loss" else []
    for one in (*examples, *judged):
        is_readable_N = is_readable(one.split.domain, kinds_of(recommender.item_encoder.reads))
        NegativePool(one, 0, is_readable_N).check(task.requests.drawn)
    counts = [index.num_examples for index in examples]
    sampler = StepSampler(counts, sources.names, recipe.train.batch_users, recipe.seed, data.mixing)
    _refuse_unfit_training(task, recipe, sampler.smallest_batch, sources.num_items, launched)
    world = 1 if launched is None else launched.num_processes
    num_shares = recipe.train.accumulate.user_parts * (1 if gathers(recipe.train.gather, world) else world)
    check_pairs(task, data, sources.domains, recipe.train.batch_users, num_shares, log)
    log.say(recipe.to_yaml().rstrip(), "")
    sizes = PlainTable("", ["part", "parameters", "learning"], task.sizes)
    log.say(sizes if report is None else report.table(task.sizes), TrainingCost.of(task).words(), "")
    _say_steps(data, recipe.train.epochs, sources, counts, sampler, log)
    if launched is not None:
        drawing = Drawing(sources, data, examples, sampler, recipe.train, recipe.seed)
        log.say("", *memory_lines(task, drawing, launched, recipe.machine, prefixes))


def _say_steps(
    data: DataConfig, epochs: int, sources: Sources, counts: Sequence[int], sampler: StepSampler, log: RunLog
) -> None:
    """Say how many examples and steps an epoch has, and who trains where not all users do."""
    rows = zip(sources.names, counts, (100 * weight for weight in sampler.weights), strict=True)
    log.say(PlainTable("", ["domain", data.examples.type, "of each epoch, %"], [*rows]), *sources.told)
    steps = sampler.steps_per_epoch
    log.say(f"{steps:,} steps an epoch, at most {steps * epochs:,} in {epochs} epochs")


def _check_stages(recipe: Plannable, task: TrainingTask, spread: Spread, loaded: Collection[str], log: RunLog) -> None:
    """Raise and warn as the stages of the run would."""
    stages = Stages(recipe.train.stages, task, spread)
    refuse_frozen_at_random(task, recipe.train.stages, loaded)
    if (told := stages.never_begun(recipe.train.epochs)) is not None:
        log.warn(told)


def _judged(
    recipe: Plannable, data: DataConfig, task: TrainingTask, sources: Sources, launched: Launched | None
) -> list[Examples]:
    """The examples of the validation loss, by domain. Raises what the run would where they do not make batches."""
    check_judged(data, task)
    judged = [data.kind.validation(split, recipe.validation.users) for split in sources.splits]
    counts, mixing = [one.num_examples for one in judged], MixingConfig(batches=data.mixing.batches)
    sampler = StepSampler(counts, sources.names, recipe.train.batch_users, recipe.seed, mixing)
    refuse_empty_shares(sampler.smallest_batch, _division(recipe, launched), is_validation=True)
    return judged


def _division(recipe: Plannable, launched: Launched | None) -> Division:
    """How steps are divided over processes and parts."""
    return Division(world=1 if launched is None else launched.num_processes, parts=recipe.train.accumulate.user_parts)


def _check_items(sources: Sources, recommender: Recommender, data: DataConfig, log: RunLog) -> None:
    """Warn of what the model cannot read. DataError if it can read too little of a domain."""
    for odd in recommender.item_encoder.warnings:
        log.warn(odd)
    for domain in sources.domains:
        check_features(domain, recommender.item_encoder.reads)
    check_codes(sources.domains, recommender.item_encoder.reads)
    for domain in sources.domains:
        warning = check_readable(domain, kinds_of(recommender.item_encoder.reads), data.max_unreadable)
        if warning is not None:
            log.warn(warning)


def _refuse_unfit_training(
    task: TrainingTask, recipe: Plannable, smallest_batch: int, num_items: int, launched: Launched | None
) -> None:
    """Set up how steps are trained. Raises what the run would for settings that do not fit the task or the launch."""
    machine, config, encoder = recipe.machine, recipe.train, task.recommender.item_encoder
    spread, world = (Spread.ONE, 1) if launched is None else (launched.file.spread, launched.num_processes)
    tracker_openers(machine.trackers, recipe.folder, machine.project, recipe.name, recipe.to_yaml())
    refuse_idle_parts(config.accumulate, num_items)
    refuse_empty_shares(smallest_batch, _division(recipe, launched))
    refuse_unfit(spread, machine, config.accumulate)
    refuse_shared_batches(task, spread, world)
    Average(config.average, task, spread)
    task.item_parts = config.accumulate.item_parts
    if task.item_parts > 1:
        refuse_batch_statistics(encoder, "train.accumulate")
    if config.checkpoint_activations:
        checkpoint_activations(encoder)


def _check_shapes(recommender: Recommender, num_inputs: int) -> None:
    """Send two items and one full window through the model on the meta device."""
    items = recommender.item_encoder(item_inputs(recommender, num_items=2))
    num_inputs = min(max(num_inputs, 1), recommender.user_encoder.max_inputs)
    index_BL = torch.zeros((1, num_inputs), dtype=torch.int64)
    recommender.query(
        History.of(items, index_BL, torch.ones_like(index_BL, dtype=torch.bool), user_index_B=index_BL[:, 0])
    )
