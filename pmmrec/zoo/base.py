"""Locate the base checkpoint of an adapter checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from pmmrec.errors import CheckpointError, MachineError, RecipeError
from pmmrec.zoo import files
from pmmrec.zoo.folder import CheckpointFolder
from pmmrec.zoo.hub.location import OutOfReachError
from pmmrec.zoo.index import BaseEntry, PartEntry
from pmmrec.zoo.origin import Origin

_Opened = TypeVar("_Opened", bound=CheckpointFolder)
_T = TypeVar("_T")


class AdapterBase(Generic[_Opened]):
    """The base checkpoint of adapters, searched for in several places; each place is opened at most once."""

    def __init__(
        self, wanted: BaseEntry, adapters: Path, places: Sequence[str], open_at: Callable[[str], _Opened]
    ) -> None:
        """Set up the search; nothing is opened yet.

        Args:
            wanted: The base as the adapters' index describes it.
            adapters: Folder of the adapters, for messages.
            places: Where to look, in this order.
            open_at: Opens the checkpoint at a place.
        """
        self._wanted, self._adapters, self._places, self._open_at = wanted, adapters, places, open_at
        self._found: dict[str, _Opened] = {}  # by place
        self._rejected: dict[str, str] = {}  # place -> reason; empty where there is no checkpoint

    def read(self, read: Callable[[_Opened], _T]) -> _T:
        """Call `read` with the first base that is found and can be read. Raises what `read` raises.

        Raises CheckpointError that lists all places where none of them holds the base.
        """
        for place in self._places:
            found = self._at(place)
            if found is not None:
                try:
                    return read(found)
                except OutOfReachError as error:  # a part was not cached before the connection broke
                    self._rejected[place] = str(error)
        raise CheckpointError(
            f"{self._adapters}: the base of its adapters, {place_of(self._wanted)} (sha256 of its {files.INDEX_NAME}: "
            f"{self._wanted.sha256}), was not found at {', '.join(self._places)}"
            f"{''.join(f'; {reason}' for reason in self._rejected.values() if reason)}; say where it is with "
            "--base PLACE"
        )

    def _at(self, place: str) -> _Opened | None:
        if place not in self._found and place not in self._rejected:
            try:
                opened = self._open_at(place)
            except (CheckpointError, RecipeError, MachineError) as error:
                is_empty = isinstance(error, RecipeError) and "://" not in place
                self._rejected[place] = "" if is_empty else str(error)
                return None
            if _is_base(opened, self._wanted):
                self._found[place] = opened
            else:
                self._rejected[place] = f"{place} is another (sha256 {index_hash(opened)})"
        return None if place in self._rejected else self._found[place]


def base_entry(checkpoint: CheckpointFolder, parts: Sequence[str]) -> BaseEntry:
    """What the index of adapters records about their base, of whose parts they need `parts`."""
    origin = checkpoint.origin
    return BaseEntry(
        place=origin.place if origin.is_remote else str(checkpoint.folder.resolve()),
        revision=origin.commit if origin.is_remote else None,
        sha256=index_hash(checkpoint),
        parts={name: checkpoint.parts[name] for name in parts},
        adapted={name: entry for name, entry in checkpoint.index.adapted.items() if name in parts},
    )


def place_of(base: BaseEntry) -> str:
    """The place of a base as people write it, with its commit if it has one."""
    return base.place if base.revision is None else Origin(base.place, base.revision).pinned


def places_of(base: BaseEntry, adapters: CheckpointFolder) -> list[str]:
    """Where to look for the base of `adapters`: its recorded place, beside the adapters, in the hub.

    The place is tried without its commit too: the same parts may be there under a newer card.
    """
    name = base.place.rstrip("/").rpartition("/")[2]
    origin = adapters.origin
    beside = origin.place.rpartition("/")[0] if origin.is_remote else str(adapters.folder.parent)
    return list(dict.fromkeys([place_of(base), base.place, f"{beside}/{name}", name]))


def index_hash(checkpoint: CheckpointFolder) -> str:
    """SHA-256 of the index of a checkpoint, which holds the SHA-256 of every other file."""
    return files.sha256_of(checkpoint.folder / files.INDEX_NAME)


def _is_base(found: CheckpointFolder, wanted: BaseEntry) -> bool:
    """Whether it is the same checkpoint, or holds the needed parts file by file under a newer card."""
    if index_hash(found) == wanted.sha256:
        return True
    adapted = {name: entry for name, entry in found.index.adapted.items() if name in wanted.parts}
    return adapted.keys() == wanted.adapted.keys() and all(
        _is_same(entries.get(name), entry)
        for entries, asked in ((found.parts, wanted.parts), (adapted, wanted.adapted))
        for name, entry in asked.items()
    )


def _is_same(found: PartEntry | None, wanted: PartEntry) -> bool:
    """Whether two parts have the same files; the descriptions of their tensors may differ."""
    return found is not None and (found.folder, found.files) == (wanted.folder, wanted.files)
