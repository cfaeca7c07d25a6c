"""Find checkpoints and pretrained weights by name, and publish checkpoints; the only file that talks to a hub."""

from __future__ import annotations

import difflib
import importlib.util
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from pmmrec.errors import CheckpointError, MachineError, RecipeError
from pmmrec.settings import expanded
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint

PACKAGE = "package:"
WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
UNWANTED = ("*/*",)  # subfolders hold the same weights for other libraries
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")


def list_checkpoints(hub: Path) -> list[str]:
    """Names of the checkpoints in a folder hub, sorted; empty where the hub does not exist yet."""
    if not hub.is_dir():
        return []
    names = {path.name.removesuffix(files.PREVIOUS) for path in hub.iterdir() if path.suffix != files.INCOMPLETE}
    return sorted(name for name in names if _is_checkpoint(hub / name))


def find_checkpoint(place: str, hub: Path) -> Path:
    """The folder of a checkpoint, given that folder or its name in the hub.

    Raises CheckpointError where the folder holds none, RecipeError where there is no such folder and no such name.
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
    """RecipeError for a name that no checkpoint can have in a hub, or that one has and keeps."""
    if not _NAME.fullmatch(name) or files.is_leftover(Path(name)):
        raise RecipeError(f"name {name!r}: a name in a hub is made of letters, digits, '.', '_' and '-'")
    if hub.exists() and not hub.is_dir():
        raise RecipeError(f"{hub}: is no folder, so it is no hub; choose another hub=...")
    if (hub / name).exists() and not replace:
        raise RecipeError(f"{hub / name}: exists already; choose another name, or let it give way with replace")


def publish(checkpoint_folder: Path, hub: Path, name: str, *, replace: bool = False) -> Path:
    """Copy a checkpoint into a folder hub, whole or not at all; only files that its index lists travel.

    Raises RecipeError for an unfit or a taken name, CheckpointError where the copy is not what the index promises.
    """
    refuse_taken_name(hub, name, replace=replace)
    source = Checkpoint.open(checkpoint_folder)
    listed = source.index.all_files
    absent = files.absent(source.folder, listed)
    if absent:
        raise CheckpointError(f"{checkpoint_folder}: cannot be published: {'; '.join(absent)}")
    with files.writing(hub / name, replace=replace) as place:
        for path in (*listed, files.INDEX_NAME):
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.folder / path, place / path)
        if problems := Checkpoint.open(place).verify():
            raise CheckpointError(f"{checkpoint_folder}: cannot be published: {'; '.join(problems)}")
    return hub / name


def _is_checkpoint(folder: Path) -> bool:
    return (files.current(folder) / files.INDEX_NAME).is_file()


def find_weights(name: str, local: Mapping[str, Path]) -> Path:
    """The local folder of pretrained weights that a recipe names.

    In this order: `local[name]` (`--weights NAME=FOLDER`), a folder, `package:NAME/FOLDER` inside an installed Python
    package (which is not imported), a repository `OWNER/NAME` or `OWNER/NAME@REVISION` of the Hugging Face Hub, whose
    cached copy serves when the hub is out of reach. Raises RecipeError for a wrong `--weights`, MachineError where the
    weights cannot be had here.
    """
    if name in local:
        if not local[name].is_dir():
            raise RecipeError(f"--weights {name}={local[name]}: no such folder")
        return local[name]
    if name and expanded(Path(name)).is_dir():
        return expanded(Path(name))
    if name.startswith(PACKAGE):
        return _in_package(name)
    if not _REPOSITORY.fullmatch(name):
        raise MachineError(f"weights {name!r}: no such folder; give one that exists, or --weights {name}=FOLDER")
    return _from_hub(name)


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


def _from_hub(name: str) -> Path:
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
        )
    except Exception as error:  # its client raises errors of several libraries, which share no base
        reason = str(error).strip().split("\n")[0]
        raise MachineError(
            f"weights {name!r}: not here and not to be had from the hub ({type(error).__name__}: {reason}); "
            f"give a local folder: --weights {name}=FOLDER"
        ) from error
    return _with_weights(name, Path(folder))


def _with_weights(name: str, folder: Path) -> Path:
    """A cached copy may be partial, and old repositories hold nothing but pickles, which are never fetched."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise MachineError(
            f"weights {name!r}: {folder} holds no config.json with *.safetensors; "
            f"convert the model and give its folder: --weights {name}=FOLDER"
        )
    return folder
