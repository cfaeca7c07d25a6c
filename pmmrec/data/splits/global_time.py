"""Global time split: two points in time, the same for all users, cut training, validation and test apart."""
# B users of one stretch, H items of their sequences.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timezone
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import Split, SplitPart, splits
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig

MAX_SHARE = 1  # numbers below are shares, others are times


class GlobalTimeConfig(PartConfig):
    """Settings of the global time split."""

    type: Literal["global_time"] = "global_time"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"validation": 0.2, "test": 0.2},)
    validation: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="Share of all interactions (below 1), or the time of the first one (1 or more).",
    )
    test: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="As validation. Times are in the unit of the domain: milliseconds, or as they were given.",
    )

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _is_no_date(cls, value: Any) -> Any:
        at = _date(value)
        if at is None:
            return value
        raise ValueError(
            f"{value} is a date; write a number in the unit of the domain's times, such as "
            f"{round(1000 * at.timestamp())} for milliseconds (of dates that name no zone in UTC)"
        )

    @model_validator(mode="after")
    def _cuts_in_order(self) -> Self:
        are_shares = {self.validation < MAX_SHARE, self.test < MAX_SHARE}
        if len(are_shares) > 1:
            raise ValueError("validation and test: give two shares (below 1) or two times (1 or more)")
        if self.are_shares and self.validation + self.test >= MAX_SHARE:
            raise ValueError(f"validation and test: {self.validation:g} and {self.test:g} leave nothing for training")
        if not self.are_shares and self.validation >= self.test:
            raise ValueError(
                f"validation and test: {self.validation:.15g} and {self.test:.15g} are not in order; the test comes "
                "after validation"
            )
        return self

    @property
    def are_shares(self) -> bool:
        return self.validation < MAX_SHARE


def _date(value: Any) -> datetime | None:
    """The moment that a date of YAML or of a text names, in UTC where it names no zone; None for anything else."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip()) if "-" in value else value
        except ValueError:
            return None
    if not isinstance(value, date):
        return None
    at = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day, tzinfo=timezone.utc)
    return at if at.tzinfo is not None else at.replace(tzinfo=timezone.utc)


@splits.register("global_time", GlobalTimeConfig)
class GlobalTime(Split):
    """Train on what happened before one point in time, validate on what followed, and test on what came last.

    The points are times, or follow from shares of all interactions; interactions at the time of a point belong to the
    later part. No model learns from anything that happened after its targets. A query has all items of its user in the
    held-out period as targets, and what the user did before that period as history; a user who did nothing before is
    no query. Needs a domain with times.

    Example:
        data: {split: {type: global_time, validation: 0.1, test: 0.1}}
    """

    reads_times = True
    no_query = "no user has interactions both in the held-out period and before it"
    config: GlobalTimeConfig

    def parts(self, stretch: Stretch) -> NDArray[np.uint8]:
        if stretch.time_H is None:
            raise DataError(f"{self.domain.folder}: sequences were read without times")
        from_validation, from_test = self.cuts
        part_H = np.full(len(stretch.time_H), SplitPart.TRAIN, dtype=np.uint8)
        part_H[stretch.time_H >= from_validation] = SplitPart.VALIDATION
        part_H[stretch.time_H >= from_test] = SplitPart.TEST
        return part_H

    @cached_property
    def cuts(self) -> tuple[float, float]:
        """The times at which validation and the test begin. DataError where a part would be empty.

        Shares need the times of all interactions in memory, once.
        """
        asked = self.config.validation, self.config.test
        time_H = self._times()
        if self.config.are_shares:
            held_out = int(len(time_H) * (asked[0] + asked[1])), int(len(time_H) * asked[1])
            places = [len(time_H) - max(1, count) for count in held_out]
            asked = tuple(np.partition(time_H, places)[places].tolist())
        from_validation, from_test = asked
        parts = {
            "training": time_H < from_validation,
            "validation": (time_H >= from_validation) & (time_H < from_test),
            "test": time_H >= from_test,
        }
        empty = [name for name, is_in_H in parts.items() if not is_in_H.any()]
        if empty:
            raise DataError(
                f"{self.domain.folder}: data.split: global_time leaves nothing for {' and '.join(empty)}: validation "
                f"begins at {from_validation:.15g}, the test at {from_test:.15g}, and the times of the domain are from "
                f"{time_H.min()} to {time_H.max()}; choose other shares or times"
            )
        return from_validation, from_test

    def _times(self) -> NDArray[np.int64]:
        times = [stretch.time_H for stretch in self.stretches() if stretch.time_H is not None]
        return np.concatenate(times) if times else np.empty(0, dtype=np.int64)
