"""The naive twin computes the same losses and gradients, with more work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import SMALL, Pmmrec, sources
from even_batches import TERMS, TEXT, USERS, VISION, first_step
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pmmrec.bench.against import naive_work
from pmmrec.bench.naive import NaiveTwin
from pmmrec.bench.work import WorkMeter
from pmmrec.errors import RecipeError

WINDOW = 21  # positions to which the twin pads; batches here are narrower
FUSION = {"type": "merge_attention", "num_heads": 2}
BOTH = {"type": "towers", "text": TEXT, "vision": VISION, "fusion": FUSION, "normalize": "layer_norm"}
NOISED = {"nid": {"type": "noise_detection"}, "rcl": {"type": "robustness"}}
RELEASED = {"type": "next_item", "negatives": "other_users", "logq": "all_columns"}
SYSTEMS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "all objectives of PMMRec": (BOTH, USERS, TERMS | NOISED),
    "the released objective": ({**BOTH, "fusion": {**FUSION, "pool": "mean"}}, USERS, {"dap": RELEASED}),
    "text alone, by its mean": ({"type": "towers", "text": {**TEXT, "pool": "mean"}}, USERS, {"dap": TERMS["dap"]}),
    "masked items": (
        {"type": "towers", "text": TEXT},
        {**USERS, "attends": "all"},
        {"dap": {"type": "next_item", "targets": "masked"}},
    ),
}


@pytest.mark.parametrize("keeps_states", [False, True])
@pytest.mark.parametrize(("item_encoder", "user_encoder", "terms"), SYSTEMS.values(), ids=SYSTEMS)
def test_losses_and_gradients_of_the_twin_are_those_of_the_task(
    world: Path,
    tmp_path: Path,
    item_encoder: dict[str, Any],
    user_encoder: dict[str, Any],
    terms: dict[str, Any],
    *,
    keeps_states: bool,
) -> None:
    if keeps_states:
        towers = {
            name: {**item_encoder[name], "trainable_blocks": 2} for name in ("text", "vision") if name in item_encoder
        }
        item_encoder = {**item_encoder, **towers}
    step = first_step(world / "bazaar", tmp_path, item_encoder, user_encoder, terms, keeps_states=keeps_states)
    task = step.task.eval()
    twin = NaiveTwin(task, step.reader, WINDOW).eval()
    if not keeps_states:  # kept states are float32
        task.double()
        twin.double()
    atol = 2e-5 if keeps_states else 1e-10
    ours, theirs = task(step.moved), twin(step.batch)
    for name in task.weights:
        torch.testing.assert_close(theirs[name], ours[name], rtol=atol, atol=atol, check_dtype=False)
    gradients = [gradients_of(figures, model) for figures, model in ((ours, task), (theirs, twin.task))]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=10 * atol, atol=10 * atol)


def gradients_of(figures: Mapping[str, Tensor], task: torch.nn.Module) -> dict[str, Tensor]:
    """Gradients of the sum of all means."""
    losses = [pair[0] / pair[1] for name, pair in figures.items() if "/" not in name]
    torch.stack(losses).sum().backward()
    return {name: weight.grad for name, weight in task.named_parameters() if weight.grad is not None}


def test_the_work_of_the_twin_is_what_torch_counts(even: Path, tmp_path: Path) -> None:
    step = first_step(even, tmp_path, BOTH, terms={"dap": RELEASED})
    twin = NaiveTwin(step.task, step.reader, WINDOW).train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        twin.loss(step.batch).backward()
    work = naive_work(step.task, step.moved, WINDOW)
    assert work.flops == counter.get_total_flops()
    assert work.flops > 5 * WorkMeter(step.task).of(step.moved).total.flops


@pytest.mark.parametrize(
    ("items", "users"),
    [
        ({"type": "towers", "text": TEXT}, {"type": "gru"}),
        ({"type": "towers", "text": {**TEXT, "head": {}}}, {"type": "transformer"}),
        ({**BOTH, "fusion": {"type": "gate"}}, {"type": "transformer"}),
        ({**BOTH, "fusion": {"type": "merge_attention", "num_heads": 2, "with_cls": True}}, {"type": "transformer"}),
    ],
    ids=["users", "head", "fusion", "cls"],
)
def test_parts_without_a_plain_form_are_refused(
    even: Path, tmp_path: Path, items: dict[str, Any], users: dict[str, Any]
) -> None:
    step = first_step(even, tmp_path, items, users, {"dap": TERMS["dap"]})
    with pytest.raises(RecipeError, match="--against naive: compares models"):
        NaiveTwin(step.task, step.reader, WINDOW)


def test_bench_against_the_twin_shows_both_losses_and_both_peaks(pmmrec: Pmmrec, world: Path, home: Path) -> None:
    asked = ("bench", "pretrain/tiny", *SMALL, *sources(world), "cache=c", "--against", "naive", "--steps", 1)
    told = pmmrec(*asked, "--json", "cost.json")
    assert told.code == 0, told.output
    naive = json.loads(Path("cost.json").read_text(encoding="utf-8"))["naive"]
    assert naive["loss"] == pytest.approx(naive["loss_here"], rel=1e-5)
    assert naive["times_fewer_useful_flops"] > 1
    assert min(naive["peak_memory_bytes"].values()) > 0
    assert "against the naive twin" in told.stdout
