"""Checkpoints and pretrained weights at URLs that fsspec opens: s3://, gs://, file://, memory:// and others."""

# Layout, so that a reader always finds either the old checkpoint or the new one, complete:
#   current.json           {"format": 1, "commit": ..., "push": ...}: the pointer, written last and atomically
#   COMMIT/                the files of a checkpoint; COMMIT is the SHA-256 of its index
# A folder that was copied there by other means, with its index at the top, can be read as well.

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pmmrec.errors import CheckpointError, MachineError, PMMRecError, RecipeError, not_installed
from pmmrec.progress import bars
from pmmrec.zoo import files
from pmmrec.zoo.hub.location import WAITS_S, OutOfReachError, PushOptions, is_of_disk, with_revision, without_secrets
from pmmrec.zoo.hub.url_push import CHANGES_WITH, POINTER, POINTER_FORMAT, PublishedCommit, UrlPush

MB = 1_000_000
BLOCK_BYTES = 16 * MB  # requested at once, and lost when a connection breaks
_MAX_POINTER_BYTES = 10_000
_PINNED = re.compile(r"(.+)@([0-9a-f]{64})")
_COMMIT = re.compile(r"[0-9a-f]{64}")
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}  # protocol: its package, and our extra that installs it
_CREDENTIALS = "credentials are read where its client keeps them (S3: AWS_ACCESS_KEY_ID, ~/.aws), never from a URL"


class UrlLocation:
    """A checkpoint at a URL."""

    def __init__(self, text: str) -> None:
        pinned = _PINNED.fullmatch(text)
        self.name = (pinned[1] if pinned else text).rstrip("/")
        self.revision: str | None = pinned[2] if pinned else None
        if not self.name.partition("://")[2]:
            raise RecipeError(
                f"{text}: is incomplete; write what follows ://, as in s3://bucket/name or file:///folder"
            )
        refuse_secrets(self.name)

    @property
    def key(self) -> str:
        return self.name

    @property
    def is_pinned(self) -> bool:
        return self.revision is not None

    def commit(self) -> str:
        with self._translated("read"):
            found = self._current()
        if found is None:
            raise CheckpointError(f"{self.name}: not a checkpoint: it holds neither {POINTER} nor {files.INDEX_NAME}")
        if self.revision not in (None, found.commit):
            raise RecipeError(
                f"{self.name}: holds commit {found.commit} now and no longer {self.revision}; ask for the "
                "current one, or for a copy elsewhere"
            )
        return found.commit

    def fetch(self, commit: str, path: str, target: Path) -> None:
        with self._translated("read"), bars() as progress:
            source = f"{self._base_of(commit)}/{path}"
            try:
                if path == files.INDEX_NAME and self._fs.info(source)["size"] > files.MAX_JSON_BYTES:
                    raise CheckpointError(f"{self.name}: {path} is larger than {files.MAX_JSON_BYTES:,} bytes")
                self._copy(source, target, partial(progress, f"{path} (MB)"))
            except FileNotFoundError as error:
                raise CheckpointError(
                    f"{self.name}: holds no {path} of commit {commit}: the checkpoint is incomplete, or was "
                    "replaced while it was read; ask for it again"
                ) from error
        if path == files.INDEX_NAME and files.sha256_of(target) != commit:
            raise CheckpointError(f"{self.name}: {path} is not what {POINTER} promises (sha256 {commit})")

    def push(self, folder: Path, names: Sequence[str], options: PushOptions) -> str:
        if options.private or options.message is not None:
            raise RecipeError(
                f"{self.name}: --private and --message are for the Hugging Face Hub; leave them out: the store "
                "decides who may read a URL"
            )
        if self.revision is not None:
            raise RecipeError(f"{with_revision(self)}: a commit cannot be pushed to; leave @{self.revision} out")
        with self._translated("written"):
            before = self._current()
            if before is not None and not options.replace:
                raise RecipeError(f"{self.name}: exists already; choose another place, or ask to replace it")
            push = UrlPush(self.name, self._fs, self._root, self._current, folder, names)
            push.run(before)
        return push.commit

    def snapshot(
        self, home: Path, patterns: Sequence[str], cache_lock: Callable[[Path], AbstractContextManager[None]]
    ) -> Path:
        """Copy the files that match, such as weights, which have no index, to a folder below `home`.

        Patterns match paths relative to the URL; a star does not match a slash.
        """
        with self._translated("read"):
            self._fs.invalidate_cache()
            try:
                entries = self._listed(patterns)
            except FileNotFoundError:
                entries = {}
            names = [name for name in entries if any(_matches(name, pattern) for pattern in patterns)]
            state = [[name, *(str(entries[name].get(key)) for key in CHANGES_WITH)] for name in sorted(names)]
            folder = home / hashlib.sha256(json.dumps([self.name, state]).encode()).hexdigest()
            if names and not folder.is_dir():
                with cache_lock(home):
                    if not folder.is_dir():
                        self._copy_all(names, folder)
        if not names:
            raise MachineError(f"{self.name}: holds none of {', '.join(patterns)}")
        return folder

    def _listed(self, patterns: Sequence[str]) -> dict[str, Any]:
        """Listing entries by path, of the files at the URL and in the subfolders that a pattern names."""
        subfolders = [pattern.partition("/")[0] for pattern in patterns if "/" in pattern]
        found: dict[str, Any] = {}
        for entry in self._fs.ls(self._root, detail=True):  # `glob` would take an unreadable folder for an empty one
            name = _last(entry)
            if entry["type"] == "file":
                found[name] = entry
            elif any(fnmatch.fnmatch(name, folder) for folder in subfolders):
                inner = self._fs.ls(entry["name"], detail=True)
                found |= {f"{name}/{_last(file)}": file for file in inner if file["type"] == "file"}
        return found

    def _copy_all(self, names: Sequence[str], folder: Path) -> None:
        with files.writing(folder, replace=False) as draft, bars() as progress:
            for name in names:
                (draft / name).parent.mkdir(exist_ok=True)
                self._copy(f"{self._root}/{name}", draft / name, partial(progress, f"{name} (MB)"))

    def children(self) -> list[str]:
        """The URLs of the checkpoints directly below this one, or this URL if it is a checkpoint."""
        with self._translated("read"):
            if self._current() is not None:
                return [self.name]
            try:
                below = [entry for entry in self._fs.ls(self._root, detail=True) if entry["type"] == "directory"]
            except FileNotFoundError:
                return []
            names = sorted(str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in below)
            places = [UrlLocation(f"{self.name}/{name}") for name in names]
            return [place.name for place in places if place._current() is not None]

    def _copy(self, source: str, target: Path, progress: Callable[[int, int], None]) -> None:
        """Download a file to `target`, resuming after the bytes that it already holds, which `get` of fsspec cannot."""
        size = int(self._fs.info(source)["size"])
        with target.open("ab") as file:
            num_bytes = file.tell()
            if num_bytes > size:
                file.truncate(num_bytes := 0)
            while num_bytes < size:
                progress(num_bytes // MB, size // MB)
                num_bytes += file.write(self._read_block(source, num_bytes, min(num_bytes + BLOCK_BYTES, size)))
        progress(size // MB, size // MB)

    def _read_block(self, source: str, start: int, end: int) -> bytes:
        """Read bytes `start` to `end` of a file, with retries where the connection breaks."""
        waits_s = iter(WAITS_S)
        while True:
            try:
                block = bytes(self._fs.cat_file(source, start=start, end=end))
                if len(block) > end - start:
                    return block[start:]  # servers without range requests send the whole file
                if len(block) == end - start:
                    return block
                reason: Exception = ConnectionError(f"{len(block):,} bytes came of {end - start:,}")
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as error:  # noqa: BLE001 errors of many libraries without a common base class
                reason = error
            wait_s = next(waits_s, None)
            if wait_s is None:
                raise reason
            time.sleep(wait_s)

    @cached_property
    def _fs(self) -> Any:
        from fsspec.core import url_to_fs

        protocol = self.name.partition("://")[0]
        options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
        try:
            return url_to_fs(self.name, **options)[0]
        except ImportError as error:
            if protocol in _EXTRAS:
                package, extra = _EXTRAS[protocol]
                raise not_installed(f"{self.name}: {protocol}://", [package], extra) from error
            how = without_secrets(str(error))
            raise MachineError(f"{self.name}: {protocol}:// needs a package that is not installed: {how}") from error
        except ValueError as error:
            raise RecipeError(
                f"{self.name}: {without_secrets(str(error))}; give s3://, gs://, file://, hf:// or a folder"
            ) from error

    @cached_property
    def _root(self) -> str:
        return str(self._fs._strip_protocol(self.name)).rstrip("/")

    def _current(self) -> PublishedCommit | None:
        """The commit at the URL now and the folder with its files; None where there is none."""
        self._fs.invalidate_cache()
        try:
            tree = json.loads(self._read(f"{self._root}/{POINTER}", _MAX_POINTER_BYTES))
        except FileNotFoundError:
            return self._unversioned()
        except ValueError as error:
            raise CheckpointError(f"{self.name}: {POINTER} is not valid JSON") from error
        commit = tree.get("commit") if isinstance(tree, dict) and tree.get("format") == POINTER_FORMAT else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise CheckpointError(f"{self.name}: {POINTER} names no commit that this pmmrec can read")
        return PublishedCommit(commit, f"{self._root}/{commit}")

    def _unversioned(self) -> PublishedCommit | None:
        try:
            content = self._read(f"{self._root}/{files.INDEX_NAME}", files.MAX_JSON_BYTES)
        except FileNotFoundError:
            return None
        return PublishedCommit(hashlib.sha256(content).hexdigest(), self._root)

    def _read(self, path: str, max_bytes: int) -> bytes:
        if self._fs.info(path)["size"] > max_bytes:
            raise CheckpointError(f"{self.name}: {path.rpartition('/')[2]} is larger than {max_bytes:,} bytes")
        return bytes(self._fs.cat_file(path))

    def _base_of(self, commit: str) -> str:
        if self._bases.get(commit) is None:
            versioned = f"{self._root}/{commit}"
            found = self._current()
            self._bases[commit] = found.folder if found is not None and found.commit == commit else versioned
        return self._bases[commit]

    @cached_property
    def _bases(self) -> dict[str, str]:
        return {}

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Translate the errors of many libraries, which have no common base class."""
        try:
            yield
        except PMMRecError:
            raise
        except Exception as error:
            if is_of_disk(error):
                raise
            if isinstance(error, NotADirectoryError):
                raise RecipeError(f"{self.name}: a file is there or above it; choose another place") from error
            kind = type(error).__name__
            if isinstance(error, PermissionError) or "Credentials" in kind:
                raise RecipeError(
                    f"{self.name}: may not be {doing} with the credentials found "
                    f"({kind}: {without_secrets(str(error))}); {_CREDENTIALS}"
                ) from error
            raise OutOfReachError(
                f"{self.name}: out of reach ({kind}: {without_secrets(str(error))}); check the URL and the connection"
            ) from error


def _last(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch.fnmatch(name, pattern)


def refuse_secrets(url: str) -> None:
    """Raise RecipeError for a URL with a password, a query or a fragment; the message does not repeat a password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[0]
    if ":" in host:
        raise RecipeError(f"{parts.scheme}://...: the URL holds a password, which would be stored with the run: "
                          f"remove it; {_CREDENTIALS}")  # fmt: skip
    if parts.query or parts.fragment:
        raise RecipeError(f"{parts.scheme}://{parts.netloc}{parts.path}: a place is a URL without ? and #")
