"""Checkpoints in local folders: find them by path or name, publish them to a folder hub."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.homes import expanded
from pmmrec.zoo import files
from pmmrec.zoo.folder import CheckpointFolder
from pmmrec.zoo.hub.location import PushOptions

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def list_checkpoints(hub: Path) -> list[str]:
    """Sorted names of the checkpoints in a folder hub; empty if the hub does not exist yet."""
    if not hub.is_dir():
        return []
    names = {path.name.removesuffix(files.PREVIOUS) for path in hub.iterdir() if path.suffix != files.INCOMPLETE}
    return sorted(name for name in names if _is_checkpoint(hub / name))


def find_folder(place: str, hub: Path) -> Path:
    """The folder of a checkpoint, given by its path or its name in the hub.

    Raises CheckpointError where the folder is not a checkpoint, RecipeError where there is no such folder or name.
    """
    folder = expanded(Path(place))
    if _is_checkpoint(folder):
        return folder
    if _NAME.fullmatch(place) and _is_checkpoint(hub / place):
        return hub / place
    if folder.exists() or (hub / place).exists():
        found = folder if folder.exists() else hub / place
        raise CheckpointError(f"{found}: not a checkpoint: it holds no {files.INDEX_NAME}")
    names = list_checkpoints(hub)
    near = difflib.get_close_matches(place, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"{hub} holds: {files.listed(names) or 'nothing'}"
    raise RecipeError(f"no checkpoint {place!r}, neither a folder nor a name in {hub}; {hint}")


def refuse_taken_name(hub: Path, name: str, *, replace: bool) -> None:
    """Raise RecipeError for a name that is invalid in a hub, or taken unless `replace`."""
    if not _NAME.fullmatch(name) or files.is_leftover(Path(name)):
        raise RecipeError(f"name {name!r}: a name in a hub may contain letters, digits, '.', '_' and '-'")
    if hub.exists() and not hub.is_dir():
        raise RecipeError(f"{hub}: is not a folder, so it cannot be a hub; choose another hub=...")
    if (hub / name).exists() and not replace:
        raise RecipeError(f"{hub / name}: exists already; choose another name, or ask to replace it")


def publish(checkpoint_folder: Path, hub: Path, name: str, *, replace: bool = False) -> Path:
    """Copy the listed files of a checkpoint into a folder hub, completely or not at all; the new folder.

    Raises RecipeError for an invalid or taken name, CheckpointError where the copy does not match the index.
    """
    refuse_taken_name(hub, name, replace=replace)
    source = CheckpointFolder.open(checkpoint_folder)
    refuse_unsound(checkpoint_folder, files.absent(source.folder, source.index.all_files))
    with files.writing(hub / name, replace=replace) as draft:
        for path in (*source.index.all_files, files.INDEX_NAME):
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.folder / path, draft / path)
        refuse_unsound(checkpoint_folder, CheckpointFolder.open(draft).verify())
    return hub / name


def refuse_unsound(folder: Path, problems: Sequence[str]) -> None:
    """Raise CheckpointError where a checkpoint to publish has problems."""
    if problems:
        raise CheckpointError(f"{folder}: cannot be published: {'; '.join(problems)}")


class FolderLocation:
    """A folder, or a name in a folder hub. It is read in place, without a cached copy."""

    revision = None
    is_pinned = True  # a local folder needs no warning that it may change

    def __init__(self, place: str, hub: Path) -> None:
        self._place, self._hub = place, hub

    @property
    def name(self) -> str:
        return self._place

    @property
    def key(self) -> str:
        return str(self.folder.resolve())

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint. Raises what `find_folder` raises."""
        return find_folder(self._place, self._hub)

    def commit(self) -> str:
        return files.sha256_of(files.current(self.folder) / files.INDEX_NAME)

    def fetch(self, commit: str, path: str, target: Path) -> None:
        if self.commit() != commit:
            raise CheckpointError(f"{self.name}: is no longer commit {commit}; open it again")
        source = files.current(self.folder) / path
        if not source.is_file():
            raise CheckpointError(f"{self.name}: holds no {path}, which its {files.INDEX_NAME} lists")
        shutil.copyfile(source, target)

    def push(self, folder: Path, names: Sequence[str], options: PushOptions) -> str:  # noqa: ARG002 the index lists them
        if options.private or options.message is not None:
            raise RecipeError(f"{self.name}: --private and --message have no effect on a folder; leave them out")
        target = self._hub / self._place if _NAME.fullmatch(self._place) else expanded(Path(self._place))
        hub = target.parent if target.name else target.resolve().parent
        return files.sha256_of(
            publish(folder, hub, target.name or target.resolve().name, replace=options.replace) / files.INDEX_NAME
        )


def _is_checkpoint(folder: Path) -> bool:
    return (files.current(folder) / files.INDEX_NAME).is_file()
