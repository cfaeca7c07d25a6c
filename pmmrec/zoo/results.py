"""Put the figures of a finished run, and the card made of them, into its checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import CARD_NAME, METRICS_NAME, Checkpoint


def restate(folder: Path, *, metrics: Mapping[str, Any], card: str) -> None:
    """Replace metrics.json and README.md of a checkpoint and enter them in its index; whole or not at all."""
    index = Checkpoint.open(folder).index
    with files.writing(folder, replace=True) as place:
        for name in index.all_files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, place / name)
        files.write_json(place / METRICS_NAME, metrics)
        (place / CARD_NAME).write_text(card, encoding="utf-8")
        restated = {name: files.sha256_of(place / name) for name in (METRICS_NAME, CARD_NAME)}
        updated = index.model_copy(update={"files": {**index.files, **restated}})
        files.write_json(place / files.INDEX_NAME, updated.model_dump(mode="json"))
