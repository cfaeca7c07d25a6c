"""Validation by epoch is read from the events of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pmmrec.errors import DataError
from pmmrec.report.epochs import Epoch, best_epoch, judged_by, read_epochs


def write_events(folder: Path, values: dict[int, float], end: str = "\n") -> None:
    lines = [json.dumps({"event": "train", "step": 1, "loss": 2.0})]
    lines += [
        json.dumps({"event": "validation", "step": e, "epoch": e, "mean": {"ndcg@10": v}}) for e, v in values.items()
    ]
    (folder / "events.jsonl").write_text("\n".join(lines) + end)


def test_epochs_are_those_of_the_validation_events_in_order(tmp_path: Path) -> None:
    write_events(tmp_path, {0: 0.1, 2: 0.3, 1: 0.2})
    assert read_epochs(tmp_path) == [Epoch(epoch, {"ndcg@10": 0.1 * (epoch + 1)}) for epoch in range(2)] + [
        Epoch(2, {"ndcg@10": 0.3})
    ]


@pytest.mark.parametrize("half", ['{"event": "validation", "step": 3, "epo', '{"event": "validation", "mean": {}'])
def test_an_incomplete_last_line_is_ignored(tmp_path: Path, half: str) -> None:
    write_events(tmp_path, {0: 0.1, 1: 0.2}, end=f"\n{half}")
    assert [epoch.epoch for epoch in read_epochs(tmp_path)] == [0, 1]


def test_lines_that_are_not_events_are_errors(tmp_path: Path) -> None:
    write_events(tmp_path, {0: 0.1}, end='\n{"event": "validation"}\n')
    with pytest.raises(DataError, match=r"events\.jsonl: line 3: not an event of a run"):
        read_epochs(tmp_path)


@pytest.mark.parametrize(("epoch", "value"), [(-1, 0.1), (1, -0.1), (1, 1.5), (1, float("nan")), (1, float("inf"))])
def test_impossible_metrics_are_refused(tmp_path: Path, epoch: int, value: float) -> None:
    write_events(tmp_path, {epoch: value})
    with pytest.raises(DataError, match=r"events\.jsonl: line 2: not an event of a run: an epoch is 0 or more"):
        read_epochs(tmp_path)


def test_a_folder_without_events_or_epochs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only a training run records epochs"):
        read_epochs(tmp_path)
    write_events(tmp_path, {})
    with pytest.raises(DataError, match="has no validation event"):
        read_epochs(tmp_path)


def test_the_first_of_the_best_epochs_is_the_best(tmp_path: Path) -> None:
    write_events(tmp_path, {0: 0.1, 1: 0.3, 2: 0.3, 3: 0.2})
    best = best_epoch(read_epochs(tmp_path), "ndcg@10")
    assert (best.epoch, best.value, best.last) == (1, 0.3, 3)
    with pytest.raises(DataError, match=r"epoch 0: validation has no 'hr@10'; it has ndcg@10"):
        best_epoch(read_epochs(tmp_path), "hr@10")


def test_the_metric_comes_from_the_recipe(tmp_path: Path) -> None:
    assert judged_by(tmp_path) == "ndcg@10"
    (tmp_path / "recipe.yaml").write_text("validation: {metric: hr@20}\n")
    assert judged_by(tmp_path) == "hr@20"
