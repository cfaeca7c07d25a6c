"""Show how much of a step of `pretrain/small` is products of matrices, by torch's profiler, and what the rest is.

Takes the folder of the data and the number of steps; where the data is missing, says so and exits with 0. One thread.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from against_naive import imported
from torch.profiler import ProfilerActivity, profile

from pmmrec.bench.measure import measure
from pmmrec.bench.prepared import BenchPlan, prepared

HOME = Path("runs/benchmarks").resolve()
SOURCES = ("hm_ladies_source", "ml_latest_small")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "flash_attention")


def main(data: Path, steps: int) -> None:
    if not data.is_dir():
        print(f"skipped: no real data in {data}")
        return
    torch.set_num_threads(1)
    domains = ",".join(str(imported(name, data, HOME)) for name in SOURCES)
    overrides = [f"data.sources=[{domains}]", f"cache={HOME / 'cache'}"]
    profiler = profile(activities=[ProfilerActivity.CPU])
    done = 0

    def after_step(*_: object) -> None:
        nonlocal done
        if done == 0:
            profiler.start()
        if done == steps:
            profiler.stop()
        done += 1

    plan = BenchPlan("pretrain/small", overrides, device="cpu")
    with prepared(plan) as training:
        step_ms = 1e3 * measure(training, steps).seconds
    with prepared(plan) as training:
        measure(training, steps + 1, after_step)
    spent_ms = {event.key: event.self_cpu_time_total / steps / 1e3 for event in profiler.key_averages()}
    product_ms = sum(ms for name, ms in spent_ms.items() if is_product(name))
    print(f"{step_ms:.0f} ms a step, of which products of matrices take {product_ms:.0f}: {product_ms / step_ms:.1%}")
    print(f"watched by the profiler, which slows small operations, {sum(spent_ms.values()):.0f} ms, of which in ms:")
    for name, ms in sorted(spent_ms.items(), key=lambda pair: -pair[1])[:40]:
        print(f"{ms:6.1f} {'product' if is_product(name) else '       '} {name}")


def is_product(operation: str) -> bool:
    """Whether torch calls it one of matrices: a linear layer, attention in one kernel, a convolution."""
    return operation.startswith("aten::") and any(operation.endswith(name) or name in operation for name in PRODUCTS)


if __name__ == "__main__":
    folder, count, *_ = [*sys.argv[1:], *("../shared/data", "8")[len(sys.argv) - 1 :]]
    main(Path(folder).resolve(), int(count))
