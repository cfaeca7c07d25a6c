"""The results of a search are short to read and complete to use."""

from __future__ import annotations

import csv
from pathlib import Path

from pmmrec.tuning.record import Ending
from pmmrec.tuning.results import best_rows, short_names, trial_line, write_trials

RATE = "train.optimizer.learning_rate"


def _ending(number: int, value: float | None, **changed: object) -> Ending:
    fields = {"state": "complete", "values": {RATE: 0.00123456}, "is_own": False, "best_epoch": 4, "num_epochs": 9}
    return Ending(**{**fields, "number": number, "value": value, "seconds": 12.3, **changed})


def test_the_short_name_of_a_setting_is_its_unique_suffix() -> None:
    part = 'train.optimizer.parts."text_encoder.backbone".learning_rate'
    names = short_names([RATE, part, "model.user_encoder.num_layers"])
    assert list(names.values()) == ["optimizer.learning_rate", "text_encoder.backbone.learning_rate", "num_layers"]


def test_a_line_has_value_best_epochs_seconds_and_settings() -> None:
    endings = [_ending(0, 0.2, is_own=True), _ending(1, 0.1, state="pruned")]
    line = trial_line(endings[1], endings, "ndcg@10", {RATE: "learning_rate"})
    assert line == (
        "trial 0001  ndcg@10 10.00% (ended early)  best 20.00% (0000)  9 epochs  12 s  learning_rate=0.001235"
    )
    failed = _ending(2, None, state="failed", num_epochs=None, message="step 3: loss is nan")
    told = trial_line(failed, [failed], "ndcg@10", {RATE: "learning_rate"})
    assert told == "trial 0002  failed  none so far  12 s  learning_rate=0.001235  step 3: loss is nan"


def test_the_recipes_own_values_are_in_the_table_even_if_ten_are_better() -> None:
    endings = [_ending(0, 0.01, is_own=True), *(_ending(number, number / 100) for number in range(2, 14))]
    columns, rows = best_rows(endings, {RATE: "learning_rate"}, "ndcg@10")
    assert columns == ["trial", "ndcg@10", "best epoch", "learning_rate"]
    assert [row[0] for row in rows] == [f"{number:04d}" for number in range(13, 3, -1)] + ["0000 (own values)"]


def test_the_csv_has_every_trial_with_full_paths(tmp_path: Path) -> None:
    failed = _ending(1, None, state="failed", message='said "no", twice')
    write_trials(tmp_path, [_ending(0, 0.25), failed], [RATE, "x"])
    with (tmp_path / "trials.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["trial"], first["value"], first[RATE], first["x"]) == ("0000", "0.25", "0.00123456", "null")
    assert (second["state"], second["message"]) == ("failed", 'said "no", twice')


def test_texts_in_the_csv_that_a_spreadsheet_would_compute_are_escaped_and_numbers_are_not(tmp_path: Path) -> None:
    odd = _ending(0, -0.25, values={RATE: -1e-3, "x": "=cmd()"}, message="-0.5 is no rate")
    write_trials(tmp_path, [odd], [RATE, "x"])
    with (tmp_path / "trials.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["value"], row[RATE], row["x"], row["message"]) == ("-0.25", "-0.001", "'=cmd()", "'-0.5 is no rate")
