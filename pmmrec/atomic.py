"""Write a file whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmmrec.errors import MachineError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place when the block ends well and goes when it does not.

    Raises MachineError when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{path.name}.incomplete")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(f"{path}: the disk is full; free some space or name another place") from error
        raise MachineError(f"{path}: cannot be written: {error}") from error
