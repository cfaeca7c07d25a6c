"""Judge epochs as a recipe says: by ranking validation targets, or by the validation loss."""

from __future__ import annotations

import math
from typing import Protocol

from pmmrec.data.batches import DataConfig
from pmmrec.data.items import ItemReader
from pmmrec.data.mixing import MixingConfig
from pmmrec.errors import DataError, DivergenceError, RecipeError
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.models.build import ModelConfig
from pmmrec.train.callbacks import LOSS, RankEvery, ValidationConfig
from pmmrec.train.config import TrainConfig
from pmmrec.train.example_checks import check_judged
from pmmrec.train.loop import BatchSource, Loop
from pmmrec.train.meter import added, shown_losses
from pmmrec.train.nonfinite import ADVICE
from pmmrec.train.prepare import Batches, Readable, Sources, open_reader
from pmmrec.train.run import Run
from pmmrec.train.task import TrainingTask


class LossEvery:
    """Computes the mean losses of the validation targets after each epoch, without updates. Nothing is ranked.

    The examples, and what objectives draw for them, are the same after every epoch. All processes share the work.
    """

    def __init__(self, batches: BatchSource) -> None:
        self._batches = batches

    def epoch_ended(self, loop: Loop, epoch: int) -> None:
        """Add the losses of an epoch to `loop.validation`.

        Raises DataError where no objective counts any example, DivergenceError for a loss that is not finite.
        """
        with evaluating(loop.task):
            totals = added([loop.measure(batch) for batch in self._batches.epoch(1)])
        counted = {name: totals[name] for name in loop.task.weights if totals[name][1]}
        if not counted:
            names = ", ".join(f"objectives.{name}" for name in loop.task.weights)
            raise DataError(
                f"validation.judge: loss: no example of validation has what {names} compare, so there is no loss to "
                "judge by; hold out more, or use domains and objectives that fit each other"
            )
        losses = {name: float(sum_ / count) for name, (sum_, count) in counted.items()}
        total = sum(loop.task.weights[name] * loss for name, loss in losses.items())
        if not math.isfinite(total):
            raise DivergenceError(f"step {loop.step}: every weight is finite, the validation loss is not. {ADVICE}")
        metrics = {LOSS: total, **{f"{LOSS}/{name}": loss for name, loss in losses.items()}}
        loop.validation[epoch] = metrics
        loop.log.event("validation", loop.step, epoch=epoch, mean=metrics, domains={})
        shown = shown_losses(losses, loop.task.weights)
        loop.log.say(f"epoch {epoch:>3}  validation loss {total:.3f} ({shown})")


class Judged(Readable, Protocol):
    """The fields of a recipe that its validation needs."""

    @property
    def seed(self) -> int: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def validation(self) -> ValidationConfig: ...


class JudgedAbroad(Protocol):
    """The fields of a recipe that say which domains judge its epochs."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def validation(self) -> ValidationConfig: ...


def judging_domains(recipe: JudgedAbroad, model: ModelConfig, sources: Sources) -> Sources:
    """The domains whose validation targets judge the epochs: the sources, or the one of `validation.domain`.

    RecipeError where that one is a source, or where the model knows items or users by id and can rank no other domain.
    """
    folder = recipe.validation.domain
    if folder is None:
        return sources
    if model.knows_ids:
        raise RecipeError(
            "validation.domain: the model knows items or users by id and can rank its sources alone; leave it out"
        )
    abroad = Sources.open([folder], DataConfig(split=recipe.data.split))
    for source in sources.domains:
        if source.name in abroad.names or source.fingerprint == abroad.domains[0].fingerprint:
            raise RecipeError(f"validation.domain: {folder} is a source, {source.name}; name a domain that is none")
    return abroad


def judge_epochs(
    recipe: Judged,
    sources: Sources,
    reader: ItemReader,
    task: TrainingTask,
    run: Run,
    batches: Batches,
    judging: Sources | None = None,
) -> RankEvery | LossEvery:
    """The validation that a recipe asks for. `batches`: those of its training; `judging`: of `judging_domains`."""
    config = recipe.validation
    if judging is not None and judging is not sources:
        (name,) = judging.names
        run.log.say(f"epochs are judged by the validation targets of {name}, which is no source")
        sources, reader = judging, open_reader(judging, task.recommender, recipe, run)
    if config.judge == "ranking":
        return RankEvery(config, reader, sources.splits, sources.names)
    return LossEvery(validation_batches(recipe, sources, reader, task, run, batches))


def validation_batches(
    recipe: Judged, sources: Sources, reader: ItemReader, task: TrainingTask, run: Run, batches: Batches
) -> Batches:
    """The examples of validation, once an epoch, in batches like those of training, which share their catalogue."""
    data, train = recipe.data, recipe.train
    check_judged(data, task)
    examples = [data.kind.validation(split, recipe.validation.users) for split in sources.splits]
    for one in examples:
        if one.warning is not None:
            run.log.warn(one.warning)
    config = data.model_copy(update={"mixing": MixingConfig(batches=data.mixing.batches)})
    rules = (config, sources, reader, task, train.batch_users, recipe.seed, run.processes, run.log)
    return Batches(*rules, gather=train.gather, parts=train.accumulate.user_parts, examples=examples, beside=batches)
