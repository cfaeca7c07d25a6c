"""Keep copies of what other machines hold: file by file, each checked before it gets its name."""

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
    behind,
    described,
    is_of_disk,
    is_short_for,
    moving,
    refuse_pickles,
)
from pmmrec.zoo.index import Index, PartEntry
from pmmrec.zoo.origin import CACHE, Origin, record_origin
from pmmrec.zoo.tensors import Promise, damage

_DRAFTS, _LOCK, _REVISIONS = "incomplete", "lock", "revisions.json"
_NOW, _DEFAULT = "now", "main"  # the revision of who names none, and the branch that this is on the Hugging Face Hub
_KEPT_OF_NAME = 60


@dataclass(frozen=True)
class Pulled:
    """A cached copy, and what it cost to make it whole."""

    folder: Path
    origin: Origin
    num_files: int  # fetched by this call
    num_bytes: int


class LocalCache:
    """The cached copies of one place: a folder for each commit, in which a checkpoint may stand in part."""

    def __init__(self, place: CheckpointLocation) -> None:
        self.place = place
        plain = re.sub(r"[^\w.-]+", "-", place.name).strip("-.")[-_KEPT_OF_NAME:]
        digest = hashlib.sha256(place.key.encode()).hexdigest()
        self.home = expanded(CACHE) / f"{plain}-{digest[:12]}"

    def folder(self, commit: str) -> Path:
        """Where the copy of a commit stands, or will."""
        return self.home / commit

    def resolve(self, warn: Warn) -> str:
        """The commit that was asked for; warns where it may be another tomorrow, or may be another already.

        Raises OutOfReachError where nobody answers and no copy is here.
        """
        place = self.place
        if place.is_pinned and place.revision is not None and self._holds(place.revision):
            return place.revision
        try:
            commit = place.commit()
        except OutOfReachError as error:
            return self._last_known(error, warn)
        self._remember(commit)
        if not place.is_pinned:
            warn(moving(described(place), place.name, commit))
        return commit

    def open(self, commit: str, *, mend: bool = False) -> CheckpointFolder:
        """The checkpoint of a commit, of which at least the index and what belongs to no part is here.

        `mend`: an index that cannot be read is fetched again.
        """
        if not self._holds(commit):
            with one_at_a_time(self.home):
                if not self._holds(commit):
                    self._fetch_index(commit)
        try:
            checkpoint = CheckpointFolder.open(self.folder(commit))
        except CheckpointError as error:
            if not mend:
                again = f"`pmmrec zoo pull {described(self.place)}` fetches it again"
                raise CheckpointError(f"{error}; {again}") from error
            with one_at_a_time(self.home):
                self._fetch_index(commit)
            checkpoint = CheckpointFolder.open(self.folder(commit))
        self.fetch(commit, checkpoint.index.promises_of(()))
        return checkpoint

    def fetch(self, commit: str, wanted: Mapping[str, Promise]) -> tuple[int, int]:
        """Fetch those of the files that are not here; how many, and their bytes.

        A file gets its name when it is whole and right, so a stopped pull goes on with the next file, and, where the
        place can give the rest of a file, with its next byte.
        """
        folder, sizes = self.folder(commit), []
        if all((folder / path).is_file() for path in wanted):
            return 0, 0  # nothing is written then, so that a cache may be read only
        with one_at_a_time(self.home):
            for path, promise in wanted.items():
                if not (folder / path).is_file():
                    sizes.append(self._fetch(commit, path, promise, folder / path))
            if sizes:
                shutil.rmtree(self._drafts, ignore_errors=True)
        return len(sizes), sum(sizes)

    def mend(self, commit: str, wanted: Mapping[str, Promise]) -> None:
        """Take away those of the files that are here and are not as they were written."""
        folder = self.folder(commit)
        for path, promise in wanted.items():
            if (folder / path).is_file() and damage(folder / path, promise):
                with writing_to(folder / path):
                    (folder / path).unlink()

    def _holds(self, commit: str) -> bool:
        return (self.folder(commit) / files.INDEX_NAME).is_file()

    def _last_known(self, error: OutOfReachError, warn: Warn) -> str:
        revision = self._asked
        commit = revision if self.place.is_pinned else self._revisions().get(revision) or self._in_full(revision)
        if commit is None or not self._holds(commit):
            raise OutOfReachError(f"{error}; no copy of {described(self.place)} is cached here") from error
        warn(behind(error, self.place.name, commit))
        return commit

    @property
    def _asked(self) -> str:
        revision = self.place.revision
        return _NOW if revision is None or revision == _DEFAULT else revision

    def _in_full(self, revision: str) -> str | None:
        """The commit of a copy that `revision` is short for; None where there is none, or more than one."""
        found = [path.name for path in self.home.glob("*/") if is_short_for(revision, path.name) and path.is_dir()]
        return found[0] if len(found) == 1 else None

    def _revisions(self) -> dict[str, str]:
        """What is noted of revisions. Notes that are broken are none: they are written anew at the next answer."""
        path = self.home / _REVISIONS
        try:
            noted = files.read_json(path) if path.is_file() else {}
        except CheckpointError:
            return {}
        pairs = noted.items() if isinstance(noted, dict) else ()
        return {revision: commit for revision, commit in pairs if isinstance(commit, str)}

    def _remember(self, commit: str) -> None:
        """Note what a revision stands for, for times without a network; a cache that is read only goes without."""
        revision = self._asked
        if self.place.is_pinned or self._revisions().get(revision) == commit:
            return
        with suppress(MachineError), one_at_a_time(self.home), whole_file(self.home / _REVISIONS) as draft:
            files.write_json(draft, {**self._revisions(), revision: commit})

    def _fetch_index(self, commit: str) -> None:
        """The index, once it can be read; with it the folder becomes a checkpoint."""
        with self._drafting() as drafts:
            draft = drafts / "index"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            self.place.fetch(commit, files.INDEX_NAME, draft / files.INDEX_NAME)
            try:
                index = CheckpointFolder.open(draft).index
            except CheckpointError as error:
                told = str(error).replace(f"{draft}/", f"{self.place.name}/").replace(str(draft), self.place.name)
                raise CheckpointError(told) from error
            refuse_pickles(self.place.name, index.all_files)
            folder = self.folder(commit)
            folder.mkdir(parents=True, exist_ok=True)
            record_origin(folder, Origin(self.place.name, commit))
            (draft / files.INDEX_NAME).replace(folder / files.INDEX_NAME)

    def _fetch(self, commit: str, path: str, promise: Promise, target: Path) -> int:
        with self._drafting() as drafts:
            draft = drafts / promise.sha256  # under this name stand bytes of this content alone
            self.place.fetch(commit, path, draft)
            if reason := damage(draft, promise):
                draft.unlink()
                raise CheckpointError(
                    f"{self.place.name}: {path} is not what {files.INDEX_NAME} promises ({reason}): it was damaged on "
                    "its way or changed after it was published; nothing of it was kept"
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
        """A folder outside every checkpoint for files that come; who writes there has the lock.

        What killed processes and broken connections left there goes when a later fetch has ended well.
        """
        try:
            self._drafts.mkdir(parents=True, exist_ok=True)
            yield self._drafts
        except OSError as error:
            shutil.rmtree(self._drafts, ignore_errors=True)
            reason = "the disk is full" if is_of_disk(error) else error.strerror or error
            raise MachineError(f"{self.home}: cannot be written: {reason}") from error


@contextmanager
def one_at_a_time(home: Path) -> Iterator[None]:
    """Wait for a turn to write below `home`: the other processes of a run find the files when theirs comes.

    Raises MachineError where nothing can be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / _LOCK)
        lock.acquire()
    except OSError as error:
        raise MachineError(
            f"{home}: what is asked for is not cached here, and cannot be: {error.strerror or error}; set "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from error
    try:
        yield
    finally:
        lock.release()


def pull(place: CheckpointLocation, parts: Collection[str] | None, warn: Warn, *, mend: bool = False) -> Pulled:
    """A cached copy of a checkpoint that holds at least `parts`; None: all. `mend`: read again what is here already."""
    cache = LocalCache(place)
    commit = cache.resolve(warn)
    checkpoint = cache.open(commit, mend=mend)
    wanted = files_of(checkpoint.index, parts, place.name)
    if mend:
        cache.mend(commit, wanted)
    num_files, num_bytes = cache.fetch(commit, wanted)
    refuse_code(checkpoint, parts)
    return Pulled(checkpoint.folder, checkpoint.origin, num_files, num_bytes)


def refuse_code(checkpoint: CheckpointFolder, parts: Collection[str] | None) -> None:
    """CheckpointError where a library's configuration in one of the parts asks for code from elsewhere."""
    for entry in entries_of(checkpoint.index, parts, checkpoint.origin.place):
        files.refuse_code(checkpoint.folder / entry.folder, entry.files)


def files_of(index: Index, parts: Collection[str] | None, where: str) -> dict[str, Promise]:
    """What the index says of each file that these parts need; what belongs to no part is small and always needed."""
    return index.promises_of(entries_of(index, parts, where))


def entries_of(index: Index, parts: Collection[str] | None, where: str) -> list[PartEntry]:
    """The entries of parts by name, `objectives` being all heads; None: all entries. RecipeError for an unknown name.

    A part that adapters stand on has what was learned beside it as its entry; the rest is the base's.
    """
    heads = {f"{OBJECTIVES}/{name}": entry for name, entry in index.objectives.items()}
    if parts is None:
        return [*index.parts.values(), *heads.values(), *index.adapted.values()]
    of_base = dict.fromkeys(index.base.parts if index.base is not None else (), ())
    named: dict[str, tuple[PartEntry, ...]] = {**of_base, OBJECTIVES: tuple(heads.values())}
    for name, entry in (*index.parts.items(), *index.adapted.items(), *heads.items()):
        named[name] = (*named.get(name, ()), entry)
    for name in parts:
        if name not in named:
            known = [known for known in named if known != OBJECTIVES or heads]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it holds {files.listed(known)}"
            raise RecipeError(f"{where}: holds no part {name!r}; {hint}")
    return [entry for name in dict.fromkeys(parts) for entry in named[name]]
