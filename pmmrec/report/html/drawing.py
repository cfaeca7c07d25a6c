"""Draw learning curves and maps. Pictures are deterministic and readable without colours."""
# N points.

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pmmrec.evaluation.significance import Interval
from pmmrec.report.epochs import Epoch, best_epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, safe for any colour vision; lines and markers differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 2)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 150
STYLE: dict[Any, Any] = {"font.family": "sans-serif", "font.size": 9, "text.parse_math": False}
LETTERS_SHOWN = 40


def draw_curves(systems: Mapping[str, Sequence[Sequence[Epoch]]], metric: str) -> bytes:
    """PNG of a validation metric by epoch: a line style per system, a line per seed (PMMRec, figure 3).

    A marker shows the epoch whose weights were kept.
    """
    from matplotlib.ticker import MaxNLocator

    with _figure((7.0, 3.6)) as (axes, out):
        for place, (name, seeds) in enumerate(systems.items()):
            color, mark = COLORS[place % len(COLORS)], MARKS[place % len(MARKS)]
            for seed_place, epochs in enumerate(seeds):
                x, y = [e.epoch for e in epochs], [100 * e.metrics[metric] for e in epochs]
                best = best_epoch(list(epochs), metric)
                axes.plot(
                    x,
                    y,
                    linestyle=DASHES[place % len(DASHES)],
                    color=color,
                    linewidth=1.4,
                    marker=mark,
                    markersize=6,
                    markevery=[x.index(best.epoch)],
                    label=short_name(name) if seed_place == 0 else None,
                )
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation {metric.upper()}, %")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        _legend(axes)
    return out.getvalue()


def draw_by_users(systems: Mapping[str, Sequence[Interval]], num_users: Sequence[int], metric: str) -> bytes:
    """PNG of a test metric by the number of users who train, with its intervals; a line for each system."""
    from matplotlib.ticker import NullLocator

    with _figure((7.0, 3.6)) as (axes, out):
        for place, (name, intervals) in enumerate(systems.items()):
            mean, low, high = (
                100 * np.array([getattr(at, end) for at in intervals]) for end in ("mean", "low", "high")
            )
            axes.errorbar(
                num_users,
                mean,
                yerr=(mean - low, high - mean),
                capsize=3,
                linestyle=DASHES[place % len(DASHES)],
                color=COLORS[place % len(COLORS)],
                marker=MARKS[place % len(MARKS)],
                linewidth=1.4,
                label=short_name(name),
            )
        axes.set_xscale("log")
        axes.set_xticks(num_users, [f"{number:,}" for number in num_users])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("users who train")
        axes.set_ylabel(f"test {metric.upper()}, %")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        _legend(axes)
    return out.getvalue()


def draw_map(point_N2: NDArray[np.float64], groups: Sequence[str]) -> bytes:
    """PNG of points in the plane; each group has its own colour and marker, in order of first occurrence."""
    with _figure((7.0, 4.6)) as (axes, out):
        for place, group in enumerate(dict.fromkeys(groups)):
            is_in_N = np.array([one == group for one in groups])
            x, y = point_N2[is_in_N].T
            color, mark = COLORS[place % len(COLORS)], MARKS[place % len(MARKS)]
            axes.scatter(
                x,
                y,
                s=14,
                c=color,
                marker=mark,
                alpha=0.75,
                linewidths=0,
                label=f"{short_name(group)} ({is_in_N.sum()})",
            )
        axes.set_xticks([])  # only distances between points have a meaning
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        _legend(axes)
    return out.getvalue()


@contextmanager
def _figure(size_in: tuple[float, float]) -> Iterator[tuple[Axes, io.BytesIO]]:
    """Axes to draw on, and a buffer that holds the PNG after the block."""
    with new_figure(size_in) as (figure, out):
        yield figure.add_subplot(), out


@contextmanager
def new_figure(size_in: tuple[float, float]) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure to draw on, and a buffer that holds the PNG after the block."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()  # a style of the user would change the picture
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=size_in, layout="constrained")
        yield figure, out
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def short_name(text: str) -> str:
    """A name that is short enough for a legend."""
    return text if len(text) <= LETTERS_SHOWN else text[: LETTERS_SHOWN - 1] + "…"
