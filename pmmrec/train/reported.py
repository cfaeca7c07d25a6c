"""Say an error once, where several processes of one machine meet it together.

Each process leaves a mark in a folder that torch's launcher makes for the processes of one machine. Where there is no
such folder every process speaks for itself.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

OWN_FILE = "TORCHELASTIC_ERROR_FILE"  # set by the launcher; lies in a folder of this process, in one of the launch


def is_first_report(told: str) -> bool:
    """Whether no other process of this launch and machine has said the same; from now on this one has."""
    folder = _folder()
    if folder is None:
        return True
    try:
        (folder / f"said-{hashlib.sha256(told.encode()).hexdigest()[:16]}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def was_any_reported() -> bool:
    """Whether a process of this launch and machine has said an error: what follows from its end is not worth a line."""
    folder = _folder()
    return folder is not None and any(folder.glob("said-*"))


def _folder() -> Path | None:
    own = os.environ.get(OWN_FILE)
    return Path(own).parents[1] if own and len(Path(own).parents) > 1 else None
