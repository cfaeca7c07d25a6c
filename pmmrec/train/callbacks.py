"""Callbacks between epochs: rank validation targets, keep the best weights, stop early."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Holdout, Split
from pmmrec.errors import DivergenceError
from pmmrec.evaluation.catalogue import NotFiniteVectorError, evaluate_model
from pmmrec.evaluation.metrics import CUTOFFS, METRIC_PATTERN, Measured, metric_name
from pmmrec.evaluation.ranking import Seen
from pmmrec.progress import bars
from pmmrec.settings import Config, Place
from pmmrec.train.loop import Loop
from pmmrec.train.nonfinite import ADVICE

MANY_USERS = 1_000_000
_OF_RANKING = ("domain", "metric", "cutoffs", "seen")
LOSS = "loss"  # of the metrics of an epoch, where it is judged by the loss


class ValidationConfig(Config):
    """How epochs are validated. Every choice is made on validation; test targets are ranked once, at the end."""

    judge: Literal["ranking", "loss"] = Field(
        "ranking",
        description="ranking: by a metric of the validation targets. loss: by the total loss of the validation "
        "targets, for a stage that ranks nothing; needs rank_test: false.",
    )
    domain: Place | None = Field(
        None,
        description="Of a pretraining: the folder of a domain that is no source; epochs are judged by its validation "
        "targets, zero-shot, instead of those of the sources. Popularity in the score is that of its training part.",
    )
    metric: str = Field(
        "ndcg@10",
        description="Chooses the best epoch: hr, recall, ndcg, mrr or map at a cut-off, mrr or auc.",
    )
    cutoffs: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        CUTOFFS, min_length=1, description="Metrics are computed within so many ranks, on validation and on the test."
    )
    seen: Seen = Field("exclude", description="exclude: seen items are not candidates; include: all items are.")
    users: int | None = Field(
        None,
        ge=1,
        description="How many users of each domain are ranked, after each epoch and at the end, always the same ones; "
        "null: all.",
    )
    patience: int = Field(
        5,
        ge=1,
        description="Epochs without a better value than that of an earlier epoch before training stops; the weights "
        "before the first epoch do not count, nor do epochs before the last of train.stages, which is always reached.",
    )

    @field_validator("metric")
    @classmethod
    def _is_a_metric(cls, metric: str) -> str:
        if not re.match(METRIC_PATTERN, metric):
            raise ValueError(
                f"{metric!r} is not a metric; name hr, recall, ndcg, mrr or map at a cut-off (ndcg@10), mrr or auc"
            )
        return metric

    @field_validator("cutoffs")
    @classmethod
    def _names_each_once(cls, cutoffs: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(cutoffs)) < len(cutoffs):
            raise ValueError(f"{', '.join(map(str, cutoffs))}: a cut-off is listed twice; name each once")
        return cutoffs

    @model_validator(mode="after")
    def _loss_ranks_nothing(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in _OF_RANKING if getattr(self, name) != fields[name].default]
        if self.judge == "loss" and idle:
            usual = ", ".join(f"{name}: {_plain(fields[name].default)}" for name in idle)
            raise ValueError(
                f"{', '.join(idle)}: without effect, judge: loss ranks nothing; leave out, or say what is usual over "
                f"an extended recipe ({usual})"
            )
        return self

    @property
    def judged_by(self) -> str:
        """The metric that chooses the best epoch."""
        return LOSS if self.judge == "loss" else self.metric

    def is_better(self, value: float, best: float) -> bool:
        """Whether an epoch with this value is better than the best so far."""
        return value < best if self.judge == "loss" else value > best

    @property
    def measured(self) -> Measured:
        """The metrics to compute, with the one that chooses the best epoch."""
        return Measured(self.cutoffs, (self.metric,))


def _plain(value: object) -> object:
    """A value of a setting as YAML would write it."""
    return list(value) if isinstance(value, tuple) else value


class RankEvery:
    """Ranks the validation targets of every domain after each epoch; an epoch is judged by the mean over domains.

    All processes share the work.
    """

    def __init__(
        self, config: ValidationConfig, reader: ItemReader, splits: Sequence[Split], names: Sequence[str]
    ) -> None:
        self._config, self._reader, self._splits, self._names = config, reader, splits, names
        self._holdouts: list[Holdout] | None = None

    def epoch_ended(self, loop: Loop, epoch: int) -> None:
        if self._holdouts is None:
            self._holdouts = [self._holdout(loop, split) for split in self._splits]
        by_domain: dict[str, dict[str, float]] = {}
        device, seen = loop.processes.device, self._config.seen
        asked = zip(self._names, self._splits, self._holdouts, strict=True)
        for index, (name, split, holdout) in enumerate(asked):
            model, group = loop.task.recommender, loop.group
            try:
                with loop.gathered_parameters(), bars(is_shown=loop.processes.is_main) as progress:
                    evaluation = evaluate_model(
                        *(model, self._reader, index, split, holdout, device, seen),
                        measured=self._config.measured,
                        group=group,
                        progress=progress,
                    )
            except NotFiniteVectorError as error:
                item = split.domain.item_ids[error.row].as_py()
                raise DivergenceError(
                    f"step {loop.step}: every weight is finite, the vector of item {name}/{item} is not. {ADVICE}"
                ) from error
            by_domain[name] = dict(evaluation.metrics)
        by_domain = loop.processes.from_main(by_domain)
        shared = [key for key in by_domain[self._names[0]] if all(key in m for m in by_domain.values())]
        metrics = {key: float(np.mean([m[key] for m in by_domain.values()])) for key in shared}
        loop.validation[epoch] = metrics
        loop.log.event("validation", loop.step, epoch=epoch, mean=metrics, domains=by_domain)
        names = [metric_name(measure, self._config.cutoffs[0]) for measure in ("hr", "ndcg")]
        shown = "  ".join(f"{domain} {'/'.join(f'{m[name]:.2%}' for name in names)}" for domain, m in by_domain.items())
        loop.log.say(f"epoch {epoch:>3}  validation {'/'.join(names).upper()}: {shown}")

    def _holdout(self, loop: Loop, split: Split) -> Holdout:
        """The validation targets of a domain."""
        domain = split.domain
        if self._config.users is None and domain.num_users > MANY_USERS:
            loop.log.warn(
                f"{domain.name}: all of its {domain.num_users:,} users are ranked after each epoch and in the end; "
                "validation.users=10000 ranks so many of them"
            )
        holdout = split.holdout("validation", self._config.users)
        if warning := split.left_out(holdout):
            loop.log.warn(warning)
        return holdout


class KeepBest:
    """Saves the weights whenever validation improves; ends training after `patience` epochs without, or in time."""

    def __init__(self, config: ValidationConfig, save: Callable[[Loop], None]) -> None:
        self._config, self._save = config, save

    def epoch_ended(self, loop: Loop, epoch: int) -> None:
        value = loop.validation[epoch][self._config.judged_by]
        if loop.best is None or self._config.is_better(value, loop.best[1]):
            loop.best = (epoch, value)
            self._save(loop)
        counted_from = max(self._best_trained(loop, epoch), loop.config.epochs_before_last_stage)
        is_patient = counted_from + self._config.patience >= loop.config.epochs
        loop.may_end_early = not is_patient or loop.config.minutes is not None
        if epoch - counted_from >= self._config.patience:
            loop.should_stop, name = True, self._config.judged_by
            best = "" if loop.best[0] else "; the weights that training began with stay the best"
            loop.log.say(f"epoch {epoch:>3}  no better {name} since epoch {counted_from}: training ends{best}")
        elif self._is_out_of_time(loop, epoch):
            loop.should_stop = True
            loop.log.say(f"epoch {epoch:>3}  another would pass train.minutes={loop.config.minutes:g}: training ends")

    def _best_trained(self, loop: Loop, epoch: int) -> int:
        """The best epoch so far that trained, the first where none has.

        Weights that nothing trained here may rank better than the first epochs: a pretrained text encoder finds items
        alike, and training must first learn to use it.
        """
        best = 1
        for later in range(2, epoch + 1):
            value, at_best = (loop.validation[one][self._config.judged_by] for one in (later, best))
            best = later if self._config.is_better(value, at_best) else best
        return best

    def _is_out_of_time(self, loop: Loop, epoch: int) -> bool:
        """Whether one more epoch, as long as those so far, would take training past `train.minutes`."""
        if loop.config.minutes is None or not 0 < epoch < loop.config.epochs:
            return False
        seconds: float = loop.processes.from_main(loop.training_s)  # all end in the same epoch
        return seconds * (epoch + 1) / epoch > 60 * loop.config.minutes
