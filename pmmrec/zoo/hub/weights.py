"""Find pretrained weights by the name that a recipe gives them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from pmmrec.errors import MachineError, PMMRecError, RecipeError
from pmmrec.settings import expanded
from pmmrec.zoo.hub import huggingface
from pmmrec.zoo.hub.place import without_secrets
from pmmrec.zoo.hub.url import UrlPlace
from pmmrec.zoo.origin import CACHE

PACKAGE = "package:"
WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
UNWANTED = ("*/*",)  # subfolders hold the same weights for other libraries
WEIGHTS_CACHE = CACHE.with_name("weights")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")


def find_weights(name: str, local: Mapping[str, Path]) -> Path:
    """The local folder of pretrained weights that a recipe names.

    In this order: `local[name]` (`--weights NAME=FOLDER`), a folder, `package:NAME/FOLDER` inside an installed Python
    package (which is not imported), a URL that fsspec opens, a repository `OWNER/NAME` or `OWNER/NAME@REVISION` of the
    Hugging Face Hub (`hf://` may stand before it), whose cached copy serves when the hub is out of reach. Raises
    RecipeError for a wrong `--weights`, MachineError where the weights cannot be had here.
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
        return _with_weights(name, _from_url(name))
    if not _REPOSITORY.fullmatch(name.removeprefix(huggingface.SCHEME)):
        raise MachineError(f"weights {name!r}: no such folder; give one that exists, or --weights {name}=FOLDER")
    return _with_weights(name, _from_hub(name))


def _in_package(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier():
        raise MachineError(f"weights {name!r}: must look like package:NAME/FOLDER, or give --weights {name}=FOLDER")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(
            f"weights {name!r}: package {package} is not installed; install it or give --weights {name}=FOLDER"
        )
    for location in spec.submodule_search_locations:
        folder = (Path(location) / inside).resolve()
        if folder.is_dir() and folder.is_relative_to(Path(location).resolve()):
            return folder
    raise MachineError(
        f"weights {name!r}: package {package} has no folder {inside!r}; mend it or give --weights {name}=FOLDER"
    )


def _from_url(name: str) -> Path:
    place = UrlPlace(name)
    try:
        return place.snapshot(expanded(WEIGHTS_CACHE), WANTED)
    except PMMRecError as error:
        raise type(error)(f"weights {name!r}: {error}; or give a local folder: --weights {name}=FOLDER") from error


def _from_hub(name: str) -> Path:
    repository, _, revision = name.removeprefix(huggingface.SCHEME).partition("@")
    try:
        return huggingface.snapshot(repository, revision or None, WANTED, UNWANTED)
    except Exception as error:  # its client raises errors of several libraries, which share no base
        raise MachineError(
            f"weights {name!r}: not here and not to be had from the hub ({type(error).__name__}: "
            f"{without_secrets(str(error))}); give a local folder: --weights {name}=FOLDER"
        ) from error


def _with_weights(name: str, folder: Path) -> Path:
    """A cached copy may be partial, and old repositories hold nothing but pickles, which are never fetched."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise MachineError(
            f"weights {name!r}: {folder} holds no config.json with *.safetensors; "
            f"convert the model and give its folder: --weights {name}=FOLDER"
        )
    return folder
