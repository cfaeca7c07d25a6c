"""After how many users, or epochs, a transfer stops paying; and the pictures that show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pmmrec.evaluation.significance import Interval
from pmmrec.report.epochs import Epoch
from pmmrec.report.html.drawing import draw_by_users
from pmmrec.report.learning_curve import LearningCurve, Point

METRIC = "ndcg@10"


def point(num_users: int, difference: tuple[float, float, float], transfer: list[float], scratch: list[float]) -> Point:
    epochs = [[Epoch(epoch, {METRIC: value}) for epoch, value in enumerate(values)] for values in (transfer, scratch)]
    names = (f"full-users{num_users}", f"full-users{num_users}-scratch")
    figures = (Interval(0.2, 0.1, 0.3), Interval(0.1, 0.0, 0.2))
    return Point(num_users, names, (epochs[0], epochs[1]), figures, Interval(*difference))


def curve(*points: Point) -> LearningCurve:
    return LearningCurve(METRIC, METRIC, points)


PAYS, LEVEL = (0.02, 0.01, 0.03), (0.005, -0.01, 0.02)
AHEAD = ([0.1, 0.2, 0.3], [0.0, 0.1, 0.2])


def test_transfer_stops_after_the_largest_number_of_users_with_an_interval_above_zero() -> None:
    found = curve(point(100, PAYS, *AHEAD), point(300, PAYS, *AHEAD), point(1000, LEVEL, *AHEAD))
    assert found.sentence() == (
        "transfer stopped paying after 300 users: NDCG@10 over scratch in points is +2.00 [1.00, 3.00] with 300, "
        "+0.50 [-1.00, 2.00] with 1,000"
    )


def test_transfer_that_pays_with_all_users_or_with_none_is_said_so() -> None:
    assert curve(point(100, LEVEL, *AHEAD), point(300, PAYS, *AHEAD)).sentence() == (
        "transfer still pays with all 300 users: NDCG@10 over scratch in points is +2.00 [1.00, 3.00]"
    )
    assert curve(point(100, LEVEL, *AHEAD), point(300, LEVEL, *AHEAD)).sentence() == (
        "transfer is not shown to pay with any number of users: NDCG@10 over scratch in points is "
        "+0.50 [-1.00, 2.00] with 100, +0.50 [-1.00, 2.00] with 300"
    )


@pytest.mark.parametrize(
    ("transfer", "scratch", "caught"),
    [
        ([0.2, 0.3, 0.4], [0.0, 0.1, 0.2], None),
        ([0.2, 0.3, 0.3], [0.0, 0.1, 0.3], 2),
        ([0.2, 0.3], [0.0, 0.1, 0.2, 0.3], 3),  # transfer stopped early; its best so far stays
        ([0.2, 0.3, 0.1], [0.0, 0.1, 0.2], None),
        ([0.2, 0.3, 0.5], [0.0, 0.4, 0.4, 0.5], 3),  # overtaken in between
        ([0.2, 0.2], [0.1, 0.2], 1),
        ([0.1, 0.2], [0.1, 0.2], 1),
    ],
)
def test_scratch_has_caught_up_once_its_best_is_never_behind_again(
    transfer: list[float], scratch: list[float], caught: int | None
) -> None:
    assert point(10, LEVEL, transfer, scratch).caught_up(METRIC) == caught


def test_with_one_number_of_users_the_sentence_is_about_epochs() -> None:
    tested = "so far; at their best epochs NDCG@10 over scratch is +0.50 [-1.00, 2.00] points on the test"
    said = [
        curve(point(10, LEVEL, *AHEAD)).sentence(),
        curve(point(10, LEVEL, [0.2, 0.3, 0.3], [0.0, 0.1, 0.3])).sentence(),
        curve(point(10, LEVEL, [0.1, 0.2], [0.1, 0.2])).sentence(),
    ]
    assert all(one.endswith(tested) for one in said)
    assert said[0].startswith("transfer stayed ahead in all epochs, by the best validation NDCG@10")
    assert said[1].startswith("transfer stopped paying after 1 epoch(s): from epoch 2 on the model from scratch was")
    assert said[2].startswith("transfer was ahead in no epoch")


def test_the_record_and_both_pictures_are_written(tmp_path: Path) -> None:
    found = curve(point(100, PAYS, *AHEAD), point(300, LEVEL, *AHEAD))
    files = found.write(tmp_path, pytest.fail)
    assert [file.name for file in files] == ["learning_curve.png", "learning_curve_users.png", "learning_curve.json"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[:2])
    record = json.loads(files[2].read_text())
    assert record["sentence"] == found.sentence()
    assert [one["pays"] for one in record["points"]] == [True, False]
    assert record["points"][0]["validation"]["scratch"] == {"0": 0.0, "1": 0.1, "2": 0.2}
    assert found.write(tmp_path, pytest.fail) == files


def test_without_matplotlib_the_record_is_written_and_a_warning_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmmrec.report.learning_curve.find_spec", lambda _: None)
    warnings: list[str] = []
    files = curve(point(100, PAYS, *AHEAD)).write(tmp_path, warnings.append)
    assert [file.name for file in files] == ["learning_curve.json"]
    assert "not drawn" in warnings[0]


def test_the_picture_by_users_is_the_same_every_time() -> None:
    systems = {"transfer": [Interval(0.2, 0.1, 0.3), Interval(0.3, 0.2, 0.4)], "scratch": [Interval(0.1, 0.0, 0.2)] * 2}
    assert draw_by_users(systems, [100, 1000], METRIC) == draw_by_users(systems, [100, 1000], METRIC)
