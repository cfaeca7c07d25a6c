"""Draw metrics by epoch, or by the size of the target, as deterministic SVG files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pmmrec.atomic import whole_file
from pmmrec.errors import not_installed
from pmmrec.evaluation.significance import Interval
from tests.real.evidence.cells import Training

SIZE_IN = (7.0, 3.2)  # inches, width and height
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "pmmrec",  # makes ids in the file deterministic
    "svg.fonttype": "none",  # keep text as text: smaller and searchable
    "font.family": "sans-serif",
    "font.size": 9,
    "path.simplify": False,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Curve:
    """The trainings of one row; each seed is a thin line."""

    label: str
    trainings: Sequence[Training]


@dataclass(frozen=True)
class SizeLine:
    """A system at several sizes of the target, the smallest first; means and ends of intervals in 0..1."""

    label: str
    points: Sequence[tuple[float, Interval]]


def draw(path: Path, curves: Sequence[Curve]) -> None:
    """Write an SVG of validation NDCG@10 by epoch; a dot marks the epoch whose weights were kept.

    MachineError if matplotlib is not installed.
    """
    with _axes(path) as axes:
        for place, curve in enumerate(curves):
            color = f"C{place % 10}"
            for seed_place, training in enumerate(curve.trainings):
                epochs = [point.epoch for point in training.validation]
                values = [100 * point.ndcg for point in training.validation]
                label = curve.label if seed_place == 0 else None
                axes.plot(epochs, values, color=color, linewidth=1, label=label)
                kept = [index for index, epoch in enumerate(epochs) if epoch == training.best_epoch]
                axes.plot(epochs, values, "o", color=color, markersize=3, markevery=kept)
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        axes.set_ylabel("validation NDCG@10, %")


def draw_by_size(path: Path, lines: Sequence[SizeLine], axis: str, metric: str) -> None:
    """Write an SVG of a metric by size, with the intervals as shades. Sizes lie on a logarithmic axis.

    MachineError if matplotlib is not installed.
    """
    with _axes(path) as axes:
        for place, line in enumerate(lines):
            color = f"C{place % 10}"
            sizes = [size for size, _ in line.points]
            axes.plot(
                sizes, [100 * one.mean for _, one in line.points], "o-", color=color, label=line.label, markersize=3
            )
            ends = ([100 * one.low for _, one in line.points], [100 * one.high for _, one in line.points])
            axes.fill_between(sizes, *ends, color=color, alpha=0.12, linewidth=0)
        ticks = sorted({size for line in lines for size, _ in line.points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,g}" if tick < 1e6 else f"{tick:.0f}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel(axis)
        axes.set_ylabel(f"{metric.upper()}, %")
        axes.set_ylim(bottom=0)


@contextmanager
def _axes(path: Path) -> Iterator[Any]:
    """The axes of a picture, which is written with its legend when they are done."""
    if find_spec("matplotlib") is None:
        raise not_installed("learning curves", ["matplotlib"], "report")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # a style of the user would change the bytes
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        yield axes
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        with whole_file(path) as draft:
            figure.savefig(draft, format="svg", metadata={"Date": None, "Creator": "pmmrec"})
