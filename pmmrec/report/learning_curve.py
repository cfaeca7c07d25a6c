"""Say after how many users or epochs a transfer stops paying, and draw both learning curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pmmrec.atomic import whole_file
from pmmrec.evaluation.significance import Interval
from pmmrec.report.comparison import compare, read_systems
from pmmrec.report.epochs import Epoch, judged_by, read_epochs
from pmmrec.report.html.drawing import draw_by_users, draw_curves

CURVE_FILE, EPOCHS_PICTURE, USERS_PICTURE = "learning_curve.json", "learning_curve.png", "learning_curve_users.png"


@dataclass(frozen=True)
class Point:
    """A transfer and its twin from scratch, trained on the same users.

    Attributes:
        num_users: How many users trained them.
        names: Of the transfer and of its twin.
        epochs: Validation of both by epoch.
        figures: The metric of both on the test targets, each with the weights of its best epoch.
        difference: Transfer minus twin, paired over users.
    """

    num_users: int
    names: tuple[str, str]
    epochs: tuple[Sequence[Epoch], Sequence[Epoch]]
    figures: tuple[Interval, Interval]
    difference: Interval

    @property
    def pays(self) -> bool:
        """Whether the interval of the difference lies above zero."""
        return self.difference.low > 0

    def caught_up(self, metric: str) -> int | None:
        """The epoch from which scratch, by the best so far, is never behind the transfer; None: it always is."""
        ours, theirs = (_best_so_far(epochs, metric) for epochs in self.epochs)
        last = max(len(ours), len(theirs)) - 1
        behind = [epoch for epoch in range(last + 1) if _at(theirs, epoch) < _at(ours, epoch)]
        after = max(behind, default=0) + 1
        return after if after <= last else None


@dataclass(frozen=True)
class LearningCurve:
    """Transfer and scratch over epochs and over numbers of users, which rise."""

    metric: str  # of the test, in which they are compared
    judged_by: str  # of validation
    points: tuple[Point, ...]

    def sentence(self) -> str:
        """After how many users, or epochs where there is one number of users, transfer stopped paying."""
        return self._by_users() if len(self.points) > 1 else self._by_epochs(self.points[0])

    def record(self) -> dict[str, Any]:
        """What the pictures and the sentence show, for JSON."""
        return {
            "metric": self.metric,
            "validation_metric": self.judged_by,
            "sentence": self.sentence(),
            "points": [
                {
                    "num_users": point.num_users,
                    "runs": dict(zip(("transfer", "scratch"), point.names, strict=True)),
                    "test": {kind: vars(at) for kind, at in zip(("transfer", "scratch"), point.figures, strict=True)},
                    "difference": vars(point.difference),
                    "pays": point.pays,
                    "scratch_caught_up_in_epoch": point.caught_up(self.judged_by),
                    "validation": {
                        kind: {str(one.epoch): one.metrics[self.judged_by] for one in epochs}
                        for kind, epochs in zip(("transfer", "scratch"), point.epochs, strict=True)
                    },
                }
                for point in self.points
            ],
        }

    def write(self, folder: Path, warn: Callable[[str], object]) -> list[Path]:
        """Write the record and its pictures into a folder; a warning where matplotlib is missing. Returns the files."""
        pictures: dict[str, bytes] = {}
        if find_spec("matplotlib") is None:
            warn("the learning curve is not drawn: pip install 'pmmrec[report]' brings matplotlib")
        else:
            last = self.points[-1]
            systems = {name: [epochs] for name, epochs in zip(last.names, last.epochs, strict=True)}
            pictures[EPOCHS_PICTURE] = draw_curves(systems, self.judged_by)
            if len(self.points) > 1:
                drawn = {
                    "transfer": [point.figures[0] for point in self.points],
                    "scratch": [point.figures[1] for point in self.points],
                }
                pictures[USERS_PICTURE] = draw_by_users(drawn, [point.num_users for point in self.points], self.metric)
        pictures[CURVE_FILE] = (json.dumps(self.record(), indent=2) + "\n").encode()
        for name, content in pictures.items():
            with whole_file(folder / name) as draft:
                draft.write_bytes(content)
        return [folder / name for name in pictures]

    def _by_users(self) -> str:
        paying = [place for place, point in enumerate(self.points) if point.pays]
        over = f"{self.metric.upper()} over scratch in points"
        if not paying:
            told = ", ".join(f"{point.difference.in_points} with {point.num_users:,}" for point in self.points)
            return f"transfer is not shown to pay with any number of users: {over} is {told}"
        last = self.points[paying[-1]]
        if paying[-1] == len(self.points) - 1:
            return f"transfer still pays with all {last.num_users:,} users: {over} is {last.difference.in_points}"
        after = self.points[paying[-1] + 1]
        return (
            f"transfer stopped paying after {last.num_users:,} users: {over} is {last.difference.in_points} with "
            f"{last.num_users:,}, {after.difference.in_points} with {after.num_users:,}"
        )

    def _by_epochs(self, point: Point) -> str:
        caught, metric = point.caught_up(self.judged_by), self.judged_by.upper()
        over = f"{self.metric.upper()} over scratch is {point.difference.in_points}"
        tested = f"at their best epochs {over} points on the test"
        if caught is None:
            return f"transfer stayed ahead in all epochs, by the best validation {metric} so far; {tested}"
        if caught == 1:
            return f"transfer was ahead in no epoch, by the best validation {metric} so far; {tested}"
        return (
            f"transfer stopped paying after {caught - 1} epoch(s): from epoch {caught} on the model from scratch was "
            f"not behind, by the best validation {metric} so far; {tested}"
        )


def learning_curve(pairs: Sequence[tuple[int, Path, Path]]) -> LearningCurve:
    """Read finished runs: of each pair the number of users who trained it, the transfer's folder, and its twin's."""
    points, metric, judge = [], "", judged_by(pairs[0][1])
    for num_users, *folders in sorted(pairs):
        ours, theirs = systems = read_systems([str(folder) for folder in folders])
        compared = compare(systems, against=theirs.name)
        by_metric = {found.metric: found for found in compared.differences}
        metric = judge if judge in by_metric else list(by_metric)[-1]
        rows = {row.system: row.metrics[metric] for row in compared.domains[0].systems}
        figures = [_interval(rows[system.name]) for system in (ours, theirs)]
        epochs = [read_epochs(folder) for folder in folders]
        interval = by_metric[metric].interval
        names = (ours.name, theirs.name)
        points.append(Point(num_users, names, (epochs[0], epochs[1]), (figures[0], figures[1]), interval))
    return LearningCurve(metric, judge, tuple(points))


def _interval(share: Interval | float) -> Interval:
    return share if isinstance(share, Interval) else Interval(share, share, share)


def _best_so_far(epochs: Sequence[Epoch], metric: str) -> list[float]:
    """The best value up to each epoch, from epoch 0 on."""
    best: list[float] = []
    for epoch in epochs:
        best.append(max([*best[-1:], epoch.metrics[metric]]))
    return best


def _at(best: Sequence[float], epoch: int) -> float:
    """The best value up to an epoch, which may lie behind the last."""
    return best[min(epoch, len(best) - 1)]
