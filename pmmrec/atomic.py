"""Write a file whole or not at all."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmmrec.errors import MachineError, PMMRecError

_TOLD = re.compile(r"\(os error (\d+)\)")  # so tokenizers and safetensors, written in Rust, tell what the system said


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """What the system refuses while the block lasts, and be it a full disk, is a MachineError that names `place`."""
    try:
        yield
    except OSError as error:
        raise _refusal(place, error.errno, error.strerror or str(error)) from error
    except Exception as error:
        told = _TOLD.search(str(error))
        if told is None or isinstance(error, PMMRecError):
            raise
        raise _refusal(place, int(told[1]), str(error)) from error


def _refusal(place: Path, number: int | None, reason: str) -> MachineError:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(f"{place}: the disk is full; free some space or name another place")
    return MachineError(f"{place}: cannot be written: {reason}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place when the block ends well and goes when it does not.

    Raises MachineError when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{path.name}.incomplete")
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
