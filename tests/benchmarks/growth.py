"""How the cost of a training step grows with users, window, catalogue and sources, on made-up platforms."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from made_up import made_up

from pmmrec.bench.measure import measure
from pmmrec.bench.prepared import BenchPlan, prepared
from pmmrec.bench.tables import record

RECIPE = "pretrain/tiny"
STEPS = 6
USERS, WINDOW, ITEMS = 32, 21, 500  # of a step, of a user, of a platform, where another quantity grows
SWEEPS: Mapping[str, Sequence[int]] = {
    "users of a step": (8, 16, 32, 64, 128),
    "positions of a window": (5, 11, 21, 41),
    "items of the catalogue": (125, 500, 2000, 8000),
    "sources": (1, 2, 4),
}


@dataclass(frozen=True)
class Point:
    """One measured configuration."""

    value: int
    cost: Mapping[str, Any]  # the record of `pmmrec bench`

    @property
    def ms(self) -> float:
        return float(1000 * self.cost["step_s"])

    @property
    def floor_ms(self) -> float:
        return float(1000 * sum(stage["floor_s"] for stage in self.cost["stages"]))


def grow(home: Path) -> dict[str, list[Point]]:
    """Measure every configuration of `SWEEPS`."""
    return {quantity: [_point(home, quantity, value) for value in values] for quantity, values in SWEEPS.items()}


def _point(home: Path, quantity: str, value: int) -> Point:
    sizes = {"users of a step": USERS, "positions of a window": WINDOW, "items of the catalogue": ITEMS, "sources": 1}
    sizes[quantity] = value
    folder, items = home / "domains", sizes["items of the catalogue"]
    names = [f"shop{items}{letter}" for letter in "abcd"[: sizes["sources"]]]
    sources = ", ".join(str(made_up(folder, name, items=items)) for name in names)
    window = sizes["positions of a window"]
    overrides = [
        f"data.sources=[{sources}]",
        f"data.window.size={window}",
        f"model.user_encoder.max_inputs={window - 1}",
        f"train.batch_users={sizes['users of a step']}",
        f"cache={home / 'cache'}",
        "machine.threads=1",
    ]
    with contextlib.redirect_stdout(sys.stderr), prepared(BenchPlan(RECIPE, overrides)) as training:
        return Point(value, record(measure(training, STEPS)))


def draw(path: Path, sweeps: Mapping[str, Sequence[Point]]) -> None:
    """Write an SVG: for each quantity the time of a step and its floor, both axes in powers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    with mpl.rc_context():
        mpl.rcdefaults()  # a style of the user would change the picture
        mpl.rcParams.update({"svg.hashsalt": "pmmrec", "svg.fonttype": "none", "font.size": 9})
        figure = Figure(figsize=(9.0, 2.8), layout="constrained")
        panels = figure.subplots(1, len(sweeps), sharey=True)
        for axes, (quantity, points) in zip(panels, sweeps.items(), strict=True):
            values = [point.value for point in points]
            axes.plot(values, [point.ms for point in points], "o-", color="#0072B2", label="a step")
            axes.plot(values, [point.floor_ms for point in points], "s--", color="#D55E00", label="its floor")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel(quantity)
            axes.xaxis.set_major_locator(FixedLocator(values))
            axes.xaxis.set_minor_locator(NullLocator())
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(ScalarFormatter())
            axes.grid(visible=True, which="both", color="#dddddd", linewidth=0.6)
        panels[0].set_ylabel("CPU time, ms")
        panels[0].legend(frameon=False, fontsize=8, loc="upper left")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "pmmrec"})
