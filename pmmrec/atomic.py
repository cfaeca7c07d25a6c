"""Write a file whole or not at all."""

from __future__ import annotations

import errno
import os
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


def flush(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder: what is not flushed may be lost with the power."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and writes its entries through
    entry = os.open(path, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def make_folder(folder: Path, *, exist_ok: bool = True) -> None:
    """Make a folder and those above it, so that they outlive a loss of power. Raises OSError as `Path.mkdir`."""
    try:
        folder.mkdir()
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        make_folder(folder.parent)
        make_folder(folder, exist_ok=exist_ok)
    except FileExistsError:
        if not exist_ok:
            raise
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    else:
        flush(folder.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place when the block ends well and goes when it does not.

    A loss of power leaves the old content or the new. Raises MachineError when the disk is full or the folder cannot be
    written.
    """
    temporary = path.with_name(f"{path.name}.incomplete")
    with writing_to(path):
        make_folder(path.parent)
        try:
            yield temporary
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
