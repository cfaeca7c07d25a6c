"""A search for the settings of a small fine-tuning, and what it left."""

from __future__ import annotations

import csv
from pathlib import Path

import optuna

SEED = 13  # proposes 0.01, then 1e30, which leaves the finite numbers
TINY = ("train.batch_users=16", "model.width=16", "cache=c", "machine.device=cpu")
SPACE = """
train.optimizer.learning_rate: {choice: [1e-3, 1e-2, 1e30]}
model.user_encoder.num_layers: {int: [1, 2]}
"""


def command(world: Path, *more: object, space: str = SPACE, trials: int = 2) -> list[str]:
    Path("space.yaml").write_text(space, encoding="utf-8")
    on = ("--from", "none", "--on", world / "boutique")
    asked = (
        "tune",
        "zoo/ids/small/sasrec_in_batch",
        "--space",
        "space.yaml",
        "--trials",
        trials,
        "--seed",
        SEED,
        *on,
        *TINY,
        *more,
    )
    return [str(word) for word in asked]


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")
