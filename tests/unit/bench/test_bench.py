"""`pmmrec bench` measures the real training and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import SMALL, Pmmrec, sources

STAGES = [
    *("fetch", "to device", "text", "vision", "fusion", "users", "objectives", "backward", "optimiser"),
    *("rest", "log"),
]


def test_bench_tells_the_cost_of_each_stage_and_leaves_nothing_behind(pmmrec: Pmmrec, world: Path, home: Path) -> None:
    found = benched(pmmrec, "pretrain/tiny", *SMALL, *sources(world))
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert sorted(stages) == sorted(STAGES)
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1)
    assert found["step_s"] == pytest.approx(sum(stage["seconds"] for stage in stages.values()))
    for name in ("text", "vision", "users", "objectives", "backward"):
        stage, peaks = stages[name], (found["peak_flops_per_s"], found["bytes_per_s"])
        assert stage["flops"] > 0
        assert stage["floor_s"] == pytest.approx(max(stage["flops"] / peaks[0], stage["num_bytes"] / peaks[1]))
        assert stage["ratio_to_floor"] == pytest.approx(stage["seconds"] / stage["floor_s"])
    rate = found["useful_flops"] / found["step_s"]
    assert found["utilisation"] == pytest.approx(rate / found["peak_flops_per_s"])
    for key in ("tokens", "positions", "flops"):
        assert 0 < found[key]["valid"] <= found[key]["computed"]
    assert found["tokens"]["share"] >= 0.9
    assert found["positions"]["share"] >= 0.8
    assert found["host_syncs"] == 0
    assert [path.name for path in home.iterdir()] == ["c"]


def test_bench_of_kept_states_encodes_the_top_blocks_alone(pmmrec: Pmmrec, world: Path, home: Path) -> None:
    blocks = ("text.architecture.num_hidden_layers=3", "text.trainable_blocks=1")
    settings = (*SMALL, *sources(world), *(f"model.item_encoder.{setting}" for setting in blocks))
    kept, not_kept = (benched(pmmrec, "pretrain/tiny", *settings, f"prefix_cache={use}") for use in ("on", "off"))
    flops = [next(one["flops"] for one in cost["stages"] if one["name"] == "text") for cost in (kept, not_kept)]
    assert 2 * flops[0] < flops[1]
    assert kept["tokens"]["valid"] == not_kept["tokens"]["valid"]


def test_bench_of_a_fine_tuning_starts_from_its_checkpoint(pmmrec: Pmmrec, world: Path, small_run: Path) -> None:
    where = ("--from", small_run / "hub" / "small", "--on", world / "boutique", f"cache={small_run / 'c'}")
    found = benched(pmmrec, "finetune/full", "machine.device=cpu", "train.batch_users=16", *where, cache=None)
    assert found["useful_flops"] > 0


def test_bench_shows_its_figures_as_a_table(pmmrec: Pmmrec, world: Path, home: Path) -> None:
    told = pmmrec("bench", "pretrain/tiny", *SMALL, *sources(world), "cache=c", "--steps", 1, "--json", "cost.json")
    assert "times floor" in told.stdout
    assert "utilisation" in told.stdout
    assert "bench: 2 steps to warm up, 1 to measure" in told.output
    assert "bench: 2 steps" not in told.stdout
    assert json.loads(Path("cost.json").read_text(encoding="utf-8"))["steps"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("finetune/tiny",), "say the domain with --on DOMAIN"),
        (("pretrain/tiny", "--on", "shop"), "are for recipes of fine-tuning"),
        pytest.param(
            ("pretrain/tiny", "--device", "cuda"),
            "torch finds no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bench_refuses_options_that_do_not_fit(
    pmmrec: Pmmrec, home: Path, arguments: tuple[str, ...], told: str
) -> None:
    result = pmmrec("bench", *arguments)
    assert result.code != 0
    assert told in result.output


def benched(pmmrec: Pmmrec, *arguments: object, cache: str | None = "c") -> dict[str, Any]:
    """The figures of two steps."""
    own = () if cache is None else (f"cache={cache}",)
    result = pmmrec("bench", *arguments, *own, "--steps", 2, "--json", "-")
    assert result.code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found
