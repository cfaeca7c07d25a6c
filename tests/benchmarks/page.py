"""Write tests/benchmarks/BENCHMARKS.md: what steps cost, how that grows, and what a naive model takes.

Takes the folder of real data, whose rows are left out with a line where it is missing; `--keep` takes rows of real data
that were measured before as they lie in runs/benchmarks, where all other output goes too. One thread, so that figures
are CPU time, which other programs hardly change.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from against_naive import CASES, COLUMNS, against_naive, compared, row
from growth import RECIPE, STEPS, Point, draw, grow
from made_up import made_up

from pmmrec import __version__

HERE = Path(__file__).parent
HOME = Path("runs/benchmarks").resolve()
NAIVE_STEPS = 2
INTRODUCTION = """\
# What a training step costs

Written by `make bench`; [docs/bench.md](../../docs/bench.md) says what the figures mean and how they are measured."""


def main(data: Path, *, keeps: bool) -> None:
    torch.set_num_threads(1)
    began_s = time.monotonic()
    sweeps = grow(HOME)
    draw(HERE / "growth.svg", sweeps)
    usual = next(point for point in sweeps["users of a step"] if point.value == 32).cost
    parts = [INTRODUCTION, machine(), stages(usual), growth(sweeps), naive(data, keeps=keeps)]
    parts.append(f"All of it took {(time.monotonic() - began_s) / 60:.1f} minutes.")
    (HERE / "BENCHMARKS.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def machine() -> str:
    """What was measured, and on what."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    versions = f"pmmrec {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    where = f"one thread of {cpu} ({os.cpu_count()} cores, load {os.getloadavg()[0]:.0f})"
    return f"{time.strftime('%Y-%m-%d')}, {where}, {versions}."


def stages(cost: Mapping[str, Any]) -> str:
    """The stages of one step."""
    rows = [
        (
            stage["name"],
            f"{1000 * stage['seconds']:.2f}",
            f"{100 * stage['share']:.1f}",
            f"{stage['flops'] / 1e9:.3f}",
            f"{1000 * stage['floor_s']:.2f}" if stage["floor_s"] else "",
            f"{stage['ratio_to_floor']:.1f}" if stage["ratio_to_floor"] else "",
        )
        for stage in cost["stages"]
    ]
    shares = ", ".join(
        f"{words} {cost[key]['share']:.2f}"
        for key, words in (("tokens", "text tokens"), ("positions", "positions of users"))
    )
    step, memory = f"{1000 * cost['step_s']:.1f} ms a step", f"{cost['peak_memory_bytes'] / 1e6:,.0f} MB"
    peak = f"{cost['peak_flops_per_s'] / 1e9:,.0f} GFLOP/s of a plain product"
    text = (
        f"{step}, {cost['users_per_s']:,.0f} users/s; {100 * cost['utilisation']:.1f} % of the {peak}; peak memory "
        f"{memory}; useful of what is computed: {shares}; host syncs: {cost['host_syncs']}."
    )
    heading = (
        f"## Where the time of a step goes\n\n`{RECIPE}`, 32 users of a made-up platform, mean of {STEPS} steps: {text}"
    )
    return f"{heading}\n\n" + table(("stage", "ms", "share, %", "useful GFLOP", "floor, ms", "times floor"), rows)


def growth(sweeps: Mapping[str, Sequence[Point]]) -> str:
    """How a step grows with each quantity, the others as usual."""
    rows = [
        (
            quantity if place == 0 else "",
            f"{point.value:,}",
            f"{point.ms:.1f}",
            f"{point.floor_ms:.1f}",
            f"{point.ms / point.floor_ms:.1f}",
            f"{point.cost['useful_flops'] / 1e9:.2f}",
            f"{point.cost['peak_memory_bytes'] / 1e6:,.0f}",
        )
        for quantity, points in sweeps.items()
        for place, point in enumerate(points)
    ]
    columns = ("what grows", "to", "ms a step", "floor, ms", "times floor", "useful GFLOP", "peak memory, MB")
    text = (
        f"`{RECIPE}` with 32 users a step, windows of 21 positions and one made-up platform of 500 items, unless "
        "another number stands in the row. A step holds the distinct items of its windows, so it hardly grows with the "
        "catalogue once that is much larger than a batch; sources only change which items meet in a batch."
    )
    return f"## How it grows\n\n{text}\n\n![Time of a step and its floor](growth.svg)\n\n{table(columns, rows)}"


def naive(data: Path, *, keeps: bool) -> str:
    """Steps against the naive twin: of the small recipe on a made-up platform, of the released model on real data."""
    text = (
        "Each step alternates with one of a plain model of the same weights that encodes every slot, padded. The first "
        f"row is `{RECIPE}` on a made-up platform; the others are the model of the released code on real data, 4 "
        "layers of width 128, 64 users with windows of 21 positions ([released.yaml](released.yaml)). `top 2 kept`: "
        "the top two blocks are trained and the states of those below are kept."
    )
    shop = made_up(HOME / "domains", "shop500a", items=500)
    found = {"made up": compared(RECIPE, shop, ("machine.threads=1",), HOME, NAIVE_STEPS)}
    if data.is_dir():
        found |= {title: against_naive(title, data, HOME, NAIVE_STEPS, keeps=keeps) for title in CASES}
    rows = [row(title, cost) for title, cost in found.items()]
    told = ""
    if keeps:
        told = """

Rows of real data were measured apart from the rest, in the same way.
[docs/bench.md](../../docs/bench.md#targets) says when, and on how busy a machine."""
    told = told if data.is_dir() else f"\n\nRows of real data are left out: there is none in `{data.name}`."
    return f"## Against a naive model\n\n{text}\n\n{table(COLUMNS, rows)}{told}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; numbers stand on the right."""
    lines = [columns, [":--", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if argument != "--keep"]
    main(Path((folders or ["../shared/data"])[0]).resolve(), keeps="--keep" in sys.argv)
