"""Folders of Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pmmrec.data.importers.kinds import Inputs, Kind, importers
from pmmrec.data.importers.records import write_shards
from pmmrec.settings import PartConfig

FOLDER = r"^\w[\w.\-]*(/\w[\w.\-]*)*$"  # within that of the data set


class HFConfig(PartConfig):
    """Which folders hold the two tables."""

    type: Literal["hf"] = "hf"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"items": "raw_meta_Toys"},)
    items: str = Field("items", pattern=FOLDER, description="Folder with the files of the items.")
    interactions: str = Field("interactions", pattern=FOLDER, description="Folder with those of the interactions.")


@importers.register("hf", HFConfig)
class HF(Kind):
    """Hugging Face datasets: a folder of items and one of interactions, each with Arrow or parquet files.

    What `Dataset.save_to_disk` writes, or what a repository on the Hub holds: `pmmrec data import hf OWNER/NAME`.
    The folders are called `items` and `interactions` unless settings name others. The files below a folder are one
    table, in the order of their names; pictures are read from a column `image`.
    """

    expects = "items/ and interactions/, each with *.arrow or *.parquet files, at any depth; or OWNER/NAME on the Hub"

    def __init__(self, config: HFConfig, folder: Path, work: Path) -> None:
        super().__init__(config, folder, work)
        self.folders = {"items": folder / config.items, "interactions": folder / config.interactions}

    def recognise(self) -> str | None:
        names = [f"{place.relative_to(self.folder)}/" for place in self.folders.values() if _shards(place)]
        return " and ".join(names) if len(names) == len(self.folders) else None

    def inputs(self) -> Inputs:
        items, interactions = (
            write_shards(_shards(place), self.work / f"{role}.parquet", place) for role, place in self.folders.items()
        )
        return Inputs(items, interactions)


def _shards(folder: Path) -> list[Path]:
    found = [path for suffix in ("arrow", "parquet") for path in folder.rglob(f"*.{suffix}")]
    return sorted(path for path in found if not path.name.startswith(("cache-", ".")))
