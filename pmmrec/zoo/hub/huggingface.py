"""Checkpoints and pretrained weights in repositories of the Hugging Face Hub, through its client."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

from pmmrec.errors import CheckpointError, MachineError, PMMRecError, RecipeError
from pmmrec.zoo import files
from pmmrec.zoo.folder import CheckpointFolder
from pmmrec.zoo.hub.location import (
    WAITS_S,
    OutOfReachError,
    PushOptions,
    Warn,
    is_of_disk,
    is_short_for,
    moving_revision_warning,
    stale_copy_warning,
    with_revision,
    without_secrets,
)
from pmmrec.zoo.origin import Origin

SCHEME = "hf://"
LIBRARY = "pmmrec"
TIMEOUT_S = 10.0
MAX_WAIT_S = 120.0
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
_OWNER = re.compile(r"[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOG_IN = "check the name, and log in with `hf auth login` or set HF_TOKEN"
_BUSY = (408, 429, 500, 502, 503, 504)
_T = TypeVar("_T")


class HuggingFaceLocation:
    """One model repository."""

    def __init__(self, text: str) -> None:
        found = _REPOSITORY.fullmatch(text.removeprefix(SCHEME).rstrip("/"))
        if not text.startswith(SCHEME) or found is None:
            raise RecipeError(f"{without_secrets(text)}: must look like hf://user/name or hf://user/name@revision")
        self.repository, self.revision = found[1], found[2]

    @property
    def name(self) -> str:
        return f"{SCHEME}{self.repository}"

    @property
    def key(self) -> str:
        return f"{self._api.endpoint}/{self.repository}"

    @property
    def is_pinned(self) -> bool:
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def commit(self) -> str:
        with self._translated("read"):
            info = _with_retries(
                lambda: self._api.model_info(self.repository, revision=self.revision, timeout=TIMEOUT_S)
            )
        commit = str(info.sha)
        if self.revision is not None and is_short_for(self.revision, commit):
            self.revision = commit  # a shortened commit always means the same
        return commit

    def fetch(self, commit: str, path: str, target: Path) -> None:
        # Not `snapshot_download`, which lists the whole repository and, offline, may return an incomplete local folder.
        with TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as home, self._translated("read"):
            try:
                found = self._api.hf_hub_download(self.repository, path, revision=commit, local_dir=home)
            except _errors().RemoteEntryNotFoundError as error:
                raise CheckpointError(f"{self.name}: holds no {path} at commit {commit}") from error
            shutil.move(found, target)

    def push(self, folder: Path, names: Sequence[str], options: PushOptions) -> str:
        """Publish in one commit; files of the previous checkpoint are deleted, other files of the repository stay."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        if self.is_pinned:
            raise RecipeError(f"{with_revision(self)}: a commit cannot be pushed to; name a branch, or leave it out")
        with self._translated("written"):
            _with_retries(self._api.whoami)
            head, present = self._prepared(options)
            stale = (self._listed(head) if files.INDEX_NAME in present else set()) & present - {*names}
            wanted = [*names, files.INDEX_NAME]
            operations = [
                *(CommitOperationAdd(name, folder / name) for name in wanted),
                *(CommitOperationDelete(name, is_folder=False) for name in sorted(stale - {files.INDEX_NAME})),
            ]
            message = options.message or f"Publish a checkpoint with {LIBRARY}"
            commit = _with_retries(  # not `upload_folder`, which may split a large folder into several commits
                lambda: self._api.create_commit(
                    self.repository, operations, commit_message=message, revision=self.revision, parent_commit=head
                )
            )
        return str(commit.oid)

    def _prepared(self, options: PushOptions) -> tuple[str | None, set[str]]:
        """The parent commit and its files; the repository is created if needed."""
        errors = _errors()
        try:
            info = _with_retries(lambda: self._api.model_info(self.repository, timeout=TIMEOUT_S))
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError:
            _with_retries(lambda: self._api.create_repo(self.repository, private=options.private, exist_ok=True))
        else:
            if options.private and not info.private:
                raise RecipeError(
                    f"{self.name}: --private: the repository exists and is public; make it private on the hub, or "
                    "choose another name"
                )
        info = _with_retries(lambda: self._api.model_info(self.repository, revision=self.revision, timeout=TIMEOUT_S))
        present = {sibling.rfilename for sibling in info.siblings or ()}
        if files.INDEX_NAME in present and not options.replace:
            raise RecipeError(
                f"{with_revision(self)}: holds a checkpoint already; choose another name, or ask to replace it"
            )
        return info.sha, present

    def _listed(self, commit: str | None) -> set[str]:
        """Files of the checkpoint at a commit; empty where its index cannot be read."""
        with TemporaryDirectory() as home:
            self.fetch(str(commit), files.INDEX_NAME, Path(home) / files.INDEX_NAME)
            try:
                return set(CheckpointFolder.open(Path(home)).index.all_files)
            except CheckpointError:
                return set()

    @property
    def _api(self) -> Any:
        return _client()

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        with translated_errors(with_revision(self), doing):
            yield


def list_repositories(owner: str) -> list[str]:
    """`hf://OWNER/NAME` of all checkpoints of an owner on the Hub."""
    if not _OWNER.fullmatch(owner):
        raise RecipeError(f"{SCHEME}{owner}: must look like hf://user")
    with translated_errors(f"{SCHEME}{owner}", "listed"):
        found = _with_retries(lambda: list(_client().list_models(author=owner, filter=LIBRARY)))
    return sorted(f"{SCHEME}{info.id}" for info in found)


def snapshot(
    repository: str,
    revision: str | None,
    wanted: Sequence[str],
    unwanted: Sequence[str],
    warn: Warn,
    kind: Literal["model", "dataset"] = "model",
) -> Path:
    """The folder of pretrained weights, or of a data set, in the cache of the client, named by their commit.

    `warn` is called when a revision may move, or when a cached copy may be out of date. Raises what the client raises.
    """
    import huggingface_hub

    def found(*, here: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                repo_type=kind,
                revision=revision,
                local_files_only=here,
                allow_patterns=list(wanted),
                ignore_patterns=list(unwanted),
            )
        )

    name = f"{SCHEME}{repository}"
    asked = name if revision is None else f"{name}@{revision}"
    if revision is not None and _COMMIT.fullmatch(revision):
        return found(here=False)
    try:
        with translated_errors(asked, "read"):
            _with_retries(lambda: _client().repo_info(repository, repo_type=kind, revision=revision, timeout=TIMEOUT_S))
    except OutOfReachError as error:
        folder = found(here=True)
        warn(stale_copy_warning(error, name, folder.name))
        return folder
    folder = found(here=False)
    if revision is None or not is_short_for(revision, folder.name):
        warn(moving_revision_warning(asked, name, folder.name))
    return folder


def snapshot_origin(folder: Path) -> Origin | None:
    """Repository and commit of a folder in the cache of the client; None for any other folder."""
    kind, _, name = folder.parent.parent.name.partition("--")
    if kind != "models" or folder.parent.name != "snapshots" or not _COMMIT.fullmatch(folder.name):
        return None
    return Origin(f"{SCHEME}{name.replace('--', '/', 1)}", folder.name)


def _client() -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(library_name=LIBRARY)


def _errors() -> Any:
    from huggingface_hub import errors

    return errors


def _with_retries(call: Callable[[], _T]) -> _T:
    """Retry a call while the Hub is busy; the client itself retries only transfers."""
    waits_s = iter(WAITS_S)
    while True:
        try:
            return call()
        except _errors().HfHubHTTPError as error:  # noqa: PERF203 at most a few times
            wait_s = next(waits_s, None)
            asked = error.response.headers.get("Retry-After", "")
            pause_s = float(asked) if asked.isdigit() else wait_s
            if error.response.status_code not in _BUSY or wait_s is None or pause_s is None or pause_s > MAX_WAIT_S:
                raise
            time.sleep(pause_s)


@contextmanager
def translated_errors(where: str, doing: str) -> Iterator[None]:
    """Translate the errors of the client, which have no common base class."""
    try:
        yield
    except PMMRecError:
        raise
    except Exception as error:
        if is_of_disk(error):
            raise
        raise _explained(error, where, doing) from error


def _explained(error: BaseException, where: str, doing: str) -> PMMRecError:
    errors = _errors()
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # why the client could not ask the Hub
    reason = f"{type(error).__name__}: {without_secrets(str(error))}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    by_kind = {
        errors.GatedRepoError: f"may not be {doing} before its owner agrees: ask for access on its page; {_LOG_IN}",
        errors.RevisionNotFoundError: "the repository has no such branch, tag or commit",
        errors.LocalTokenNotFoundError: f"may not be {doing} without a token; {_LOG_IN}",
        errors.RepositoryNotFoundError: _hidden(doing),
        errors.HFValidationError: reason,
    }
    for kind, words in by_kind.items():
        if isinstance(error, kind):
            return RecipeError(f"{where}: {words}")
    if status in (401, 403):
        return RecipeError(f"{where}: {_hidden(doing)}")
    if status in (409, 412):
        return MachineError(f"{where}: somebody else changed it meanwhile; look at it and push again ({reason})")
    if status is not None and status not in _BUSY:
        return MachineError(f"{where}: could not be {doing}: the hub says {reason}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set"
    return OutOfReachError(f"{where}: out of reach: {reason}")


def _hidden(doing: str) -> str:
    return (
        f"may not be {doing}: there is no such repository, or it is private and the token known here (if any) does not "
        f"open it; {_LOG_IN}"
    )
