"""The interface of all locations of checkpoints, and messages and checks that they share."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from pmmrec.errors import CheckpointError, MachineError
from pmmrec.zoo import files

_LEAST_OF_COMMIT = 7  # characters of a shortened commit
WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before each retry
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".py", ".so")
_SECRETS = (
    (re.compile(r"\bhf_\w{4,}"), "hf_***"),
    (re.compile(r"//[^/@\s]*:[^/@\s]*@"), "//***@"),
    (re.compile(r"(?i)\b((?:x-amz-[\w-]+|signature|sig|token|awsaccesskeyid)=)[^&\s'\"]+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer )\S+"), r"\1***"),
)


class OutOfReachError(MachineError):
    """A place cannot be reached, or not now; a cached copy may be used."""


@dataclass(frozen=True)
class PushOptions:
    """How to publish a checkpoint."""

    replace: bool = False  # whether an existing checkpoint is replaced
    private: bool = False  # whether a new repository is private
    message: str | None = None  # of the commit


Warn = Callable[[str], object]


class CheckpointLocation(Protocol):
    """A location of one checkpoint, whose files can be fetched one by one."""

    @property
    def name(self) -> str:
        """The place as the user wrote it, without a revision."""
        ...

    @property
    def key(self) -> str:
        """A unique identifier, which also differs between places of the same name on two machines."""
        ...

    @property
    def revision(self) -> str | None:
        """The requested revision; None: the current one."""
        ...

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        ...

    def commit(self) -> str:
        """The commit of the revision now. Raises OutOfReachError where the place cannot be reached."""
        ...

    def fetch(self, commit: str, path: str, target: Path) -> None:
        """Fetch one file of a commit to `target`. Raises CheckpointError where the commit has no such file.

        `target` may hold the first bytes of the file, from which the download may resume. They stay after a failure.
        """
        ...

    def push(self, folder: Path, names: Sequence[str], options: PushOptions) -> str:
        """Publish files of a verified folder and its index, completely or not at all; the new commit."""
        ...


def is_short_for(revision: str, commit: str) -> bool:
    """Whether a revision is a shortened form of a commit."""
    return len(revision) >= _LEAST_OF_COMMIT and commit.startswith(revision)


def is_of_disk(error: BaseException) -> bool:
    """Whether the error says that the local disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def with_revision(place: CheckpointLocation) -> str:
    """The place with the requested revision."""
    return place.name if place.revision is None else f"{place.name}@{place.revision}"


def moving_revision_warning(place: str, name: str, commit: str) -> str:
    """The warning for a place without a commit."""
    return (
        f"{place}: names no commit, so it may change; it is now {commit}: to get the same again, write {name}@{commit}"
    )


def stale_copy_warning(error: Exception, name: str, commit: str) -> str:
    """The warning that a cached copy is used because a place cannot be reached."""
    return f"{error}; the cached copy of {name} is used, commit {commit}, which may be out of date"


def without_secrets(text: str) -> str:
    """The first line of the message of a library, with possible credentials masked."""
    line = text.strip().split("\n")[0]
    for pattern, shown in _SECRETS:
        line = pattern.sub(shown, line)
    return line


def refuse_pickles(where: str, names: Iterable[str]) -> None:
    """Raise CheckpointError where an index lists a file with the suffix of a pickle or a program."""
    for name in names:
        if PurePosixPath(name).suffix.lower() in _PICKLES:
            raise CheckpointError(
                f"{where}: {files.INDEX_NAME} lists {name}, which may run code when it is loaded; "
                "a checkpoint holds safetensors and JSON"
            )
