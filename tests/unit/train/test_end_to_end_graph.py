"""A loss over a graph reaches the encoders of all items, which pass in parts as they would at once."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import train_gathered
from torch import Tensor, nn

from pmmrec.contracts import Batch, ItemInputs, ItemVectors
from pmmrec.data.batches import DataConfig
from pmmrec.models import ItemEncoder
from pmmrec.models.build import ModelConfig, build
from pmmrec.objectives import objectives
from pmmrec.train import task as task_module
from pmmrec.train.accumulate import _joined, item_parts
from pmmrec.train.prepare import Batches, Sources, find_backbones
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.task import TrainingTask

ATOL = 1e-12  # float64
WIDTH = train_gathered.WIDTH
TEXT, VISION = (train_gathered.TOWERS[name] for name in ("text", "vision"))
NOISY_TEXT = {**TEXT, "architecture": {**TEXT["architecture"], "hidden_dropout_prob": 0.3}}
DATA = DataConfig.model_validate({"examples": "interactions", "split": {"type": "ratio", "test_history": "train"}})
NEGATIVES = {"count": 1, "by": "uniform"}


def model_of(text: dict[str, Any]) -> dict[str, Any]:
    streams = {"text": {"type": "towers", "text": text}, "image": {"type": "towers", "vision": VISION}}
    return {
        "width": WIDTH,
        "item_encoder": {"type": "with_streams", "streams": streams},
        "user_encoder": {"type": "user_table"},
        "propagation": {"type": "stream_graph", "streams": ["text"]},
    }


@pytest.fixture(scope="module", params=["plain", "dropout"])
def step(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingTask, Batch]:
    """A system whose graph reads texts and whose loss reads images, and a batch of it."""
    home = tmp_path_factory.mktemp("graph")
    train_gathered.make_home(home)
    sources = Sources.open([home / "shop"], DATA)
    config = ModelConfig.model_validate(model_of(TEXT if request.param == "plain" else NOISY_TEXT))
    torch.manual_seed(0)
    backbones = find_backbones(config, home / "backbones", {})
    recommender = build(config, backbones, sources.catalogues, sources.graphs)
    terms = {
        "bpr": objectives.config({"type": "bpr", "negatives": NEGATIVES}),
        "image": objectives.config({"type": "bpr", "negatives": NEGATIVES, "stream": "image"}),
    }
    task = TrainingTask.of(recommender, terms, WIDTH).double()
    reader = train_gathered.reader_of(home, task, sources)
    rules = (DATA, sources, reader, task, 6, 1, Processes(MachineConfig(device="cpu")), train_gathered.SILENT)
    return task, next(iter(Batches(*rules).epoch(1)))


def losses_and_gradients(task: TrainingTask, batch: Batch) -> dict[str, Tensor]:
    task.train()
    task.zero_grad()
    torch.manual_seed(5)
    losses = {name: term.mean for name, term in task.terms(task.views(batch)).items()}
    torch.stack(list(losses.values())).sum().backward()
    return losses | {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def with_a_tape(encoder: ItemEncoder, items: ItemInputs, num_parts: int) -> ItemVectors:
    """The same parts, whose activations are all kept."""
    return _joined([encoder(part) for part in item_parts(items, num_parts)], items.num_items)


@pytest.mark.parametrize("parts", [3, 7])
def test_parts_give_the_gradients_of_the_whole_and_one_is_held_at_a_time(
    step: tuple[TrainingTask, Batch], monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    task, batch = step
    has_dropout = any(isinstance(one, nn.Dropout) and one.p for one in task.recommender.modules())
    held: list[weakref.ref[Tensor]] = []
    most = 0

    def watch(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal most
        held.append(weakref.ref(output))
        most = max(most, sum(one() is not None for one in held))

    def measured(num_parts: int) -> tuple[dict[str, Tensor], int]:
        nonlocal most
        task.item_parts, most = num_parts, 0
        held.clear()
        found = losses_and_gradients(task, batch)
        return found, most

    layers = [one for name, one in task.named_modules() if name.endswith("intermediate.intermediate_act_fn")]
    hook = layers[0].register_forward_hook(watch)
    try:
        found, num_held = measured(parts)
        with monkeypatch.context() as change:
            change.setattr(task_module, "encode_in_parts", with_a_tape)
            expected, num_kept = measured(parts)
        if not has_dropout:  # drawn for the whole at once, dropout is another
            expected, _ = measured(1)
    finally:
        hook.remove()
        task.item_parts = 1
    assert (num_held, num_kept) == (1, parts)
    assert batch.items.num_items == train_gathered.NUM_ITEMS
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=ATOL)
    learned = [name for name, value in found.items() if value.abs().max() > 0]
    for part in ("text_encoder", "vision_encoder", "item_table", "user_encoder"):
        assert any(part in name for name in learned), part
