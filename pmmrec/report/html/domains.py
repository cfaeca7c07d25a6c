"""Find the domains that runs were measured on, at their recorded paths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pmmrec.data.domain import Domain
from pmmrec.errors import DataError
from pmmrec.evaluation.domain_paths import read_domain_paths
from pmmrec.report.comparison import ComparedSystem


def domains_read(systems: Sequence[ComparedSystem]) -> list[Domain]:
    """The domains that the runs were measured on, each from the first recorded path that still holds it.

    Empty if no run recorded paths. Raises DataError if a domain is at none of its recorded paths.
    """
    told: dict[str, list[tuple[Path, Path]]] = {}  # name -> run, folder of the domain
    for folder in (folder for system in systems for folder in system.folders):
        for name, place in read_domain_paths(folder).items():
            told.setdefault(name, []).append((folder, place))
    measured = {found.domain: found.fingerprint for system in systems for found in system.domains.values()}
    return [_first_sound(name, measured[name], places) for name, places in told.items() if name in measured]


def _first_sound(name: str, fingerprint: str, places: Iterable[tuple[Path, Path]]) -> Domain:
    problems = []
    for run, place in places:
        try:
            domain = Domain.open(place)
        except (DataError, OSError) as error:
            problems.append(f"{run}: read {name} in {place}, which cannot be opened ({error})")
            continue
        if domain.fingerprint == fingerprint:
            return domain
        problems.append(f"{run}: read {name} in {place}, which now holds something else ({domain.name})")
    raise DataError(f"{problems[0]}; give --domain FOLDER, or --domain none for a page without maps and lists of users")
