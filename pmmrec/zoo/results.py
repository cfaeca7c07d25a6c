"""Put the figures of a finished run, and the card made of them, into its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmmrec.zoo import files
from pmmrec.zoo.folder import CARD_NAME, METRICS_NAME, CheckpointFolder


def restate(folder: Path, *, metrics: Mapping[str, Any], card: str) -> None:
    """Replace metrics.json and README.md of a checkpoint and enter them in its index; whole or not at all.

    Tensors are linked, not copied. Raises CheckpointError where `folder` is no checkpoint, MachineError where the
    disk refuses.
    """
    CheckpointFolder.open(folder)
    with files.writing(folder, replace=True) as place:
        old = CheckpointFolder.open(folder)  # again: what a killed save left may have been moved back to `folder`
        for name in set(old.index.all_files) - {METRICS_NAME, CARD_NAME}:
            files.link_or_copy(old.folder / name, place / name)
        files.write_json(place / METRICS_NAME, metrics)
        (place / CARD_NAME).write_text(card, encoding="utf-8")
        restated = {name: files.sha256_of(place / name) for name in (METRICS_NAME, CARD_NAME)}
        index = old.index.model_copy(update={"files": {**old.index.files, **restated}})
        files.write_json(place / files.INDEX_NAME, index.written())
