"""Work of a test that kills processes or receives signals, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable

WITHIN_S = 200  # below the limit of a test


def in_child(work: Callable[[], object], code: int = 0) -> None:
    """Run `work` in a forked copy of this process; where that does not end with `code`, fail with its traceback."""
    reading, writing = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=_tell, args=(work, writing))
    child.start()
    os.close(writing)
    with os.fdopen(reading) as told:
        child.join(WITHIN_S)
        if child.exitcode is None:
            child.kill()
            child.join()
        assert child.exitcode == code, f"exit code {child.exitcode}\n{told.read()}"


def _tell(work: Callable[[], object], writing: int) -> None:
    try:
        work()
    except BaseException:
        os.write(writing, traceback.format_exc()[-4000:].encode())
        raise
