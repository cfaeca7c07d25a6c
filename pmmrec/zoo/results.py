"""Add the figures of a finished run and its model card to its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmmrec.zoo import files
from pmmrec.zoo.folder import CARD_NAME, METRICS_NAME, CheckpointFolder


def restate(folder: Path, *, metrics: Mapping[str, Any], card: str) -> None:
    """Replace metrics.json and README.md of a checkpoint and update its index, completely or not at all.

    Tensors are linked, not copied. Raises CheckpointError where `folder` is not a checkpoint, MachineError where the
    disk cannot be written.
    """
    CheckpointFolder.open(folder)
    with files.writing(folder, replace=True) as draft:
        old = CheckpointFolder.open(folder)  # again: `writing` may have restored what a killed save left
        for name in set(old.index.all_files) - {METRICS_NAME, CARD_NAME}:
            files.link_or_copy(old.folder / name, draft / name)
        files.write_json(draft / METRICS_NAME, metrics)
        (draft / CARD_NAME).write_text(card, encoding="utf-8")
        restated = {name: files.sha256_of(draft / name) for name in (METRICS_NAME, CARD_NAME)}
        index = old.index.model_copy(update={"files": {**old.index.files, **restated}})
        files.write_json(draft / files.INDEX_NAME, index.written())
