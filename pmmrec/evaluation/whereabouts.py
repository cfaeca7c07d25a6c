"""Where the domains lay that figures were measured on; kept beside the figures, and never published."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pmmrec.atomic import whole_file
from pmmrec.data.domain import Domain
from pmmrec.errors import DataError

WHEREABOUTS_FILE = "domains.json"


def write_whereabouts(folder: Path, domains: Iterable[Domain]) -> None:
    """Write the folders of domains as they were given, by name, into a run folder; whole or not at all."""
    folders = {domain.name: str(domain.folder) for domain in domains}
    with whole_file(folder / WHEREABOUTS_FILE) as draft:
        draft.write_text(json.dumps(folders, indent=2) + "\n", encoding="utf-8")


def read_whereabouts(folder: Path) -> dict[str, Path]:
    """The folder of each domain by its name; empty where a run does not tell. DataError where it cannot be read."""
    path = folder / WHEREABOUTS_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        folders = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}; remove the file") from error
    is_told = isinstance(folders, dict) and all(
        isinstance(place, str) and "\0" not in place for place in folders.values()
    )
    if not is_told:
        raise DataError(f"{path}: does not name the folder of each domain; remove the file")
    return {name: Path(place) for name, place in folders.items()}
