"""What every place that holds checkpoints can do, whoever keeps it."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from pmmrec.errors import CheckpointError, MachineError
from pmmrec.zoo import files

SHORT_COMMIT = 12
_LEAST_OF_COMMIT = 7  # characters that may stand for a commit
WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before each further try
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".py", ".so")
_SECRETS = (
    (re.compile(r"\bhf_\w{4,}"), "hf_***"),
    (re.compile(r"//[^/@\s]*:[^/@\s]*@"), "//***@"),
    (re.compile(r"(?i)\b((?:x-amz-[\w-]+|signature|sig|token|awsaccesskeyid)=)[^&\s'\"]+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer )\S+"), r"\1***"),
)


class OutOfReachError(MachineError):
    """Nobody answers at a place, or not now: a cached copy may serve."""


@dataclass(frozen=True)
class PushOptions:
    """How a checkpoint is to be published."""

    replace: bool = False  # whether a checkpoint that stands there gives way
    private: bool = False  # whether a repository that is made is private
    message: str | None = None  # of the commit


Warn = Callable[[str], object]


class CheckpointLocation(Protocol):
    """Somewhere that holds one checkpoint, and can be asked for one file of it."""

    @property
    def name(self) -> str:
        """As people give it, without a revision."""
        ...

    @property
    def key(self) -> str:
        """Tells it from every other place, also from one of this name on another machine."""
        ...

    @property
    def revision(self) -> str | None:
        """The revision that was asked for; None: what stands there now."""
        ...

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        ...

    def commit(self) -> str:
        """The commit that the revision stands for now. Raises OutOfReachError where nobody answers."""
        ...

    def fetch(self, commit: str, path: str, target: Path) -> None:
        """Write the bytes of one file of a commit to `target`. Raises CheckpointError where it is not there.

        What `target` holds already are its first bytes, which a place may go on from. They stay where it fails.
        """
        ...

    def push(self, folder: Path, names: Sequence[str], options: PushOptions) -> str:
        """Publish these files and the index, whole or not at all; the commit. `folder` was verified."""
        ...


def is_short_for(revision: str, commit: str) -> bool:
    """Whether a revision is the beginning of a commit, long enough to be meant as one."""
    return len(revision) >= _LEAST_OF_COMMIT and commit.startswith(revision)


def is_of_disk(error: BaseException) -> bool:
    """Whether it says that the disk here is full, which is no matter of a place."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def described(place: CheckpointLocation) -> str:
    """The place with the revision that was asked for."""
    return place.name if place.revision is None else f"{place.name}@{place.revision}"


def moving(place: str, name: str, commit: str) -> str:
    """What people hear of a place that names no commit."""
    return (
        f"{place}: names no commit, so it may change; today it stands for {commit}: to meet the same again, write "
        f"{name}@{commit}"
    )


def behind(error: Exception, name: str, commit: str) -> str:
    """What people hear where a copy serves because nobody answers."""
    return f"{error}; the cached copy of {name} is used, commit {commit}, which may be behind"


def without_secrets(text: str) -> str:
    """The first line of a message of some library, less what could be a credential."""
    line = text.strip().split("\n")[0]
    for pattern, shown in _SECRETS:
        line = pattern.sub(shown, line)
    return line


def refuse_pickles(where: str, names: Iterable[str]) -> None:
    """CheckpointError where an index lists what only a pickle or a program would be called."""
    for name in names:
        if PurePosixPath(name).suffix.lower() in _PICKLES:
            raise CheckpointError(
                f"{where}: {files.INDEX_NAME} lists {name}, which may run code when it is read; "
                "a checkpoint holds safetensors and JSON"
            )
