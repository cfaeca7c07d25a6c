"""KuaiRec, short videos with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pmmrec.data.importers.kinds import Inputs, Kind, first_folder, has_files, importers, required_file
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig

MATRICES = ("big_matrix.csv", "small_matrix.csv")
CAPTIONS = "kuairec_caption_category.csv"


class KuaiRecConfig(PartConfig):
    """Which of the two matrices is read."""

    type: Literal["kuairec"] = "kuairec"
    matrix: Literal["big", "small"] = Field("big", description="small: nearly every user has seen every video.")


@importers.register("kuairec", KuaiRecConfig)
class KuaiRec(Kind):
    """KuaiRec: views with times, and captions with topics. The rating is the share of a video that was watched.

    Views of any length are kept; `--min-rating 2` keeps those of twice the length of the video, as its authors do.
    """

    expects = "big_matrix.csv or small_matrix.csv, kuairec_caption_category.csv; in the folder or in data/"

    def __init__(self, config: KuaiRecConfig, folder: Path, work: Path) -> None:
        super().__init__(config, folder, work)
        self.matrix = config.matrix

    def recognise(self) -> str | None:
        data = _data(self.folder)
        found = [name for name in MATRICES if has_files(data, name, CAPTIONS)]
        return ", ".join([*found, CAPTIONS]) if found else None

    def inputs(self) -> Inputs:
        data, name = _data(self.folder), f"{self.matrix}_matrix.csv"
        if not has_files(data, name):
            other = "small" if self.matrix == "big" else "big"
            raise DataError(f"{data}: no {name}; import {other}_matrix.csv with --set matrix={other}")
        columns = {"item_id": "video_id", "rating": "watch_ratio", "text": "{caption}. {topic_tag?}"}
        return Inputs(required_file(data, CAPTIONS), required_file(data, name), columns)


def _data(folder: Path) -> Path:
    return first_folder(folder, "data") or folder
