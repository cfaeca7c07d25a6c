"""Where a checkpoint came from, and as which commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pmmrec import homes
from pmmrec.zoo import files

CACHE = homes.CACHE / "checkpoints"
WEIGHTS_CACHE = homes.CACHE / "weights"
_RECORD = ".origin.json"


@dataclass(frozen=True)
class Origin:
    """A place as it was at one moment."""

    place: str  # a folder, or `s3://bucket/name`, `hf://user/name`: without a revision
    commit: str  # of the Hugging Face Hub its own; elsewhere the SHA-256 of the index

    @property
    def is_remote(self) -> bool:
        return "://" in self.place

    @property
    def pinned(self) -> str:
        """What names the same checkpoint for good, wherever one is asked for; of a folder, the folder."""
        return f"{self.place}@{self.commit}" if self.is_remote else self.place

    @property
    def told(self) -> str:
        """What others may read of it: of a folder `NAME@SHA-256`, since paths here are nobody else's business."""
        if self.is_remote:
            return self.pinned
        folder = Path(self.place).resolve()
        name = folder.parent.name if folder.name == "checkpoint" else folder.name  # runs/NAME/checkpoint
        return f"{name}@{self.commit}"


def origin_of(folder: Path) -> Origin:
    """The origin of a cached copy; any other folder is its own."""
    return recorded_origin(folder, CACHE) or Origin(str(folder), files.sha256_of(folder / files.INDEX_NAME))


def recorded_origin(folder: Path, cache: Path) -> Origin | None:
    """What was recorded of a folder in a cache; None outside, where a record could be anybody's."""
    record = _record_of(folder)
    if not record.is_file() or not folder.resolve().is_relative_to(homes.expanded(cache).resolve()):
        return None
    tree = files.read_json(record)
    return Origin(str(tree["place"]), str(tree["commit"]))


def record_origin(folder: Path, origin: Origin) -> None:
    """Keep the origin of a copy beside it: within, it would be a file that the index does not list."""
    files.write_json(_record_of(folder), {"place": origin.place, "commit": origin.commit})


def _record_of(folder: Path) -> Path:
    return folder.resolve().with_name(folder.resolve().name + _RECORD)
