"""The figures of one run on its domains, as metrics.json keeps them."""

from __future__ import annotations

import json
from pathlib import Path

from pmmrec.atomic import whole_file
from pmmrec.data.split import Split
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.catalogue import Evaluation, summarise, users_at_once
from pmmrec.evaluation.floors import FLOORS
from pmmrec.evaluation.ranking import Seen, rank_targets
from pmmrec.evaluation.significance import Interval
from pmmrec.settings import Config, validate

METRICS_FILE = "metrics.json"


class DomainOutcome(Config):
    """Test figures on one domain, means over users in 0..1, and those of the floors where they were computed."""

    domain: str
    fingerprint: str  # of the domain's content
    num_users: int
    num_items: int
    seen_target: float
    metrics: dict[str, Interval]
    floors: dict[str, dict[str, Interval]] = {}


class Outcome(Config):
    """What a run or an evaluation found."""

    name: str
    kind: str
    domains: tuple[DomainOutcome, ...]
    seen: str = "exclude"
    best_epoch: int | None = None
    num_epochs: int | None = None
    training_s: float | None = None
    seconds_per_epoch: float | None = None  # as the next three: of the training, without its validation
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    peak_memory_bytes: int | None = None  # of the device; without a GPU, of the process since its start
    validation: dict[str, float] = {}


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


def domain_outcome(split: Split, evaluation: Evaluation, floors: dict[str, Evaluation] | None = None) -> DomainOutcome:
    """Figures of one evaluation, with those of floors beside them."""
    return DomainOutcome(
        domain=split.domain.name,
        fingerprint=split.domain.fingerprint,
        num_users=evaluation.ranks.num_queries,
        num_items=split.domain.num_items,
        seen_target=evaluation.ranks.seen_share,
        metrics=dict(evaluation.intervals),
        floors={name: dict(floor.intervals) for name, floor in (floors or {}).items()},
    )


def floors_of(split: Split, seen: Seen = "exclude") -> dict[str, Evaluation]:
    """Every floor on the test targets; they know the train part only."""
    holdout, num_items = split.holdout("test"), split.domain.num_items
    chunk = users_at_once(num_items)
    scores = {name: floor(split, holdout) for name, floor in FLOORS.items()}
    return {
        name: summarise(rank_targets(holdout, num_items, score, seen=seen, chunk=chunk))
        for name, score in scores.items()
    }
