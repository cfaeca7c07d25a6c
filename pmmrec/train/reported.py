"""Report an error once when several processes of one machine raise it together.

Each process leaves a marker file in a folder that torch's launcher makes for the processes of one machine. Without
such a folder every process reports its own errors.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

OWN_FILE = "TORCHELASTIC_ERROR_FILE"  # set by torchrun: LAUNCH FOLDER/PROCESS FOLDER/error.json


def is_first_report(message: str) -> bool:
    """Whether no other process of this launch and machine has reported this message; it then counts as reported."""
    folder = _folder()
    if folder is None:
        return True
    try:
        (folder / f"reported-{hashlib.sha256(message.encode()).hexdigest()[:16]}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def was_any_reported() -> bool:
    """Whether a process of this launch and machine has reported an error; its consequences need no report."""
    folder = _folder()
    return folder is not None and any(folder.glob("reported-*"))


def _folder() -> Path | None:
    own = os.environ.get(OWN_FILE)
    return Path(own).parents[1] if own and len(Path(own).parents) > 1 else None
