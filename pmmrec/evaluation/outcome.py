"""The figures of one run on its domains, as metrics.json keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pmmrec.atomic import whole_file
from pmmrec.data.info import NAME_PATTERN
from pmmrec.data.split import Holdout, Split
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.baselines import baselines_for
from pmmrec.evaluation.catalogue import Evaluation, users_at_once
from pmmrec.evaluation.ranking import Seen, rank_targets
from pmmrec.evaluation.scenarios import Scenario, popularity_masks
from pmmrec.evaluation.significance import Interval
from pmmrec.settings import Config, validate

METRICS_FILE = "metrics.json"
OLD_KEY = "floors"  # of the baselines in metrics.json, before they were called so
BASELINE = "baseline:"  # so begins the column of ranks.parquet that holds the ranks of a baseline


class _WithBaselines(Config):
    """A part of metrics.json; older versions wrote its `baselines` under the key `floors`."""

    @model_validator(mode="before")
    @classmethod
    def _read_the_old_key(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or OLD_KEY not in tree or "baselines" in tree:
            return tree
        return {"baselines" if key == OLD_KEY else key: value for key, value in tree.items()}


class StratumOutcome(_WithBaselines):
    """Figures on some of the targets, means over them in 0..1; no figures where there are none."""

    num_targets: int = Field(ge=0)
    metrics: dict[str, Interval] = {}
    baselines: dict[str, dict[str, Interval]] = {}


class DomainOutcome(_WithBaselines):
    """Test figures on one domain, means over targets in 0..1, and those of the baselines where they were computed."""

    domain: str = Field(pattern=NAME_PATTERN)  # files of a run are named after it
    fingerprint: str  # of the domain's content
    num_users: int = Field(ge=1)
    num_items: int = Field(ge=1)
    seen_target: float
    metrics: dict[str, Interval]
    baselines: dict[str, dict[str, Interval]] = {}
    num_targets: int | None = None  # None: one for each user
    popularity: dict[str, StratumOutcome] = {}  # by how often the target's item occurs in training
    held_out: StratumOutcome | None = None  # where some targets lie in the training part: those that do not
    learned_here: bool = False  # whether the checkpoint was trained on this domain; its baselines always were


class Outcome(Config):
    """What a run or an evaluation found."""

    name: str
    kind: str
    domains: tuple[DomainOutcome, ...]
    seen: str = "exclude"
    scenario: Scenario = "regular"
    best_epoch: int | None = Field(None, ge=0)
    num_epochs: int | None = Field(None, ge=0)
    training_s: float | None = None
    seconds_per_epoch: float | None = None  # as the next three: of the training, without its validation
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    peak_memory_bytes: int | None = None  # of the device; without a GPU, of the process since its start
    validation: dict[str, float] = {}

    @model_validator(mode="after")
    def _tells_of_each_domain_once(self) -> Self:
        names = [found.domain for found in self.domains]
        if len(set(names)) < len(names):
            raise ValueError("domains: tells of one twice; measure the run again")
        return self


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write metrics.json below `folder`, whole or not at all."""
    with whole_file(folder / METRICS_FILE) as draft:
        draft.write_text(outcome.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_outcome(folder: Path) -> Outcome:
    """The outcome that a run or `evaluate --out` left in `folder`."""
    path = folder / METRICS_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder}: no {METRICS_FILE}: neither a finished run nor an evaluation") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    try:
        return validate(Outcome, tree, str(path))
    except RecipeError as error:
        raise DataError(str(error)) from error


def domain_outcome(
    split: Split,
    evaluation: Evaluation,
    baselines: Mapping[str, Evaluation] | None = None,
    *,
    is_held_out_Q: NDArray[np.bool_] | None = None,
    learned_here: bool = False,
) -> DomainOutcome:
    """Figures of one evaluation, with those of baselines beside them, and both by how popular the targets are.

    `is_held_out_Q` tells which targets lie outside the training part; None: all.
    """
    ranks, baselines = evaluation.ranks, baselines or {}
    num_users = len(np.unique(ranks.user_index.numpy()))
    masks = popularity_masks(split, ranks.target.numpy())
    held_out = None
    if is_held_out_Q is not None and not is_held_out_Q.all():
        held_out = _stratum(evaluation, baselines, is_held_out_Q)
    return DomainOutcome(
        domain=split.domain.name,
        fingerprint=split.domain.fingerprint,
        num_users=num_users,
        num_items=split.domain.num_items,
        seen_target=ranks.seen_share,
        metrics=dict(evaluation.intervals),
        baselines={name: dict(baseline.intervals) for name, baseline in baselines.items()},
        num_targets=ranks.num_queries if ranks.num_queries > num_users else None,
        popularity={name: _stratum(evaluation, baselines, is_in_Q) for name, is_in_Q in masks.items()},
        held_out=held_out,
        learned_here=learned_here,
    )


def rank_baselines(split: Split, seen: Seen = "exclude", holdout: Holdout | None = None) -> dict[str, Evaluation]:
    """Every baseline that can be had, on the test targets or on those of `holdout`; they know the train part only."""
    holdout, num_items = holdout or split.holdout("test"), split.domain.num_items
    chunk = users_at_once(num_items)
    scores = {name: baseline(split, holdout) for name, baseline in baselines_for(split).items()}
    return {
        name: Evaluation(rank_targets(holdout, num_items, score, seen=seen, chunk=chunk))
        for name, score in scores.items()
    }


def baseline_columns(baselines: Mapping[str, Evaluation]) -> dict[str, NDArray[np.int64]]:
    """What baselines add to ranks.parquet: a column of ranks for each, so that systems can be tested against them."""
    return {f"{BASELINE}{name}": baseline.ranks.rank.numpy() for name, baseline in baselines.items()}


def _stratum(evaluation: Evaluation, baselines: Mapping[str, Evaluation], is_in_Q: NDArray[np.bool_]) -> StratumOutcome:
    """Figures of a model and of the baselines on the same part of their targets."""
    if not is_in_Q.any():
        return StratumOutcome(num_targets=0)
    return StratumOutcome(
        num_targets=int(is_in_Q.sum()),
        metrics=dict(Evaluation(evaluation.ranks.where(is_in_Q)).intervals),
        baselines={
            name: dict(Evaluation(baseline.ranks.where(is_in_Q)).intervals) for name, baseline in baselines.items()
        },
    )
