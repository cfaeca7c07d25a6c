"""Measure a training step against its naive twin on real domains: time, useful work, loss and peak memory.

Takes the folder of the data, the number of steps, and names of cases (all of them if none is given); where the data is
missing, says so and exits with 0. All output lies below runs/benchmarks: what was measured is kept there as JSON.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HOME = Path("runs/benchmarks").resolve()
RECIPE = Path(__file__).with_name("released.yaml")
TOP_2 = ("model.item_encoder.text.trainable_blocks=2", "model.item_encoder.vision.trainable_blocks=2")
TEXT_ALONE = ("model.item_encoder.vision=null", "model.item_encoder.fusion=null")
DOMAINS = {"fashion": "hm_ladies_source", "instruments": "amazon_instruments_text"}
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "fashion, full": ("fashion", ()),
    "fashion, top 2 kept": ("fashion", TOP_2),
    "instruments, full": ("instruments", TEXT_ALONE),
    "instruments, top 2 kept": ("instruments", (TOP_2[0], *TEXT_ALONE)),
}

TARGETS = {"fashion, full": 13, "fashion, top 2 kept": 18, "instruments, full": 20, "instruments, top 2 kept": 23}
COLUMNS = (
    "domain",
    "times faster",
    "times fewer useful FLOPs",
    "faster / fewer (>= 1.3)",
    "memory (<= 0.15)",
    "its loss",
    "loss here",
)


def main(data: Path, steps: int, titles: list[str]) -> None:
    if not data.is_dir():
        print(f"skipped: no real data in {data}")
        return
    print(f"| {' | '.join(COLUMNS)} |\n| :-- |{' --: |' * (len(COLUMNS) - 1)}", flush=True)
    for title in titles or CASES:
        print(f"| {' | '.join(row(title, against_naive(title, data, HOME, steps)))} |", flush=True)


def row(title: str, cost: Mapping[str, Any]) -> tuple[str, ...]:
    """One case as cells of `COLUMNS`."""
    naive = cost["naive"]
    target = f" (>= {TARGETS[title]})" if title in TARGETS else ""
    return (
        title,
        f"{naive['times_faster']:.1f}{target}",
        f"{naive['times_fewer_useful_flops']:.1f}",
        f"{naive['times_faster_over_flops']:.2f}",
        f"{naive['memory_ratio']:.3f}",
        f"{naive['loss']:.4f}",
        f"{naive['loss_here']:.4f}",
    )


def against_naive(title: str, data: Path, home: Path, steps: int, *, keeps: bool = False) -> dict[str, Any]:
    """What `pmmrec bench --against naive` finds in one of the cases; `keeps`: what it found before, if it did."""
    kept = home / f"against naive, {title}.json"
    if keeps and kept.exists():
        before: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return before
    kind, overrides = CASES[title]
    cost = compared(str(RECIPE), imported(DOMAINS[kind], data, home), overrides, home, steps)
    kept.write_text(json.dumps(cost, indent=1), encoding="utf-8")
    return cost


def compared(recipe: str, domain: Path, overrides: Sequence[str], home: Path, steps: int) -> dict[str, Any]:
    """The same for a recipe on a domain."""
    asked = ["pmmrec", "bench", recipe, f"data.sources=[{domain}]", f"cache={home / 'cache'}", *overrides]
    options = ["--against", "naive", "--steps", str(steps), "--json", "-"]
    told = subprocess.run([*asked, *options], check=True, stdout=subprocess.PIPE).stdout
    cost: dict[str, Any] = json.loads(told)
    return cost


def imported(name: str, data: Path, home: Path) -> Path:
    """The domain, imported at the first time."""
    domain = home / "domains" / name
    if not (domain / "domain.json").exists():
        shutil.rmtree(domain, ignore_errors=True)
        domain.parent.mkdir(parents=True, exist_ok=True)
        tables = [f"--{table}={data / name / table}.parquet" for table in ("items", "interactions")]
        images = [f"--images={data / 'hm_images'}"] if name.startswith("hm_") else []
        told = [*images, f"--name={name}", f"--out={domain}", "--k-core=none"]
        subprocess.run(["pmmrec", "data", "import", "table", *tables, *told], check=True, stdout=subprocess.DEVNULL)
    return domain


if __name__ == "__main__":
    folder, steps, *chosen = [*sys.argv[1:], *("../shared/data", "4")[len(sys.argv) - 1 :]]
    main(Path(folder).resolve(), int(steps), chosen)
