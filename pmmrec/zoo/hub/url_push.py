"""Publish a checkpoint to a URL; of several pushes at once one wins, and none deletes the files of another."""

# The pointer file, which names the commit, decides. The first push creates it exclusively (S3: If-None-Match; a disk:
# a hard link); where a store cannot do that, the pointer is read directly before and after it is written. Files of the
# replaced checkpoint are deleted one by one, only if unchanged since the push began: another push may upload them.

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pmmrec.errors import RecipeError
from pmmrec.zoo import files
from pmmrec.zoo.hub.location import OutOfReachError
from pmmrec.zoo.index import Index

POINTER, POINTER_FORMAT = "current.json", 1
ABANDONED_S = 86_400.0  # files of an unfinished push are deleted after this time
CHANGES_WITH = ("size", "ETag", "etag", "LastModified", "mtime", "created")
_TIMES = ("LastModified", "mtime", "created")
_TRIES = 2  # of creating the pointer


class PublishedCommit(NamedTuple):
    """A commit at a URL and the folder that holds its files."""

    commit: str
    folder: str


class UrlPush:
    """One push of the files of one commit to one URL."""

    def __init__(
        self,
        place: str,
        fs: Any,
        root: str,
        current: Callable[[], PublishedCommit | None],
        folder: Path,
        names: Sequence[str],
    ) -> None:
        """Prepare the push; nothing is written yet.

        Args:
            place: The URL, for messages.
            fs: The file system of fsspec.
            root: Path of the URL in `fs`.
            current: Reads the commit at the URL.
            folder: Folder of the local checkpoint.
            names: The files that its index lists.
        """
        self._place, self._fs, self._root, self._current = place, fs, root, current
        self._folder, self._names = folder, (*names, files.INDEX_NAME)  # the index last
        self.commit = files.sha256_of(folder / files.INDEX_NAME)
        self._target = PublishedCommit(self.commit, f"{root}/{self.commit}")
        token = uuid.uuid4().hex
        self._pointer, self._draft = f"{root}/{POINTER}", f"{root}/{POINTER}.{token}"
        # the token distinguishes this push from another of the same commit
        self._content = json.dumps({"format": POINTER_FORMAT, "commit": self.commit, "push": token}).encode()
        self._is_disk = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))

    def run(self, before: PublishedCommit | None) -> None:
        """Upload the files, set the pointer, delete the replaced checkpoint `before`.

        Raises RecipeError where another push was faster, OutOfReachError where an uploaded file is missing.
        """
        if before == self._target and not self._lacking():
            return
        replaced = {} if before is None or before == self._target else self._states_of(before)
        with self._drafting():
            for name in self._names:
                self._put(self._folder / name, f"{self._target.folder}/{name}")
            if lacking := self._lacking():
                raise OutOfReachError(
                    f"{self._place}: {lacking[0]} did not arrive complete, or another push deleted it; push again"
                )
            self._refuse_other(before)
            if before is not None or not self._create():
                self._fs.pipe_file(self._draft, self._content)
                self._fs.mv(self._draft, self._pointer)
        if not self._is_ours():
            self._refuse_other(None)
        with suppress(Exception):  # the checkpoint is published; a later push deletes what is left of old ones
            self._delete(replaced)
            if before is not None and before.folder not in (self._root, self._target.folder):
                self._remove_if_empty(before.folder)
            self._sweep()

    @contextmanager
    def _drafting(self) -> Iterator[None]:
        try:
            yield
        finally:
            with suppress(Exception):
                self._fs.rm_file(self._draft)

    def _put(self, source: Path, target: str) -> None:
        """Upload a file atomically: object stores do that themselves, a disk needs a rename."""
        try:
            self._fs.put_file(str(source), self._draft if self._is_disk else target)
        except FileNotFoundError as error:
            raise RecipeError(
                f"{self._place}: cannot be written: its bucket or its parent does not exist; make it first"
            ) from error
        if self._is_disk:
            self._fs.mv(self._draft, target)

    def _lacking(self) -> list[str]:
        """Names of the uploaded files that are missing or have another size."""
        self._fs.invalidate_cache()
        found = self._fs.find(self._target.folder, detail=True)
        sizes = {str(path): entry["size"] for path, entry in found.items()}
        return [
            name
            for name in self._names
            if sizes.get(f"{self._target.folder}/{name}") != (self._folder / name).stat().st_size
        ]

    def _create(self) -> bool:
        """Create the pointer exclusively; False where the store does not support that.

        Stores report an existing file with many errors, and a client that retries may find its own file. So after any
        error the content of the pointer decides.
        """
        for _ in range(_TRIES):
            try:
                if self._is_disk:
                    self._fs.pipe_file(self._draft, self._content)
                    self._fs.link(self._draft, self._pointer)
                else:
                    self._fs.pipe_file(self._pointer, self._content, mode="create")
            except Exception:  # noqa: BLE001, PERF203 errors of many libraries; at most twice
                if self._is_ours():
                    return True
                self._refuse_other(None)
            else:
                return True
        return False

    def _is_ours(self) -> bool:
        self._fs.invalidate_cache()
        try:
            return bytes(self._fs.cat_file(self._pointer)) == self._content
        except FileNotFoundError:
            return False

    def _refuse_other(self, expected: PublishedCommit | None) -> None:
        now = self._current()
        if now == expected:
            return
        if now is None:
            raise RecipeError(f"{self._place}: the checkpoint there was deleted meanwhile; look at it, then push again")
        raise RecipeError(
            f"{self._place}: exists already: another push put commit {now.commit} there meanwhile; choose another "
            "place, or ask to replace it"
        )

    def _states_of(self, before: PublishedCommit) -> dict[str, tuple[str, ...]]:
        """The files of the replaced checkpoint, each with attributes that change when it is rewritten."""
        folder = before.folder
        if folder != self._root:
            return {str(path): self._state(path) for path in self._fs.find(folder)}
        try:
            listed = Index.model_validate_json(bytes(self._fs.cat_file(f"{folder}/{files.INDEX_NAME}"))).all_files
        except ValueError:  # not a readable index: its files stay
            return {}
        paths = [f"{folder}/{name}" for name in (files.INDEX_NAME, *listed)]
        return {path: self._state(path) for path in paths if self._fs.exists(path)}

    def _state(self, path: str) -> tuple[str, ...]:
        entry = self._fs.info(path)  # listings have other attributes
        return tuple(str(entry.get(key)) for key in CHANGES_WITH)

    def _delete(self, replaced: Mapping[str, tuple[str, ...]]) -> None:
        for path, state in replaced.items():
            if not self._is_ours():  # another push may have uploaded the same files and set the pointer to them
                return
            if self._state(path) == state:
                self._fs.rm_file(path)

    def _remove_if_empty(self, folder: str) -> None:
        self._fs.invalidate_cache()
        if not self._fs.find(folder):
            with suppress(FileNotFoundError):  # stores without empty folders
                self._fs.rm(folder, recursive=True)

    def _sweep(self) -> None:
        """Delete the files of killed pushes; a running push has written its files recently."""
        self._fs.invalidate_cache()
        now_s = _time_s(self._fs.info(self._pointer))
        for entry in self._fs.ls(self._root, detail=True):
            path = str(entry["name"]).rstrip("/")
            name = path.rpartition("/")[2]
            if name == self.commit or not (_is_commit(name) or name.startswith(f"{POINTER}.")):
                continue
            below = self._fs.find(path, detail=True).values() if entry["type"] == "directory" else ()
            times_s = [time_s for time_s in map(_time_s, (entry, *below)) if time_s is not None]
            if now_s is not None and times_s and now_s - max(times_s) > ABANDONED_S:
                self._fs.rm(path, recursive=True)


def _is_commit(name: str) -> bool:
    return len(name) == 64 and not set(name) - set("0123456789abcdef")


def _time_s(entry: Mapping[str, Any]) -> float | None:
    """When a file was written, by the clock of the store; None where it does not say."""
    for key in _TIMES:
        value = entry.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
