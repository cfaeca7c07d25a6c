"""Plans for a domain, measured on the same validation targets, and which of them to choose."""
# Q users.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmmrec.evaluation.significance import Interval, difference_interval, mean_interval
from pmmrec.report.tables import Percent
from pmmrec.tables import Cell, PlainTable

METRIC, SECOND_METRIC = "ndcg@10", "hr@10"


@dataclass(frozen=True)
class MeasuredPlan:
    """One way to recommend on the domain, and what it did on the validation targets.

    Attributes:
        name: Such as `frozen`.
        values: The metrics of each user, `(Q,)`, by name.
        cpu_s: CPU seconds that it took, all threads together.
        command: The command line that carries it out.
        note: What a reader of its figures must know.
    """

    name: str
    values: dict[str, NDArray[np.float64]]
    cpu_s: float
    command: str
    note: str = ""

    def interval(self, metric: str = METRIC) -> Interval:
        """The mean over users with its interval."""
        return mean_interval(self.values[metric])

    def over(self, other: MeasuredPlan) -> Interval:
        """NDCG@10 of this plan minus that of another, paired over users."""
        return difference_interval(self.values[METRIC], other.values[METRIC])


@dataclass(frozen=True)
class Advice:
    """The measured plans of a domain, from the simplest to the dearest."""

    checkpoint: str
    domain: str
    num_users: int
    plans: tuple[MeasuredPlan, ...]

    @property
    def best(self) -> MeasuredPlan:
        """The plan of the highest NDCG@10; of equal ones the simplest."""
        return max(self.plans, key=lambda plan: float(plan.values[METRIC].mean()))

    @property
    def recommended(self) -> MeasuredPlan:
        """The simplest plan that none is shown to beat: the paired intervals of all others over it reach zero."""
        best = self.best
        return next(plan for plan in self.plans if plan is best or self._is_unbeaten(plan))

    def _is_unbeaten(self, plan: MeasuredPlan) -> bool:
        return all(other.over(plan).low <= 0 for other in self.plans if other is not plan)

    def table(self) -> PlainTable:
        """A row for each plan: metrics in %, the difference to the recommended one in points, the price, a note."""
        chosen = self.recommended
        rows: list[list[Cell]] = [
            [
                plan.name,
                Percent(plan.interval(SECOND_METRIC)),
                Percent(plan.interval()),
                None if plan is chosen else Percent(plan.over(chosen)),
                round(plan.cpu_s, 1),
                plan.note or None,
            ]
            for plan in self.plans
        ]
        title = (
            f"{self.domain}: validation targets of {self.num_users:,} users, in %, 95 % intervals over users; no test "
            "target was read"
        )
        columns = ["plan", SECOND_METRIC.upper(), METRIC.upper(), f"over {chosen.name}", "CPU seconds", "note"]
        return PlainTable(title, columns, rows)

    def lines(self) -> list[str]:
        """The recommendation, why, and its command line."""
        chosen, best = self.recommended, self.best
        told = f"recommended: {chosen.name}, the best of {len(self.plans)} by {METRIC.upper()}"
        if chosen is not best:
            told = (
                f"recommended: {chosen.name}, the simplest that none is shown to beat by {METRIC.upper()}; the best is "
                f"{best.name}, by {best.over(chosen).in_points} points"
            )
        return [told, chosen.command]

    def record(self) -> dict[str, Any]:
        """The same for JSON: shares in 0..1, differences are plan minus recommended plan."""
        chosen = self.recommended
        return {
            "checkpoint": self.checkpoint,
            "domain": self.domain,
            "num_users": self.num_users,
            "targets": "validation",
            "plans": [
                {
                    "plan": plan.name,
                    "metrics": {metric: vars(plan.interval(metric)) for metric in (SECOND_METRIC, METRIC)},
                    "over_recommended": vars(plan.over(chosen)),
                    "cpu_s": round(plan.cpu_s, 1),
                    "command": plan.command,
                    "note": plan.note,
                }
                for plan in self.plans
            ],
            "best": self.best.name,
            "recommended": chosen.name,
            "command": chosen.command,
        }
