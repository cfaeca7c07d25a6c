"""Folders of Hugging Face datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pmmrec.data.importers.kinds import Inputs, Kind, importers
from pmmrec.data.importers.records import write_shards
from pmmrec.settings import PartConfig

ROLES = ("items", "interactions")


class HFConfig(PartConfig):
    """Such folders have no settings."""

    type: Literal["hf"] = "hf"


@importers.register("hf", HFConfig)
class HF(Kind):
    """Hugging Face datasets on disk: a folder of items and one of interactions, each with Arrow or parquet files.

    What `Dataset.save_to_disk` writes, or a repository of a data set holds. The files below a folder are one table,
    in the order of their names; pictures are read from a column `image`.
    """

    expects = "items/ and interactions/, each with *.arrow or *.parquet files, at any depth"

    def recognise(self) -> str | None:
        return "items/ and interactions/" if all(_shards(self.folder / role) for role in ROLES) else None

    def inputs(self) -> Inputs:
        items, interactions = (
            write_shards(_shards(self.folder / role), self.work / f"{role}.parquet", self.folder / role)
            for role in ROLES
        )
        return Inputs(items, interactions)


def _shards(folder: Path) -> list[Path]:
    found = [path for suffix in ("arrow", "parquet") for path in folder.rglob(f"*.{suffix}")]
    return sorted(path for path in found if not path.name.startswith(("cache-", ".")))
