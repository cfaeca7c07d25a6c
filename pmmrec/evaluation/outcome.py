"""The metrics of one run on its domains, as metrics.json stores them."""

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
from pmmrec.data.splits import Holdout, Split
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.baselines import baselines_for, num_scored_at_once
from pmmrec.evaluation.catalogue import Evaluation
from pmmrec.evaluation.metrics import USUAL, Measured
from pmmrec.evaluation.ranking import Seen, rank_targets
from pmmrec.evaluation.scenarios import Scenario, popularity_masks
from pmmrec.evaluation.significance import Interval
from pmmrec.evaluation.tuned_baselines import TUNED_BASELINES
from pmmrec.settings import Config, validate

METRICS_FILE = "metrics.json"
OLD_KEY = "floors"  # the key of `baselines` in metrics.json of older versions
BASELINE = "baseline:"  # prefix of the columns of ranks.parquet that hold the ranks of baselines


class _WithBaselines(Config):
    """A part of metrics.json; older versions wrote its `baselines` under the key `floors`."""

    @model_validator(mode="before")
    @classmethod
    def _read_the_old_key(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or OLD_KEY not in tree or "baselines" in tree:
            return tree
        return {"baselines" if key == OLD_KEY else key: value for key, value in tree.items()}


class StratumOutcome(_WithBaselines):
    """Metrics on some of the targets, means in 0..1; empty if there are no such targets."""

    num_targets: int = Field(ge=0)
    metrics: dict[str, Interval] = {}
    baselines: dict[str, dict[str, Interval]] = {}


class DomainOutcome(_WithBaselines):
    """Test metrics on one domain, means over targets in 0..1, and those of the baselines if they were computed."""

    domain: str = Field(pattern=NAME_PATTERN)  # files of a run are named after it
    fingerprint: str  # of the domain's content
    num_users: int = Field(ge=1)
    num_items: int = Field(ge=1)
    seen_target: float
    metrics: dict[str, Interval]
    baselines: dict[str, dict[str, Interval]] = {}
    num_targets: int | None = None  # None: one per user
    num_candidates: float | None = None  # mean of the queries, where each has its own list of candidates
    popularity: dict[str, StratumOutcome] = {}  # by how often the target occurs in training
    held_out: StratumOutcome | None = None  # the targets outside the training part, if some lie inside it
    learned_here: bool = False  # whether the checkpoint was trained on this domain, as baselines always are


class Outcome(Config):
    """All that a run or an evaluation measured."""

    name: str
    kind: str
    domains: tuple[DomainOutcome, ...]
    seen: str = "exclude"
    scenario: Scenario = "regular"
    split: dict[str, Any] = {"type": "leave_one_out"}  # the settings of the split; older versions had no other
    best_epoch: int | None = Field(None, ge=0)
    num_epochs: int | None = Field(None, ge=0)
    training_s: float | None = None
    seconds_per_epoch: float | None = None  # this and the next three: of training, without validation
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    peak_memory_bytes: int | None = None  # of the GPU; without one, of the process since its start
    validation: dict[str, float] = {}
    judged_by: str | None = None  # the domain whose validation targets chose the epoch; None: those of the run
    blend: dict[str, Any] | None = None  # the settings of a blend with co-occurrence and popularity

    @model_validator(mode="after")
    def _names_each_domain_once(self) -> Self:
        names = [found.domain for found in self.domains]
        if len(set(names)) < len(names):
            raise ValueError("domains: one is listed twice; measure the run again")
        return self


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write metrics.json into `folder`, whole or not at all."""
    with whole_file(folder / METRICS_FILE) as draft:
        draft.write_text(outcome.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_outcome(folder: Path) -> Outcome:
    """Read the metrics.json that a run or `evaluate --out` wrote. DataError if it is missing or invalid."""
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
    is_held_out_T: NDArray[np.bool_] | None = None,
    learned_here: bool = False,
) -> DomainOutcome:
    """Metrics of an evaluation and of baselines on the same targets, also by how popular the targets are.

    `is_held_out_T` says which targets lie outside the training part; None: all of them.
    """
    ranks, baselines = evaluation.ranks, baselines or {}
    num_users = len(np.unique(ranks.user_index.numpy()))
    masks = popularity_masks(split, ranks.target.numpy())
    held_out = None
    if is_held_out_T is not None and not is_held_out_T.all():
        held_out = _stratum(evaluation, baselines, is_held_out_T)
    return DomainOutcome(
        domain=split.domain.name,
        fingerprint=split.domain.fingerprint,
        num_users=num_users,
        num_items=split.domain.num_items,
        seen_target=ranks.seen_share,
        metrics=dict(evaluation.intervals),
        baselines={name: dict(baseline.intervals) for name, baseline in baselines.items()},
        num_targets=ranks.num_targets if ranks.num_targets > num_users else None,
        num_candidates=ranks.num_candidates.double().mean().item() if split.ranks_lists else None,
        popularity={name: _stratum(evaluation, baselines, is_in_T) for name, is_in_T in masks.items()},
        held_out=held_out,
        learned_here=learned_here,
    )


def rank_baselines(
    split: Split,
    seen: Seen = "exclude",
    holdout: Holdout | None = None,
    measured: Measured = USUAL,
    *,
    tuned: bool = False,
) -> dict[str, Evaluation]:
    """Evaluate every baseline that fits in memory, on the test targets or on those of `holdout`.

    `tuned`: also those whose settings are chosen on the validation targets; MachineError where one does not fit.
    """
    holdout, num_items = holdout or split.holdout("test"), split.domain.num_items
    chunk = num_scored_at_once(num_items)
    more = {name: tune(split, seen).baseline for name, tune in TUNED_BASELINES.items()} if tuned else {}
    scores = {name: baseline(split, holdout) for name, baseline in {**baselines_for(split), **more}.items()}
    rules: dict[str, Any] = {"seen": seen, "chunk": chunk, "counts_ties": measured.reads_ties}
    return {
        name: Evaluation(rank_targets(holdout, num_items, score, **rules), measured) for name, score in scores.items()
    }


def baseline_columns(baselines: Mapping[str, Evaluation]) -> dict[str, NDArray[np.int64]]:
    """The columns of baselines in ranks.parquet: one of ranks for each, so that systems can be tested against them."""
    return {f"{BASELINE}{name}": baseline.ranks.rank.numpy() for name, baseline in baselines.items()}


def _stratum(evaluation: Evaluation, baselines: Mapping[str, Evaluation], is_in_T: NDArray[np.bool_]) -> StratumOutcome:
    """Metrics of a model and of the baselines on the same part of the targets."""
    if not is_in_T.any():
        return StratumOutcome(num_targets=0)
    return StratumOutcome(
        num_targets=int(is_in_T.sum()),
        metrics=dict(evaluation.where(is_in_T).intervals),
        baselines={name: dict(baseline.where(is_in_T).intervals) for name, baseline in baselines.items()},
    )
