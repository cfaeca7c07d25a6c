"""Draw domains: how popular items are, how long histories are, and when interactions happened."""
# N items of a domain, M users, H interactions.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pmmrec.atomic import whole_file
from pmmrec.data.dates import PER_SECOND, unit_of_times
from pmmrec.data.domain import Domain
from pmmrec.errors import RecipeError, not_installed
from pmmrec.homes import expanded
from pmmrec.report.html.drawing import COLORS, DASHES, new_figure, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

NUM_BINS = 60  # of time


@dataclass(frozen=True)
class _Shown:
    """What is drawn of a domain."""

    name: str
    counts: NDArray[np.int64]  # interactions of each item that has some, falling
    lengths: NDArray[np.int64]  # of the users, rising
    edges: NDArray[np.float64] | None  # of bins of time, in seconds since 1970; None: it has no dates
    by_time: NDArray[np.int64]  # interactions in each bin


def plot_domains(folders: Sequence[Path], path: Path) -> None:
    """Write a PNG with three panels, a line for each domain.

    Raises RecipeError for a file that is not called .png, DataError for a folder that is no domain, MachineError where
    matplotlib is not installed or the file cannot be written.
    """
    path = expanded(path)
    if path.suffix.lower() != ".png":
        raise RecipeError(f"--plot {path}: pictures are written as PNG; end its name in .png")
    try:
        import matplotlib  # noqa: F401  the message says what to install
    except ImportError as error:
        raise not_installed("--plot", ["matplotlib"], "report") from error
    picture = draw_domains([Domain.open(folder) for folder in folders])
    with whole_file(path) as draft:
        draft.write_bytes(picture)


def draw_domains(domains: Sequence[Domain]) -> bytes:
    """The PNG of `plot_domains`."""
    found = [_shown(domain) for domain in domains]
    styles: list[dict[str, Any]] = [
        {"color": COLORS[place % len(COLORS)], "linestyle": DASHES[place % len(DASHES)], "linewidth": 1.4}
        for place in range(len(found))
    ]
    dated = [(one, style) for one, style in zip(found, styles, strict=True) if one.edges is not None]
    with new_figure((11.0, max(3.4, 1.1 * len(dated)))) as (figure, out):
        columns = figure.add_gridspec(1, 3)
        popularity, length = figure.add_subplot(columns[0]), figure.add_subplot(columns[1])
        for one, style in zip(found, styles, strict=True):
            popularity.plot(np.arange(1, len(one.counts) + 1), one.counts, label=short_name(one.name), **style)
            at, first = np.unique(one.lengths, return_index=True)
            length.plot(at, 100 * (1 - first / len(one.lengths)), **style)
        _label(popularity, "Popularity", "item, by rank", "interactions")
        popularity.set_xscale("log")
        popularity.set_yscale("log")
        _plain_numbers(popularity.xaxis, popularity.yaxis)
        _label(length, "Length of histories", "interactions of a user", "users with as many or more, %")
        length.set_xscale("log")
        _plain_numbers(length.xaxis)
        length.set_ylim(bottom=0)
        rows = columns[2].subgridspec(max(1, len(dated)), 1)
        times = [figure.add_subplot(rows[place]) for place in range(max(1, len(dated)))]
        times[0].set_title(f"Interactions in each {NUM_BINS}th of the time", fontsize=9)
        for axes, (one, style) in zip(times, dated, strict=False):
            _draw_times(axes, one, style)
        if not dated:
            times[0].text(0.5, 0.5, "no dates", ha="center", va="center", transform=times[0].transAxes)
            times[0].set_axis_off()
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    return out.getvalue()


def _shown(domain: Domain) -> _Shown:
    counts = np.sort(domain.item_counts)[::-1]
    lengths = np.concatenate([lengths for _, lengths in domain.sequences.all_lengths()])
    edges, by_time = _by_time(domain)
    return _Shown(domain.name, counts[counts > 0], np.sort(lengths), edges, by_time)


def _by_time(domain: Domain) -> tuple[NDArray[np.float64] | None, NDArray[np.int64]]:
    """Bins of time, and the interactions in each."""
    by_time = np.zeros(NUM_BINS, dtype=np.int64)
    unit = unit_of_times(domain)
    if unit not in PER_SECOND:
        return None, by_time
    found = [one.time_H for one in domain.sequences.stretches(with_times=True) if one.time_H is not None]
    first, last = min(time_H.min() for time_H in found), max(time_H.max() for time_H in found)
    edges = np.linspace(first, max(last, first + 1), NUM_BINS + 1)
    for time_H in found:
        by_time += np.histogram(time_H, edges)[0]
    return edges / PER_SECOND[unit], by_time


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)


def _plain_numbers(*axes: Axis) -> None:
    """Label logarithmic axes at powers of ten alone, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for one in axes:
        one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        one.set_minor_formatter(NullFormatter())


def _draw_times(axes: Axes, one: _Shown, style: Mapping[str, Any]) -> None:
    """The interactions of a domain by date, on an axis of its own: spans of domains may differ by decades."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if one.edges is not None:
        middle = (one.edges[:-1] + one.edges[1:]) / 2
        axes.plot((1000 * middle).astype("datetime64[ms]"), one.by_time, **style)
    locator = AutoDateLocator(maxticks=6)  # type: ignore[no-untyped-call]  # of matplotlib
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]  # of matplotlib
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
