"""Find the unit of a domain's times."""

from __future__ import annotations

import numpy as np

from pmmrec.data.domain import Domain
from pmmrec.data.importers.units import SPANS

PER_SECOND = {"seconds": 1, "milliseconds": 1000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}


def unit_of_times(domain: Domain) -> str | None:
    """What the times of a domain count, such as seconds since 1970, by the calendar years that they would lie in.

    None where a domain has no times, or some that are no dates in any unit.
    """
    if domain.info.time_unit != "as given":
        return domain.info.time_unit
    stretch = next(domain.sequences.stretches(with_times=True))
    usual = 0 if stretch.time_H is None else float(np.median(stretch.time_H))
    return next((unit for unit, low, high in SPANS if low <= usual < high), None)
