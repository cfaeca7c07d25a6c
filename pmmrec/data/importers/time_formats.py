"""Find how dates that are not ISO dates are written, to name the format to a user."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import product

_DAYS = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%d/%m/%y", "%m/%d/%y")
_NAMED_DAYS = ("%d.%m.%y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y")
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
FORMATS = tuple(day + time for day, time in product((*_DAYS, *_NAMED_DAYS), _TIMES))


def formats_of(stamps: Sequence[str]) -> list[str]:
    """Formats of strptime that read all of the times; of two, days come first in one and months in the other."""
    return [name for name in FORMATS if stamps and all(_reads(name, stamp.strip()) for stamp in stamps)]


def format_advice(stamps: Sequence[str]) -> str:
    """What to do about times that cannot be read, for a message."""
    formats = " or ".join(f"--time-format '{name}'" for name in formats_of(stamps))
    if formats:
        return f"say how they are written: {formats}"
    return "give seconds, milliseconds or ISO dates, say how they are written (--time-format '%d.%m.%Y %H:%M')"


def _reads(name: str, stamp: str) -> bool:
    try:
        datetime.strptime(stamp, name)
    except ValueError:
        return False
    return True
