"""Write a file whole or not at all, and as the only one who does."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pmmrec.errors import OTHER_CACHE, MachineError, PMMRecError, RecipeError

_TOLD = re.compile(r"\(os error (\d+)\)")  # so tokenizers and safetensors, written in Rust, tell what the system said


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """What the system refuses while the block lasts, such as a full disk, becomes a MachineError that names `place`."""
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        number, reason = refusal
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(f"{place}: the disk is full; free some space or name another place") from error
        raise MachineError(f"{place}: cannot be written: {reason}") from error


@contextmanager
def caching_in(folder: Path, what: str, error_class: type[MachineError] = MachineError) -> Iterator[None]:
    """Turn what the system refuses while `what` is written to a cache into an error that says how to name another."""
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise error_class(
            f"{folder}: {what} cannot be kept there: {refusal[1]}; free space or name {OTHER_CACHE}"
        ) from error


def _refusal(error: Exception) -> tuple[int | None, str] | None:
    """Number and words of what the system refused; None for an error of another kind."""
    if isinstance(error, OSError):
        return error.errno, error.strerror or str(error)
    told = None if isinstance(error, PMMRecError) else _TOLD.search(str(error))
    return None if told is None else (int(told[1]), str(error))


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
def sole_writer(path: Path) -> Iterator[None]:
    """Be the only one who writes `path`, whose folder exists; RecipeError at once where somebody else writes it.

    The lock is the file `.NAME.lock` beside `path`, which goes when the block ends. The system drops the lock of a
    process that was killed. A disk that knows no locks is written to without one.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    lock = path.with_name(f".{path.name}.lock")
    held = _locked(lock, path)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_UN)  # forked processes may have the file open, too
        os.close(held)


def _locked(lock: Path, path: Path) -> int:
    """The open lock file; whoever held it before may have removed it meanwhile, then another is made."""
    import fcntl

    while True:
        held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise RecipeError(
                f"{path}: being written by another process; wait for it, or choose another place"
            ) from None
        except OSError:
            return held
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), lock.stat()):
                return held
        os.close(held)


@contextmanager
def whole_file(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place when the block ends well and goes when it does not.

    A loss of power leaves the old content or the new. Raises RecipeError where another process writes `path`, or where
    it exists and `replace` is False; MachineError when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{path.name}.incomplete")
    with writing_to(path):
        make_folder(path.parent)
        with sole_writer(path):
            if not replace and os.path.lexists(path):
                raise RecipeError(f"{path}: exists; choose another name or remove it")
            try:
                yield temporary
                flush(temporary)
                temporary.replace(path)
                flush(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
