"""Cache checkpoints of other machines, file by file; each file is verified before it gets its name."""

from __future__ import annotations

import difflib
import hashlib
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pmmrec.atomic import whole_file, writing_to
from pmmrec.errors import CheckpointError, MachineError, RecipeError
from pmmrec.homes import expanded
from pmmrec.zoo import files
from pmmrec.zoo.about import OBJECTIVES
from pmmrec.zoo.folder import CheckpointFolder
from pmmrec.zoo.hub.location import (
    CheckpointLocation,
    OutOfReachError,
    Warn,
    is_of_disk,
    is_short_for,
    moving_revision_warning,
    refuse_pickles,
    stale_copy_warning,
    with_revision,
)
from pmmrec.zoo.index import Index, PartEntry
from pmmrec.zoo.origin import CACHE, Origin, record_origin
from pmmrec.zoo.tensors import Promise, damage

_DRAFTS, _LOCK, _REVISIONS = "incomplete", "lock", "revisions.json"
_CURRENT, _DEFAULT = "now", "main"  # key for no revision, and the branch that this means on the Hugging Face Hub
_KEPT_OF_NAME = 60


@dataclass(frozen=True)
class Pulled:
    """A cached copy, and what was fetched to complete it."""

    folder: Path
    origin: Origin
    num_files: int  # fetched by this call
    num_bytes: int


class LocalCache:
    """The cached copies of one place: a folder per commit, which may hold some of the parts."""

    def __init__(self, location: CheckpointLocation) -> None:
        self.location = location
        plain = re.sub(r"[^\w.-]+", "-", location.name).strip("-.")[-_KEPT_OF_NAME:]
        digest = hashlib.sha256(location.key.encode()).hexdigest()
        self.home = expanded(CACHE) / f"{plain}-{digest[:12]}"

    def folder(self, commit: str) -> Path:
        """The folder of the cached copy of a commit; it may not exist yet."""
        return self.home / commit

    def resolve(self, warn: Warn) -> str:
        """The commit of the requested revision; warns where the revision may move, or where a cached copy may be old.

        Raises OutOfReachError where the place cannot be reached and no copy is cached.
        """
        location = self.location
        if location.is_pinned and location.revision is not None and self._has_index(location.revision):
            return location.revision
        try:
            commit = location.commit()
        except OutOfReachError as error:
            return self._last_known(error, warn)
        self._remember(commit)
        if not location.is_pinned:
            warn(moving_revision_warning(with_revision(location), location.name, commit))
        return commit

    def open(self, commit: str, *, repair: bool = False) -> CheckpointFolder:
        """The cached checkpoint of a commit, after its index and the files that belong to no part were fetched.

        `repair`: fetch an index again that cannot be read.
        """
        if not self._has_index(commit):
            with cache_lock(self.home):
                if not self._has_index(commit):
                    self._fetch_index(commit)
        try:
            checkpoint = CheckpointFolder.open(self.folder(commit))
        except CheckpointError as error:
            if not repair:
                again = f"`pmmrec zoo pull {with_revision(self.location)}` fetches it again"
                raise CheckpointError(f"{error}; {again}") from error
            with cache_lock(self.home):
                self._fetch_index(commit)
            checkpoint = CheckpointFolder.open(self.folder(commit))
        self.fetch(commit, checkpoint.index.promises_of(()))
        return checkpoint

    def fetch(self, commit: str, wanted: Mapping[str, Promise]) -> tuple[int, int]:
        """Fetch the files that are not cached; their number and their bytes.

        A file gets its name when it is complete and verified, so a pull that was stopped continues with the next file,
        or, where the location can resume, with the next byte.
        """
        folder, sizes = self.folder(commit), []
        if all((folder / path).is_file() for path in wanted):
            return 0, 0  # nothing is written, so that a read-only cache works
        with cache_lock(self.home):
            for path, promise in wanted.items():
                if not (folder / path).is_file():
                    sizes.append(self._fetch(commit, path, promise, folder / path))
            if sizes:
                shutil.rmtree(self._drafts, ignore_errors=True)
        return len(sizes), sum(sizes)

    def delete_damaged(self, commit: str, wanted: Mapping[str, Promise]) -> None:
        """Delete the files that are cached and damaged."""
        folder = self.folder(commit)
        for path, promise in wanted.items():
            if (folder / path).is_file() and damage(folder / path, promise):
                with writing_to(folder / path):
                    (folder / path).unlink()

    def _has_index(self, commit: str) -> bool:
        return (self.folder(commit) / files.INDEX_NAME).is_file()

    def _last_known(self, error: OutOfReachError, warn: Warn) -> str:
        revision = self._revision_key
        commit = (
            revision if self.location.is_pinned else self._revisions().get(revision) or self._unabbreviated(revision)
        )
        if commit is None or not self._has_index(commit):
            raise OutOfReachError(f"{error}; no copy of {with_revision(self.location)} is cached here") from error
        warn(stale_copy_warning(error, self.location.name, commit))
        return commit

    @property
    def _revision_key(self) -> str:
        revision = self.location.revision
        return _CURRENT if revision is None or revision == _DEFAULT else revision

    def _unabbreviated(self, revision: str) -> str | None:
        """The cached commit that `revision` abbreviates; None where there is none, or more than one."""
        found = [path.name for path in self.home.glob("*/") if is_short_for(revision, path.name) and path.is_dir()]
        return found[0] if len(found) == 1 else None

    def _revisions(self) -> dict[str, str]:
        """The recorded commits by revision. A broken record counts as empty, and is rewritten after the next answer."""
        path = self.home / _REVISIONS
        try:
            recorded = files.read_json(path) if path.is_file() else {}
        except CheckpointError:
            return {}
        pairs = recorded.items() if isinstance(recorded, dict) else ()
        return {revision: commit for revision, commit in pairs if isinstance(commit, str)}

    def _remember(self, commit: str) -> None:
        """Record the commit of a revision for use without a network; a read-only cache is left as it is."""
        revision = self._revision_key
        if self.location.is_pinned or self._revisions().get(revision) == commit:
            return
        with suppress(MachineError), cache_lock(self.home), whole_file(self.home / _REVISIONS) as draft:
            files.write_json(draft, {**self._revisions(), revision: commit})

    def _fetch_index(self, commit: str) -> None:
        """Fetch and check the index, then put it into the folder of the commit."""
        name = self.location.name
        with self._drafting() as drafts:
            draft = drafts / "index"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            self.location.fetch(commit, files.INDEX_NAME, draft / files.INDEX_NAME)
            try:
                index = CheckpointFolder.open(draft).index
            except CheckpointError as error:
                message = str(error).replace(f"{draft}/", f"{name}/").replace(str(draft), name)
                raise CheckpointError(message) from error
            refuse_pickles(name, index.all_files)
            folder = self.folder(commit)
            folder.mkdir(parents=True, exist_ok=True)
            record_origin(folder, Origin(name, commit))
            (draft / files.INDEX_NAME).replace(folder / files.INDEX_NAME)

    def _fetch(self, commit: str, path: str, promise: Promise, target: Path) -> int:
        with self._drafting() as drafts:
            draft = drafts / promise.sha256  # named by content, so that a partial file is resumed with the same content
            self.location.fetch(commit, path, draft)
            if reason := damage(draft, promise):
                draft.unlink()
                raise CheckpointError(
                    f"{self.location.name}: {path} is not what {files.INDEX_NAME} promises ({reason}): it was damaged "
                    "in transfer or changed after it was published; nothing of it was kept"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            size = draft.stat().st_size
            draft.replace(target)
        return size

    @property
    def _drafts(self) -> Path:
        return self.home / _DRAFTS

    @contextmanager
    def _drafting(self) -> Iterator[Path]:
        """A folder for incomplete files, outside every checkpoint; the caller holds the lock.

        What killed processes and broken connections leave there is deleted after a later fetch succeeds.
        """
        try:
            self._drafts.mkdir(parents=True, exist_ok=True)
            yield self._drafts
        except OSError as error:
            shutil.rmtree(self._drafts, ignore_errors=True)
            reason = "the disk is full" if is_of_disk(error) else error.strerror or error
            raise MachineError(f"{self.home}: cannot be written: {reason}") from error


@contextmanager
def cache_lock(home: Path) -> Iterator[None]:
    """Hold the lock for writing below `home`; other processes wait, and then find the files.

    Raises MachineError where `home` cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / _LOCK)
        lock.acquire()
    except OSError as error:
        raise MachineError(
            f"{home}: what is needed is not cached here, and cannot be: {error.strerror or error}; set "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from error
    try:
        yield
    finally:
        lock.release()


def pull(location: CheckpointLocation, parts: Collection[str] | None, warn: Warn, *, repair: bool = False) -> Pulled:
    """A cached copy with at least `parts`; None: all. `repair`: verify cached files and fetch damaged ones again."""
    cache = LocalCache(location)
    commit = cache.resolve(warn)
    checkpoint = cache.open(commit, repair=repair)
    wanted = files_of(checkpoint.index, parts, location.name)
    if repair:
        cache.delete_damaged(commit, wanted)
    num_files, num_bytes = cache.fetch(commit, wanted)
    refuse_code(checkpoint, parts)
    return Pulled(checkpoint.folder, checkpoint.origin, num_files, num_bytes)


def refuse_code(checkpoint: CheckpointFolder, parts: Collection[str] | None) -> None:
    """Raise CheckpointError where a configuration in one of the parts makes a library run code from elsewhere."""
    for entry in entries_of(checkpoint.index, parts, checkpoint.origin.place):
        files.refuse_code(checkpoint.folder / entry.folder, entry.files)


def files_of(index: Index, parts: Collection[str] | None, where: str) -> dict[str, Promise]:
    """What the index says about the files of these parts and about the small files that belong to no part."""
    return index.promises_of(entries_of(index, parts, where))


def entries_of(index: Index, parts: Collection[str] | None, where: str) -> list[PartEntry]:
    """The entries of parts by name; `objectives`: all heads; None: all entries. Raises RecipeError for an unknown name.

    For a part with adapters these are the entries of the adapters; the rest of it is in the base.
    """
    heads = {f"{OBJECTIVES}/{name}": entry for name, entry in index.objectives.items()}
    if parts is None:
        return [*index.parts.values(), *heads.values(), *index.adapted.values()]
    in_base = dict.fromkeys(index.base.parts if index.base is not None else (), ())
    named: dict[str, tuple[PartEntry, ...]] = {**in_base, OBJECTIVES: tuple(heads.values())}
    for name, entry in (*index.parts.items(), *index.adapted.items(), *heads.items()):
        named[name] = (*named.get(name, ()), entry)
    for name in parts:
        if name not in named:
            known = [known for known in named if known != OBJECTIVES or heads]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it holds {files.listed(known)}"
            raise RecipeError(f"{where}: holds no part {name!r}; {hint}")
    return [entry for name in dict.fromkeys(parts) for entry in named[name]]
