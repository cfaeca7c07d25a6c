"""Find, fetch and publish checkpoints and pretrained weights: in folders, at URLs, on the Hugging Face Hub.

A place is a folder, a name in a folder hub, a URL that fsspec opens (`s3://bucket/name`, `file:///...`), or a
repository `hf://user/name@revision`. Only this package talks to other machines.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.homes import expanded
from pmmrec.zoo import files
from pmmrec.zoo.folder import CheckpointFolder
from pmmrec.zoo.hub.cache import LocalCache, Pulled, entries_of, files_of, pull, refuse_code
from pmmrec.zoo.hub.data_sets import find_data_set
from pmmrec.zoo.hub.folder import (
    FolderLocation,
    list_checkpoints,
    publish,
    refuse_taken_name,
    refuse_unsound,
)
from pmmrec.zoo.hub.huggingface import SCHEME, HuggingFaceLocation, list_repositories
from pmmrec.zoo.hub.location import CheckpointLocation, OutOfReachError, PushOptions, Warn, refuse_pickles
from pmmrec.zoo.hub.url import UrlLocation
from pmmrec.zoo.hub.weights import find_weights, weights_hash, weights_origin
from pmmrec.zoo.index import PartEntry
from pmmrec.zoo.origin import Origin
from pmmrec.zoo.tensors import damages

__all__ = [
    "CheckpointLocation",
    "OutOfReachError",
    "Pulled",
    "PushOptions",
    "fetch_entry",
    "find_checkpoint",
    "find_data_set",
    "find_weights",
    "list_checkpoints",
    "list_places",
    "location_of",
    "publish",
    "pull_checkpoint",
    "push_checkpoint",
    "refuse_taken_name",
    "refuse_unsound",
    "weights_hash",
    "weights_origin",
]


def location_of(text: str, hub: Path) -> CheckpointLocation:
    """The location of the place `text`. Raises RecipeError where `text` is not a place."""
    if not text.strip():
        raise RecipeError("the name of a checkpoint is empty; give a folder, a name in the hub, or a URL")
    if text.startswith(SCHEME):
        return HuggingFaceLocation(text)
    return UrlLocation(text) if "://" in text else FolderLocation(text, expanded(hub))


def find_checkpoint(place: str, hub: Path, parts: Collection[str] | None = None, *, warn: Warn = warnings.warn) -> Path:
    """The local folder of a checkpoint, or of a cached copy if it is on another machine.

    From another machine only the index and `parts` are fetched; other parts are fetched when they are needed.

    Args:
        place: A folder, a name in the hub, or a URL.
        hub: The folder hub in which names are looked up.
        parts: Names of parts; None: all; `()`: none yet; `objectives`: all heads.
        warn: Called with a message when a revision may move, or when a cached copy may be out of date.

    Raises CheckpointError where there is no checkpoint or it does not match its index, RecipeError for an unknown
    place or part, MachineError where the place is unreachable and no copy is cached.
    """
    found = location_of(place, hub)
    if not isinstance(found, FolderLocation):
        return pull(found, parts, warn).folder
    if parts:
        entries_of(CheckpointFolder.open(found.folder).index, parts, place)
    return found.folder


def pull_checkpoint(
    place: str,
    hub: Path,
    parts: Collection[str] | None = None,
    *,
    out: Path | None = None,
    warn: Warn = warnings.warn,
) -> Pulled:
    """Fetch a checkpoint, or parts of it, into the cache, repair files changed there, and copy it to `out` if given.

    A copy with some of the parts has the whole index; asking it for another part raises an error.
    """
    found = location_of(place, hub)
    if isinstance(found, FolderLocation):
        if out is None:
            raise RecipeError(f"{place}: is already a folder on this machine; say where a copy should go with --out")
        pulled = Pulled(found.folder, CheckpointFolder.open(found.folder).origin, 0, 0)
    else:
        pulled = pull(found, parts, warn, repair=True)
    if out is None:
        return pulled
    source = CheckpointFolder.open(pulled.folder)
    refuse_code(source, parts)
    wanted = files_of(source.index, parts, place)
    out = expanded(out)
    with files.writing(out, replace=False) as draft:
        for path in (*wanted, files.INDEX_NAME):
            files.link_or_copy(source.folder / path, draft / path)
        if problems := damages(draft, wanted):
            raise CheckpointError(f"{place}: cannot be copied: {'; '.join(problems)}")
    return Pulled(out, pulled.origin, pulled.num_files, pulled.num_bytes)


def push_checkpoint(folder: Path, place: str, hub: Path, options: PushOptions) -> Origin:
    """Publish a checkpoint, completely or not at all; its new place and commit.

    Only files that its index lists are uploaded. Raises CheckpointError for a checkpoint that does not match its
    index, RecipeError for a place that is taken, MachineError where the place cannot be written.
    """
    target = location_of(place, hub)
    source = CheckpointFolder.open(folder)
    listed = source.index.promises
    refuse_pickles(str(folder), listed)
    refuse_unsound(folder, files.absent(source.folder, listed) or damages(source.folder, listed))
    return Origin(target.name, target.push(source.folder, list(listed), options))


def fetch_entry(origin: Origin, entry: PartEntry) -> None:
    """Fetch one part of a cached checkpoint that was fetched without it. Raises errors that name the part."""
    cache = LocalCache(location_of(origin.pinned, Path()))
    wanted = {f"{entry.folder}/{name}": promise for name, promise in entry.promises.items()}
    try:
        cache.fetch(origin.commit, wanted)
    except OutOfReachError as error:
        raise OutOfReachError(
            f"{entry.folder}: this part of {origin.place} is not cached yet (pmmrec zoo pull {origin.pinned} --parts "
            f"{entry.folder} fetches it); {error}"
        ) from error


def list_places(prefix: str) -> list[str]:
    """Places of the checkpoints in a folder hub, at a URL, or of `hf://user`. Raises RecipeError."""
    if prefix.startswith(SCHEME):
        return list_repositories(prefix.removeprefix(SCHEME).rstrip("/"))
    if "://" in prefix:
        return UrlLocation(prefix).children()
    folder = expanded(Path(prefix))
    if not folder.is_dir():
        raise RecipeError(f"{prefix}: no such folder; give a folder with checkpoints, a URL or hf://user")
    return [str(folder / name) for name in list_checkpoints(folder)]
