"""The cost of a step as tables for people and as a record for programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from pmmrec.bench.against import NaiveCost
from pmmrec.bench.measure import StepCost
from pmmrec.tables import PlainTable, Sentence

CLOCKS = {
    "gpu": "time of the GPU",
    "cpu": "CPU time of one thread",
    "wall": "wall time",
}


def record(cost: StepCost) -> dict[str, Any]:
    """All figures; seconds, bytes and FLOPs are those of one step."""
    stages = [
        {
            **dataclasses.asdict(stage),
            "share": stage.seconds / cost.seconds,
            "ratio_to_floor": _ratio(stage.seconds, stage.floor_s),
        }
        for stage in cost.stages
    ]
    return {
        "device": cost.device,
        "precision": cost.precision,
        "threads": cost.threads,
        "clock": cost.clock,
        "steps": cost.steps,
        "step_s": cost.seconds,
        "wall_step_s": cost.wall_s,
        "users_per_s": cost.mean(lambda work: work.users) / cost.wall_s,
        "items_per_s": cost.mean(lambda work: work.items) / cost.wall_s,
        "useful_flops": cost.useful_flops,
        "useful_bytes": sum(stage.num_bytes for stage in cost.stages),
        "utilisation": cost.utilisation,
        "peak_flops_per_s": cost.peaks.flops_per_s,
        "bytes_per_s": cost.peaks.bytes_per_s,
        "upload_bytes_per_s": cost.peaks.upload_per_s,
        "peak_memory_bytes": cost.peak_memory_bytes,
        "tokens": _pair(cost.first_work.tokens, cost.computed.tokens),
        "positions": _pair(cost.first_work.positions, cost.computed.positions),
        "flops": _pair(cost.first_work.total.flops, cost.computed.flops),
        "host_syncs": cost.computed.host_syncs,
        "without_formula": list(cost.first_work.unknown),
        "stages": stages,
    }


def naive_record(cost: StepCost, naive: NaiveCost) -> dict[str, Any]:
    """The comparison with the naive twin."""
    memory, flops = naive.peak_memory_bytes, naive.flops / cost.useful_flops
    return {
        "step_s": naive.seconds,
        "flops": naive.flops,
        "loss": naive.loss,
        "loss_here": naive.loss_here,
        "times_faster": naive.seconds / cost.seconds,
        "times_fewer_useful_flops": flops,
        "times_faster_over_flops": naive.seconds / cost.seconds / flops,
        "peak_memory_bytes": {"naive": memory["naive"], "here": memory["this"]},
        "memory_ratio": memory["this"] / memory["naive"],
    }


def naive_lines(cost: StepCost, naive: NaiveCost) -> list[Sentence]:
    """What `--against naive` prints below the tables."""
    found, memory = naive_record(cost, naive), naive.peak_memory_bytes
    lines = [
        f"against the naive twin: {found['times_faster']:.2f} times faster ({1000 * naive.seconds:,.0f} ms there, "
        f"{1000 * cost.seconds:,.0f} ms here); useful work alone would make it {found['times_fewer_useful_flops']:.2f}",
        f"loss of the first batch with the same weights: {naive.loss:.6f} there, {naive.loss_here:.6f} here",
        f"peak memory: {found['memory_ratio']:.3f} of the twin's ({memory['naive'] / 1e6:,.0f} MB there, "
        f"{memory['this'] / 1e6:,.0f} MB here), each in a process of its own",
    ]
    return [Sentence(line, indent=2) for line in lines]


def tables(title: str, cost: StepCost) -> list[PlainTable | Sentence]:
    """What `pmmrec bench` prints."""
    rows = [
        [
            stage.name,
            round(1000 * stage.seconds, 3),
            round(100 * stage.seconds / cost.seconds, 1),
            round(stage.flops / 1e9, 3),
            round(stage.num_bytes / 1e6, 2),
            round(1000 * stage.floor_s, 3) if stage.floor_s else None,
            _ratio(stage.seconds, stage.floor_s),
        ]
        for stage in cost.stages
    ]
    floor_s = sum(stage.floor_s for stage in cost.stages)
    total = [1000 * cost.seconds, 100.0, cost.useful_flops / 1e9, sum(one.num_bytes for one in cost.stages) / 1e6]
    rows.append(["a step", *total, 1000 * floor_s, _ratio(cost.seconds, floor_s)])
    columns = ["stage", "ms", "share, %", "useful GFLOP", "useful MB", "floor, ms", "times floor"]
    head = f"{title}: mean of {cost.steps} steps on {cost.device}, {cost.precision}, {CLOCKS[cost.clock]}"
    return [PlainTable(head, columns, rows), *(Sentence(line, indent=2) for line in _lines(cost))]


def _lines(cost: StepCost) -> list[str]:
    found, peaks = record(cost), cost.peaks
    product, copy = f"{peaks.flops_per_s / 1e9:,.1f} GFLOP/s", f"{peaks.bytes_per_s / 1e9:,.1f} GB/s"
    whose = "of tensors on the GPU" if cost.clock == "gpu" else "by which the process grew in training"
    lines = [
        f"{found['users_per_s']:,.0f} users/s and {found['items_per_s']:,.0f} items/s by wall time",
        f"utilisation {100 * cost.utilisation:.1f} %: useful FLOPs over those of a plain product in the same time",
        f"measured here: {product} in a plain product, {copy} in a copy",
        f"peak memory: {cost.peak_memory_bytes / 1e6:,.0f} MB {whose}",
    ]
    names = {"tokens": "text tokens", "positions": "positions of users", "flops": "FLOPs"}
    for key, name in names.items():
        pair = found[key]
        if pair["share"]:
            lines.append(
                f"{name}: {pair['valid']:,.0f} useful of {pair['computed']:,.0f} computed ({pair['share']:.2f})"
            )
    lines.append(f"host syncs a step: {cost.computed.host_syncs}")
    lines += [f"objectives.{name}: has no formula, so its products are left out" for name in found["without_formula"]]
    return lines


def _pair(valid: float, computed: float) -> dict[str, float | None]:
    return {"valid": valid, "computed": computed, "share": valid / computed if computed else None}


def _ratio(seconds: float, floor_s: float) -> float | None:
    return seconds / floor_s if floor_s else None
