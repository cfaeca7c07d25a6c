"""Measure what training and encoding at base size reach on one GPU, with fresh weights on a made-up platform.

Takes a folder, and writes there gpu.json and gpu.md. `--tiny` takes small sizes, to try the program on a CPU. It is
started by launch/bench_gpu.sh.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from made_up import made_up

from pmmrec.bench.clock import StageClock
from pmmrec.bench.measure import measure
from pmmrec.bench.peaks import DTYPES, measure_peaks
from pmmrec.bench.prepared import BenchPlan, PreparedRun, prepared
from pmmrec.bench.tables import record
from pmmrec.bench.work import WorkMeter
from pmmrec.evaluation.catalogue import ITEMS_AT_ONCE, encode_catalogue

RECIPE = Path(__file__).with_name("base.yaml")
TOP_2 = [f"model.item_encoder.{name}.trainable_blocks=2" for name in ("text", "vision")]
TINY = [
    *("model.width=24", "train.batch_users=8", "machine.precision=fp32", "machine.device=cpu", "machine.threads=1"),
    *(
        f"model.item_encoder.{name}.architecture.{size}"
        for name in ("text", "vision")
        for size in ("hidden_size=24", "num_hidden_layers=3", "intermediate_size=48")
    ),
    *("model.item_encoder.vision.architecture.image_size=32", "data.workers=0"),
]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    items: int
    users: int
    steps: int
    overrides: Sequence[str]


FULL, SMALL = Sizes(3000, 3000, 20, ()), Sizes(60, 80, 2, TINY)


def main(out: Path, sizes: Sizes) -> None:
    began_s = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    home = out / "work"
    domain = made_up(home / "domains", "made_up", items=sizes.items, users=sizes.users)
    shared = [*sizes.overrides, f"data.sources=[{domain}]", f"cache={home / 'cache'}"]
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        with prepared(BenchPlan(str(RECIPE), shared)) as training:
            found["encode"] = encoded(training)
            keep(out, found)
            found["full"] = record(measure(training, sizes.steps))
        keep(out, found)
        more = [*TOP_2, *([] if sizes.overrides else ["train.batch_users=128"])]
        with prepared(BenchPlan(str(RECIPE), [*shared, *more])) as training:
            found["top_2"] = record(measure(training, sizes.steps))
    found["seconds"] = time.monotonic() - began_s
    keep(out, found)
    print((out / "gpu.md").read_text(encoding="utf-8"))


def encoded(training: PreparedRun) -> dict[str, Any]:
    """Encode the whole catalogue twice; the second time counts."""
    device, precision = training.run.processes.device, training.recipe.machine.precision
    peaks, recommender = measure_peaks(device, precision), training.task.recommender.to(device)
    meter, flops = WorkMeter(training.task), 0.0
    for items in training.reader.catalogue(0, ITEMS_AT_ONCE):
        works = meter.items(training.reader.to_device(items, device))
        flops += sum(work.forward for work in works.values())
    num_items, clock = training.sources.domains[0].num_items, StageClock(device)
    for _ in range(2):
        clock.begin()
        encode_catalogue(
            *(recommender, training.reader, 0, num_items),
            chunk=ITEMS_AT_ONCE,
            device=device,
            precision=DTYPES[precision],
        )
        stages, wall_s = clock.end()
    seconds = sum(stages.values())
    share = flops / seconds / peaks.flops_per_s
    return {"seconds": seconds, "wall_s": wall_s, "flops": flops, "items": num_items, "utilisation": share}


def keep(out: Path, found: dict[str, Any]) -> None:
    """Write what was found so far."""
    (out / "gpu.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    rows = []
    if "full" in found:
        cost = found["full"]
        rows.append(("full fine-tuning, useful MFU", cost["utilisation"], 0.45, step_of(cost)))
    if "top_2" in found:
        cost = found["top_2"]
        floor_s = sum(stage["floor_s"] for stage in cost["stages"])
        rows.append(
            ("top 2 blocks through kept states, of its roofline", floor_s / cost["step_s"], 0.45, step_of(cost))
        )
    encode = found["encode"]
    told = f"{encode['items'] / encode['seconds']:,.0f} items/s"
    rows.append(("encoding a catalogue, of a plain product", encode["utilisation"], 0.60, told))
    lines = ["| what | share | target | measured |", "|:--|--:|--:|:--|"]
    lines += [f"| {name} | {100 * share:.1f} % | {100 * least:.0f} % | {told} |" for name, share, least, told in rows]
    for name in ("full", "top_2"):
        if name in found:
            lines += ["", f"{name}, by stage:", "", "| stage | ms | share, % | floor, ms |", "|:--|--:|--:|--:|"]
            lines += [
                f"| {stage['name']} | {1000 * stage['seconds']:.2f} | {100 * stage['share']:.1f} | "
                f"{1000 * stage['floor_s']:.2f} |"
                for stage in found[name]["stages"]
            ]
    (out / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def step_of(cost: dict[str, Any]) -> str:
    """A step in words."""
    peak, memory = f"{cost['peak_flops_per_s'] / 1e12:,.2f} TFLOP/s", f"{cost['peak_memory_bytes'] / 1e9:.1f} GB"
    return (
        f"{1000 * cost['step_s']:.0f} ms a step, {cost['users_per_s']:,.0f} users/s, {memory}, {cost['precision']} on "
        f"{cost['device']} ({peak} in a plain product), {cost['host_syncs']} host syncs"
    )


if __name__ == "__main__":
    tiny = "--tiny" in sys.argv
    folder = next((argument for argument in sys.argv[1:] if argument != "--tiny"), "runs/bench_gpu")
    if not tiny and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU here; --tiny tries the program on a CPU")
    main(Path(folder).resolve(), SMALL if tiny else FULL)
