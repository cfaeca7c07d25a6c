"""Enter a file in the index of its checkpoint as it now is, as someone with bad intent or another program would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pmmrec.zoo import files
from pmmrec.zoo.tensors import promises_of


def entry_of(tree: Mapping[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The entry of an index to which a file belongs, and the file's name there."""
    for group in ("parts", "objectives", "adapted"):
        for entry in tree.get(group, {}).values():
            if path.startswith(f"{entry['folder']}/"):
                return entry, path.removeprefix(f"{entry['folder']}/")
    raise KeyError(path)


def seal(folder: Path, path: str, *, with_tensors: bool = True) -> None:
    """The SHA-256 of the file is made right; what the index says of its tensors only where `with_tensors`."""
    index = folder / files.INDEX_NAME
    tree = files.read_json(index)
    entry, name = entry_of(tree, path)
    entry["files"][name] = files.sha256_of(folder / path)
    if with_tensors and entry.get("tensors") and name in entry["tensors"]:
        try:
            told = promises_of(folder / entry["folder"])[name].tensors or {}
            entry["tensors"][name] = {tensor: str(about) for tensor, about in told.items()}
        except files.CheckpointError:
            del entry["tensors"]  # no tensor can be told of what is no safetensors file
    index.chmod(0o644)
    files.write_json(index, tree)


def edit_tensors(folder: Path, path: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a file and leave the index as it was."""
    tensors = load_file(folder / path)
    change(tensors)
    (folder / path).chmod(0o644)
    save_file(tensors, folder / path, metadata={"format": "pt"})
