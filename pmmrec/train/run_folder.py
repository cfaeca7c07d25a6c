"""The folder of a run: what was asked, on what machine, and what came out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pmmrec.atomic import whole_file
from pmmrec.errors import MachineError, RecipeError

_PACKAGES = ("pmmrec", "torch", "transformers", "timm", "accelerate", "peft", "deepspeed", "pyarrow", "duckdb", "numpy")


def refuse_taken(folder: Path) -> None:
    """RecipeError when a run of this name exists."""
    if folder.exists():
        raise RecipeError(f"{folder}: this run exists; choose another name=... or remove the folder")


def make_run_folder(folder: Path) -> Path:
    """A new folder. RecipeError when it exists, MachineError when it cannot be made."""
    refuse_taken(folder)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        refuse_taken(folder)  # by another run that started at the same moment
        raise MachineError(f"{folder}: cannot be made: {error.strerror}") from error
    except OSError as error:
        raise MachineError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def environment(num_processes: int, device: torch.device) -> dict[str, Any]:
    """Versions, commit and hardware."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {name: package_version(name) for name in _PACKAGES},
        "commit": _commit(),
        "device": gpu or device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": num_processes,
    }


def package_version(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of a checkout that this package is run from; None for an installed wheel."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    return result.stdout.strip() or None
