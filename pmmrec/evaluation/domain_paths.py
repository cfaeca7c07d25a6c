"""Record the folders of the domains that a run was measured on; they are never published."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pmmrec.atomic import whole_file
from pmmrec.data.domain import Domain
from pmmrec.errors import DataError

DOMAIN_PATHS_FILE = "domains.json"


def write_domain_paths(folder: Path, domains: Iterable[Domain]) -> None:
    """Write the folder of each domain, as it was given, into a run folder; whole or not at all."""
    folders = {domain.name: str(domain.folder) for domain in domains}
    with whole_file(folder / DOMAIN_PATHS_FILE) as draft:
        draft.write_text(json.dumps(folders, indent=2) + "\n", encoding="utf-8")


def read_domain_paths(folder: Path) -> dict[str, Path]:
    """The folder of each domain by name; empty if the run did not record them. DataError if they cannot be read."""
    path = folder / DOMAIN_PATHS_FILE
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
    if not isinstance(folders, dict) or any(not isinstance(path, str) or "\0" in path for path in folders.values()):
        raise DataError(f"{path}: does not name the folder of each domain; remove the file")
    return {name: Path(path) for name, path in folders.items()}
