"""Locate the base checkpoint of an adapter checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pmmrec.errors import CheckpointError, MachineError, RecipeError
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.hub import OutOfReachError
from pmmrec.zoo.index import BaseEntry, PartEntry
from pmmrec.zoo.origin import Origin

_T = TypeVar("_T")


class AdapterBase:
    """The base of adapters, looked for in place after place, in each of them once."""

    def __init__(
        self, wanted: BaseEntry, adapters: Path, places: Sequence[str], open_at: Callable[[str], Checkpoint]
    ) -> None:
        """`adapters`: their folder. `places`: the first in reach that holds the base serves; opened by `open_at`."""
        self._wanted, self._adapters, self._places, self._open_at = wanted, adapters, places, open_at
        self._found: dict[str, Checkpoint] = {}  # by place
        self._unfit: dict[str, str] = {}  # place -> why what is there does not serve; empty where nothing is

    def take(self, take: Callable[[Checkpoint], _T]) -> _T:
        """What `take` finds in the base. Raises what it raises.

        Raises CheckpointError that tells of every place where the base is in none of them.
        """
        for place in self._places:
            found = self._at(place)
            if found is not None:
                try:
                    return take(found)
                except OutOfReachError as error:  # of a part that was not pulled before the connection broke
                    self._unfit[place] = str(error)
        raise CheckpointError(
            f"{self._adapters}: its adapters stand on {place_of(self._wanted)} (sha256 of its {files.INDEX_NAME}: "
            f"{self._wanted.sha256}), which was not found at {', '.join(self._places)}"
            f"{''.join(f'; {why}' for why in self._unfit.values() if why)}; say where it is with --base PLACE"
        )

    def _at(self, place: str) -> Checkpoint | None:
        if place not in self._found and place not in self._unfit:
            try:
                opened = self._open_at(place)
            except (CheckpointError, RecipeError, MachineError) as error:
                is_empty = isinstance(error, RecipeError) and "://" not in place
                self._unfit[place] = "" if is_empty else str(error)
                return None
            if _is_base(opened, self._wanted):
                self._found[place] = opened
            else:
                self._unfit[place] = f"{place} is another (sha256 {index_hash(opened)})"
        return None if place in self._unfit else self._found[place]


def base_entry(checkpoint: Checkpoint, parts: Sequence[str]) -> BaseEntry:
    """What adapters keep of a checkpoint that they stand on, of whose parts they need `parts`."""
    origin = checkpoint.origin
    return BaseEntry(
        place=origin.place if origin.is_remote else str(checkpoint.folder.resolve()),
        revision=origin.commit if origin.is_remote else None,
        sha256=index_hash(checkpoint),
        parts={name: checkpoint.parts[name] for name in parts},
        adapted={name: entry for name, entry in checkpoint.index.adapted.items() if name in parts},
    )


def place_of(base: BaseEntry) -> str:
    """What names a base wherever a checkpoint is asked for; where it has a commit, the same for good."""
    return base.place if base.revision is None else Origin(base.place, base.revision).pinned


def places_of(base: BaseEntry, adapters: Checkpoint) -> list[str]:
    """Where to look for the base of `adapters`: where it was, beside them, in the hub.

    A URL that forgot the commit may hold the same parts under a newer card.
    """
    name = base.place.rstrip("/").rpartition("/")[2]
    origin = adapters.origin
    beside = origin.place.rpartition("/")[0] if origin.is_remote else str(adapters.folder.parent)
    return list(dict.fromkeys([place_of(base), base.place, f"{beside}/{name}", name]))


def index_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 of the index of a checkpoint, which tells that of every file."""
    return files.sha256_of(checkpoint.folder / files.INDEX_NAME)


def _is_base(found: Checkpoint, wanted: BaseEntry) -> bool:
    """Whether it is the same checkpoint, or one whose needed parts are the same file by file under a newer card."""
    if index_hash(found) == wanted.sha256:
        return True
    adapted = {name: entry for name, entry in found.index.adapted.items() if name in wanted.parts}
    return adapted.keys() == wanted.adapted.keys() and all(
        _is_same(entries.get(name), entry)
        for entries, asked in ((found.parts, wanted.parts), (adapted, wanted.adapted))
        for name, entry in asked.items()
    )


def _is_same(found: PartEntry | None, wanted: PartEntry) -> bool:
    """Whether a part is the same file by file; one index may tell more of it than another."""
    return found is not None and (found.folder, found.files) == (wanted.folder, wanted.files)
