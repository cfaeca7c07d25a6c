"""Stages of a training: which parameters learn in which epochs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator
from torch import nn
from typing_extensions import Self

from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.settings import Config
from pmmrec.train.optim import all_parameter_paths, begins_with
from pmmrec.train.task import TrainingTask

Path = Annotated[str, StringConstraints(min_length=1)]


class StageConfig(Config):
    """What learns in some epochs. Paths are starts of a parameter's path, as in `train.optimizer.parts`."""

    epochs: int | None = Field(None, ge=1, description="How many epochs it lasts; the last stage says null: the rest.")
    learns: tuple[Path, ...] | None = Field(
        None, min_length=1, description="Paths that learn, nothing else does; null: all that is not frozen."
    )
    frozen: tuple[Path, ...] = Field((), description="Paths that do not learn.")

    @model_validator(mode="after")
    def _one_says_what_learns(self) -> Self:
        if self.learns is not None and self.frozen:
            raise ValueError("frozen: has no effect beside learns, which names all that learns; leave it out")
        return self

    def learning(self, path: str) -> bool:
        """Whether a parameter learns in this stage, if it can learn at all."""
        if self.learns is not None:
            return any(begins_with(path, start) for start in self.learns)
        return not any(begins_with(path, start) for start in self.frozen)


def check_stages(stages: Sequence[StageConfig]) -> None:
    """ValueError unless each stage but the last says how long it lasts, and the last does not."""
    if any((stage.epochs is None) != (stage is stages[-1]) for stage in stages):
        raise ValueError("stages: each says its epochs but the last, which lasts to the end")


def freeze_for_good(task: TrainingTask, stages: Sequence[StageConfig]) -> None:
    """Freeze what learns in no stage: it costs neither gradients nor optimizer states.

    RecipeError where a path names no parameter, or nothing learns in a stage.
    """
    paths = all_parameter_paths(task)
    for place, stage in enumerate(stages):
        _refuse_idle(place, stage, paths)
    for path, parameter in paths.items() if stages else ():
        if not any(stage.learning(path) for stage in stages):
            parameter.requires_grad_(False)


def refuse_frozen_at_random(task: TrainingTask, stages: Sequence[StageConfig], loaded: Collection[str]) -> None:
    """RecipeError where weights learn in no stage, and come from no checkpoint and no pretrained encoder.

    `loaded`: the parts that come from a checkpoint.
    """
    encoders = list(task.recommender.item_encoder.encoders.values())
    known = {*loaded, *(name for name, part in task.recommender.parts.items() if part in encoders)}
    idle = {path for path in all_parameter_paths(task) if stages and not any(stage.learning(path) for stage in stages)}
    parts = sorted({path.split(".")[0] for path in idle} - known)
    if parts:
        raise RecipeError(
            f"train.stages: weights of {', '.join(parts)} learn in no stage, and no checkpoint gives them: they would "
            "stay random; start from a checkpoint that has them, or train from scratch without stages "
            "(train.stages=[])"
        )


def learning_in_one(stages: Sequence[StageConfig]) -> tuple[StageConfig, ...]:
    """The stages of a training from scratch: a path that none of them lets learn is frozen in none."""
    frozen = [tuple(path for path in stage.frozen if any(one.learning(path) for one in stages)) for stage in stages]
    return tuple(stage.model_copy(update={"frozen": paths}) for stage, paths in zip(stages, frozen, strict=True))


class Stages:
    """The stages of one training.

    What learns in some stages alone is part of every backward: its gradients are exchanged between processes, and
    dropped before they are clipped and used, so that moments, decay and step counts stay as they are.
    """

    def __init__(self, configs: Sequence[StageConfig], task: TrainingTask, spread: Spread) -> None:
        """Raises what `freeze_for_good` raises, and RecipeError where DeepSpeed would update what a stage freezes."""
        freeze_for_good(task, configs)
        self._configs, self._task = list(configs), task
        self._of_path = {path: one for path, one in all_parameter_paths(task).items() if one.requires_grad}
        self._frozen: list[nn.Parameter] = []
        if spread.is_deepspeed and any(not stage.learning(path) for stage in configs for path in self._of_path):
            raise RecipeError(
                f"train.stages: under {spread.value} what learns cannot change from stage to stage; let the same learn "
                "in all of them, or launch with ddp"
            )

    def begin_epoch(self, epoch: int) -> str | None:
        """Choose what learns in an epoch, numbered from 1; tells of it where a stage begins."""
        if not self._configs:
            self._task.begin_epoch(epoch)
            return None
        number, first = self._stage_of(epoch)
        learning = {path for path in self._of_path if self._configs[number].learning(path)}
        self._frozen = [parameter for path, parameter in self._of_path.items() if path not in learning]
        parts = dict.fromkeys(path.split(".")[0] for path in self._of_path if path in learning)
        self._task.begin_epoch(epoch, frozen={path.split(".")[0] for path in self._of_path} - parts.keys())
        if epoch != first:
            return None
        return f"stage {number + 1} of {len(self._configs)} begins: {len(learning)} tensors of {', '.join(parts)} learn"

    def never_begun(self, epochs: int) -> str | None:
        """What to say where a stage lies behind the last of so many epochs; None where all of them begin."""
        if not self._configs or epochs == 0 or (number := self._stage_of(epochs)[0] + 1) == len(self._configs):
            return None
        before = sum(stage.epochs or 0 for stage in self._configs[:number])
        return f"train.stages[{number}]: begins after epoch {before}, and train.epochs is {epochs}: it never does"

    def drop_gradients(self) -> None:
        """Drop the gradients of what does not learn in this epoch."""
        for parameter in self._frozen:
            parameter.grad = None

    def _stage_of(self, epoch: int) -> tuple[int, int]:
        """The stage of an epoch, from 0, and the first epoch of that stage."""
        first = 1
        for number, stage in enumerate(self._configs):
            if stage.epochs is None or epoch < first + stage.epochs:
                return number, first
            first += stage.epochs
        raise ValueError("stages: the last one has an end")


def _refuse_idle(place: int, stage: StageConfig, paths: dict[str, nn.Parameter]) -> None:
    """RecipeError for a path that changes nothing, and for a stage in which nothing learns."""
    for field, starts in (("learns", stage.learns or ()), ("frozen", stage.frozen)):
        for start in starts:
            found = [parameter for path, parameter in paths.items() if begins_with(path, start)]
            if not found:
                heads = ", ".join(sorted({path.split(".")[0] for path in paths}))
                raise RecipeError(
                    f"train.stages[{place}].{field}: no parameter's path starts with {start}; parts: {heads}"
                )
            if field == "learns" and not any(parameter.requires_grad for parameter in found):
                raise RecipeError(
                    f"train.stages[{place}].learns: {start} cannot learn here: another setting freezes it"
                )
    if not any(parameter.requires_grad and stage.learning(path) for path, parameter in paths.items()):
        raise RecipeError(f"train.stages[{place}]: nothing learns in it; freeze less")
