"""Read the validation metrics of a run by epoch from its events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pmmrec.errors import DataError
from pmmrec.settings import read_yaml

EVENTS_FILE = "events.jsonl"
RECIPE_FILE = "recipe.yaml"
DEFAULT_METRIC = "ndcg@10"


@dataclass(frozen=True)
class Epoch:
    """Validation after one epoch: means over users and domains, in 0..1. Epoch 0 is before any training."""

    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Best:
    """The best epoch of a run by one metric."""

    epoch: int
    value: float
    last: int  # the last epoch that was trained


def read_epochs(folder: Path) -> list[Epoch]:
    """The epochs in events.jsonl, in order. DataError if the file is missing or broken."""
    path = folder / EVENTS_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}; only a training run records epochs") from error
    found: dict[int, Epoch] = {}
    whole, _, _ = text.rpartition("\n")  # the last line of a running or killed run may be incomplete
    for place, line in enumerate(whole.splitlines(), start=1):
        epoch = _validation(line, f"{path}: line {place}")
        if epoch is not None:
            found[epoch.epoch] = epoch
    if not found:
        raise DataError(f"{path}: has no validation event, so the run has no epoch yet")
    return [found[epoch] for epoch in sorted(found)]


def _validation(line: str, where: str) -> Epoch | None:
    """The validation event in a line; None for any other event."""
    try:
        event = json.loads(line)
        if event["event"] != "validation":
            return None
        found = Epoch(int(event["epoch"]), {str(name): float(value) for name, value in event["mean"].items()})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: not an event of a run: {error}") from error
    if found.epoch < 0 or not all(0 <= value <= 1 for value in found.metrics.values()):
        raise DataError(f"{where}: not an event of a run: an epoch is 0 or more, a metric lies in 0..1")
    return found


def judged_by(folder: Path) -> str:
    """The metric by which a run chose its best epoch, from its recipe."""
    path = folder / RECIPE_FILE
    validation = read_yaml(path).get("validation") if path.is_file() else None
    metric = validation.get("metric") if isinstance(validation, Mapping) else None
    return metric if isinstance(metric, str) else DEFAULT_METRIC


def best_epoch(epochs: list[Epoch], metric: str) -> Best:
    """The first epoch with the highest value. DataError if an epoch lacks the metric."""
    lacking = [epoch.epoch for epoch in epochs if metric not in epoch.metrics]
    if lacking:
        raise DataError(f"epoch {lacking[0]}: validation has no {metric!r}; it has {', '.join(epochs[0].metrics)}")
    best = max(epochs, key=lambda epoch: (epoch.metrics[metric], -epoch.epoch))
    return Best(best.epoch, best.metrics[metric], epochs[-1].epoch)
