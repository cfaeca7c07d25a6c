"""Record the place and the commit that a cached copy was fetched from."""

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
    """A place at one commit."""

    place: str  # a folder, `s3://bucket/name` or `hf://user/name`, without a revision
    commit: str  # on the Hugging Face Hub the git commit; elsewhere the SHA-256 of the index

    @property
    def is_remote(self) -> bool:
        """Whether the place is a URL."""
        return "://" in self.place

    @property
    def pinned(self) -> str:
        """Place and commit, `hf://user/name@COMMIT`, which always name the same checkpoint; for a folder, its path."""
        return f"{self.place}@{self.commit}" if self.is_remote else self.place

    @property
    def public_name(self) -> str:
        """A form that may be published: for a folder `NAME@SHA-256`, which hides local paths."""
        if self.is_remote:
            return self.pinned
        folder = Path(self.place).resolve()
        name = folder.parent.name if folder.name == "checkpoint" else folder.name  # runs/NAME/checkpoint
        return f"{name}@{self.commit}"


def origin_of(folder: Path) -> Origin:
    """The recorded origin of a cached copy; any other folder is its own origin."""
    return recorded_origin(folder, CACHE) or Origin(str(folder), files.sha256_of(folder / files.INDEX_NAME))


def recorded_origin(folder: Path, cache: Path) -> Origin | None:
    """The recorded origin of a folder in `cache`; None outside it, where a record cannot be trusted."""
    record = _record_of(folder)
    if not record.is_file() or not folder.resolve().is_relative_to(homes.expanded(cache).resolve()):
        return None
    tree = files.read_json(record)
    return Origin(str(tree["place"]), str(tree["commit"]))


def record_origin(folder: Path, origin: Origin) -> None:
    """Write the origin of a copy beside its folder; inside, it would be a file that the index does not list."""
    files.write_json(_record_of(folder), {"place": origin.place, "commit": origin.commit})


def _record_of(folder: Path) -> Path:
    return folder.resolve().with_name(folder.resolve().name + _RECORD)
