"""The one door to checkpoints and pretrained weights: in folders, behind URLs, on the Hugging Face Hub.

A place is a folder, a name in a folder hub, a URL that fsspec opens (`s3://bucket/name`, `file:///...`), or a
repository `hf://user/name@revision`. Only files of this room talk to other machines.
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
    """The place that people name by `text`. RecipeError where it looks like none."""
    if not text.strip():
        raise RecipeError("a checkpoint is asked for by an empty name; give a folder, a name in the hub, or a URL")
    if text.startswith(SCHEME):
        return HuggingFaceLocation(text)
    return UrlLocation(text) if "://" in text else FolderLocation(text, expanded(hub))


def find_checkpoint(place: str, hub: Path, parts: Collection[str] | None = None, *, warn: Warn = warnings.warn) -> Path:
    """The local folder of a checkpoint: where it stands, or a cached copy of what another machine holds.

    Of other machines the index and `parts` are fetched and no byte of any other part; a part that is asked for later
    is fetched then. `parts` None: all; `()`: none yet; `objectives`: all heads. Raises CheckpointError where there is
    no checkpoint or it is not what its index says, RecipeError for an unknown place or part, MachineError where
    nobody answers and no copy is cached. `warn` hears of a moving revision and of a copy that may be behind.
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
    """Fetch a checkpoint, or parts of it, into the cache; mend what was changed there; copy it to `out` if given.

    A copy of some parts holds the whole index and says what it lacks when that is asked for.
    """
    found = location_of(place, hub)
    if isinstance(found, FolderLocation):
        if out is None:
            raise RecipeError(f"{place}: is a folder here already; say where a copy should go with --out")
        pulled = Pulled(found.folder, CheckpointFolder.open(found.folder).origin, 0, 0)
    else:
        pulled = pull(found, parts, warn, mend=True)
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
    """Publish a checkpoint, whole or not at all; where it is then, and as which commit.

    Only files that its index lists travel. Raises CheckpointError for a checkpoint that is not what its index says,
    RecipeError for a taken place, MachineError where the place cannot be written.
    """
    target = location_of(place, hub)
    source = CheckpointFolder.open(folder)
    listed = source.index.promises
    refuse_pickles(str(folder), listed)
    refuse_unsound(folder, files.absent(source.folder, listed) or damages(source.folder, listed))
    return Origin(target.name, target.push(source.folder, list(listed), options))


def fetch_entry(origin: Origin, entry: PartEntry) -> None:
    """Fetch one part of a checkpoint that was pulled without it. Raises errors that name the part."""
    cache = LocalCache(location_of(origin.pinned, Path()))
    wanted = {f"{entry.folder}/{name}": promise for name, promise in entry.promises.items()}
    try:
        cache.fetch(origin.commit, wanted)
    except OutOfReachError as error:
        raise OutOfReachError(
            f"{entry.folder}: of {origin.place} this part is not here yet (pmmrec zoo pull {origin.pinned} --parts "
            f"{entry.folder} fetches it); {error}"
        ) from error


def list_places(prefix: str) -> list[str]:
    """Places of the checkpoints below a folder hub, a URL, or `hf://user`. RecipeError for a folder that is none."""
    if prefix.startswith(SCHEME):
        return list_repositories(prefix.removeprefix(SCHEME).rstrip("/"))
    if "://" in prefix:
        return UrlLocation(prefix).children()
    folder = expanded(Path(prefix))
    if not folder.is_dir():
        raise RecipeError(
            f"{prefix}: no such folder, so it holds no checkpoints; name one that does, a URL or hf://user"
        )
    return [str(folder / name) for name in list_checkpoints(folder)]
