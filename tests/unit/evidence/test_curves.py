"""Learning curves are deterministic files."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl

from pmmrec.evaluation.significance import Interval
from tests.real.evidence.cells import Hardware, Point, Training
from tests.real.evidence.curves import Curve, SizeLine, draw, draw_by_size

MACHINE = Hardware(cpu="cpu", cores=2, threads=1, device="cpu", torch="2.8.0")


def training(seed: int, *ndcg: float) -> Training:
    points = tuple(Point(epoch=epoch, ndcg=value, hr=value) for epoch, value in enumerate(ndcg))
    best = max(range(len(ndcg)), key=ndcg.__getitem__)
    times = {"cpu_s": 1.0, "wall_s": 1.0, "training_s": 1.0}
    return Training(seed=seed, best_epoch=best, num_epochs=len(ndcg) - 1, hardware=MACHINE, validation=points, **times)


CURVES = [
    Curve("ids", [training(1, 0.0, 0.1, 0.2), training(2, 0.0, 0.3, 0.1)]),
    Curve("text", [training(1, 0.1, 0.2)]),
]


def test_the_same_metrics_give_the_same_bytes_under_any_matplotlib_style(tmp_path: Path) -> None:
    draw(tmp_path / "one.svg", CURVES)
    with mpl.rc_context({"font.size": 20, "axes.grid": True, "svg.hashsalt": None}):
        draw(tmp_path / "two.svg", CURVES)
        assert mpl.rcParams["font.size"] == 20
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_picture_contains_no_date(tmp_path: Path) -> None:
    draw(tmp_path / "one.svg", CURVES)
    assert "dc:date" not in (tmp_path / "one.svg").read_text(encoding="utf-8")


def test_each_system_has_one_legend_entry_for_all_its_seeds(tmp_path: Path) -> None:
    draw(tmp_path / "one.svg", CURVES)
    words = re.findall(r"<text[^>]*>(ids|text)</text>", (tmp_path / "one.svg").read_text(encoding="utf-8"))
    assert words == ["ids", "text"]


def test_other_metrics_give_another_picture(tmp_path: Path) -> None:
    draw(tmp_path / "one.svg", CURVES)
    draw(tmp_path / "two.svg", [Curve("ids", [training(1, 0.0, 0.1, 0.3)])])
    assert (tmp_path / "one.svg").read_bytes() != (tmp_path / "two.svg").read_bytes()


def test_a_training_whose_best_epoch_was_not_validated_has_no_dot(tmp_path: Path) -> None:
    odd = training(1, 0.0, 0.1).model_copy(update={"best_epoch": 7})
    draw(tmp_path / "one.svg", [Curve("ids", [odd])])
    assert (tmp_path / "one.svg").is_file()


def test_a_picture_by_size_is_deterministic_too(tmp_path: Path) -> None:
    line = SizeLine("full", [(100, Interval(0.1, 0.05, 0.2)), (4059, Interval(0.3, 0.25, 0.4))])
    for name in ("one.svg", "two.svg"):
        draw_by_size(tmp_path / name, [line], "users", "hr@10")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert ">4,059</text>" in (tmp_path / "one.svg").read_text(encoding="utf-8")
