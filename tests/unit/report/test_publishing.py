"""The card of a checkpoint says what it is and how well it ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

from pmmrec.evaluation.outcome import read_outcome
from pmmrec.report.publishing import write_card
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.results import restate


def test_the_card_has_origin_data_metrics_and_licence_and_the_checkpoint_stays_valid(
    small_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_run / "runs" / "small" / "checkpoint", tmp_path / "checkpoint"))
    outcome = read_outcome(small_run / "runs" / "small")
    write_card(folder, outcome, "apache-2.0", "small")
    card = (folder / "README.md").read_text(encoding="utf-8")
    for words in ("license: apache-2.0", "pretrained on bazaar, gallery", "item-kNN", "nicl"):
        assert words in card
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.verify() == []
    assert checkpoint.metrics == outcome.model_dump(mode="json")


def test_the_card_of_a_run_without_test_ranks_has_its_validation_metrics(small_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_run / "runs" / "small" / "checkpoint", tmp_path / "checkpoint"))
    restate(folder, metrics={"epoch": 2, "validation": {"hr@10": 0.125, "ndcg@10": 0.0625}}, card="")
    write_card(folder, None, "other", "small")
    card = (folder / "README.md").read_text(encoding="utf-8")
    for words in (
        "pretrained on bazaar, gallery",
        "No test targets were ranked. On validation: HR@10 12.5%, NDCG@10 6.2%.",
    ):
        assert words in card
    assert Checkpoint.open(folder).metrics["epoch"] == 2
