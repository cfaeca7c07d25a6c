"""The formulas count what torch's counter counts where nothing is padded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from even_batches import SIZES, TERMS, TEXT, USERS, VISION, FirstStep, first_step
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pmmrec.bench.work import WorkMeter
from pmmrec.contracts import Batch
from pmmrec.train.task import TrainingTask

FUSION = {"type": "merge_attention", "num_heads": 2}
BOTH = {"type": "towers", "text": TEXT, "vision": VISION, "fusion": FUSION}
DAP = {"dap": TERMS["dap"]}
PARTS = {
    "text": "recommender.item_encoder.text_encoder",
    "vision": "recommender.item_encoder.vision_encoder",
    "fusion": "recommender.item_encoder.fusion",
    "users": "recommender.user_encoder",
}


def text(model_type: str, trainable: int | str = "all", **more: Any) -> dict[str, Any]:
    architecture = {**(more or TEXT["architecture"]), "model_type": model_type}
    return {"type": "towers", "text": {**TEXT, "architecture": architecture, "trainable_blocks": trainable}}


def vision(model_type: str, trainable: int | str = "all", **more: Any) -> dict[str, Any]:
    sizes = {"image_size": 16, "patch_size": 8, **(more or SIZES)}
    architecture = {**sizes, "model_type": model_type}
    return {"type": "towers", "vision": {**VISION, "architecture": architecture, "trainable_blocks": trainable}}


@dataclass(frozen=True)
class Count:
    """What torch's counter finds."""

    forward: Mapping[str, int]  # by part, and of the whole as `Global`
    backward: int  # torch tells that of the whole alone


def counted(task: TrainingTask, batch: Batch) -> Count:
    """FLOPs of a forward and a backward; attention is made of plain products."""
    task.eval()  # attention with dropout computes scores once more on the way back
    with sdpa_kernel(SDPBackend.MATH):  # fused kernels compute scores once more on the way back
        with FlopCounterMode(display=False) as forward:
            figures = task(batch)
            loss = torch.stack([figures[name][0] for name in task.weights]).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    counts = {name: sum(of_part.values()) for name, of_part in forward.get_flop_counts().items()}
    by_part = {name.removeprefix("TrainingTask."): count for name, count in counts.items()}
    return Count(by_part, backward.get_total_flops())


TOWERS = {
    "bert, all of it trained": text("bert"),
    "bert, the top block trained": text("bert", 1),
    "bert, frozen": text("bert", 0),
    "roberta": text("roberta"),
    "distilbert": text("distilbert", 2, dim=8, hidden_dim=16, n_layers=3, n_heads=2, max_position_embeddings=32),
    "electra": text("electra", embedding_size=4, max_position_embeddings=32, **SIZES),
    "vit, all of it trained": vision("vit"),
    "vit, the top block trained": vision("vit", 1),
    "clip, two blocks trained": vision("clip_vision_model", 2),
    "deit": vision("deit"),
    "dinov2": vision("dinov2", 1, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2),
    "both and a fusion": BOTH,
    "swin, which torch counts": {
        "type": "towers",
        "vision": {
            "type": "hf_vision",
            "architecture": {
                "model_type": "swin",
                "image_size": 16,
                "patch_size": 2,
                "embed_dim": 4,
                "depths": [1, 1],
                "num_heads": [1, 2],
                "window_size": 4,
            },
            "pool": "mean",
            "trainable_blocks": "all",
        },
    },
    "an EfficientNet, which torch counts": {
        "type": "towers",
        "vision": {
            "type": "timm",
            "architecture": {"name": "test_efficientnet"},
            "image_size": 64,
            "pool": "mean",
            "trainable_blocks": 1,
        },
    },
    "a ResNet, which torch counts": {
        "type": "towers",
        "vision": {
            "type": "timm",
            "architecture": {"name": "resnet18", "channels": [4, 4, 8, 8], "zero_init_last": False},
            "image_size": 64,
            "pool": "mean",
            "trainable_blocks": "all",
        },
    },
}


@pytest.mark.parametrize("keeps_states", [False, True])
@pytest.mark.parametrize("item_encoder", TOWERS.values(), ids=TOWERS)
def test_formulas_of_item_encoders_equal_the_count_of_torch(
    even: Path, tmp_path: Path, item_encoder: dict[str, Any], *, keeps_states: bool
) -> None:
    terms = TERMS if item_encoder is BOTH else DAP
    check(first_step(even, tmp_path, item_encoder, terms=terms, keeps_states=keeps_states))


@pytest.mark.parametrize(
    "user_encoder",
    [USERS, {"type": "gru"}, {"type": "mean_mlp", "num_layers": 1}],
    ids=lambda config: str(config["type"]),
)
@pytest.mark.parametrize("terms", [DAP, {"dap": {"type": "next_item", "targets": "last"}}], ids=["all", "last"])
def test_formulas_of_user_encoders_equal_the_count_of_torch(
    even: Path, tmp_path: Path, user_encoder: dict[str, Any], terms: dict[str, Any]
) -> None:
    check(first_step(even, tmp_path, text("bert", 0), user_encoder, terms))


OBJECTIVES: dict[str, dict[str, Any]] = {
    "every item of the catalogue": {"type": "catalogue_ce"},
    "drawn negatives": {"type": "bce", "negatives": {"count": 3}},
    "pairs": {"type": "bpr"},
    "both windows as anchors": {"type": "robustness", "symmetric": True, "noise": {"shuffle": 1, "replace": 0}},
    "items left out": {"type": "sequence_contrast", "dropped": {"share": 1e-9}},
    "the last item alone": {"type": "catalogue_ce", "targets": "last"},
}


@pytest.mark.parametrize("term", OBJECTIVES.values(), ids=OBJECTIVES)
def test_formulas_of_objectives_equal_the_count_of_torch(even: Path, tmp_path: Path, term: dict[str, Any]) -> None:
    step = first_step(even, tmp_path, text("bert", 0), terms={"term": term})
    check(step, dots=num_dots(step))


def num_dots(step: FirstStep) -> int:
    """Dot products of states with their own candidates, one by one, which torch's counter does not see."""
    return sum(
        1 + int(index_BLC.shape[2])
        for of_pass in step.moved.windows.passes.values()
        for index_BLC in of_pass.negative_index_BLC.values()
        for _ in of_pass.is_target_BL.nonzero()
    )


def test_the_formula_of_texts_and_images_against_one_another_equals_the_count_of_torch(
    even: Path, tmp_path: Path
) -> None:
    both = {**BOTH, "text": {**TEXT, "trainable_blocks": 0}, "vision": {**VISION, "trainable_blocks": 0}}
    check(first_step(even, tmp_path, both, terms={**DAP, "itc": {"type": "item_contrast"}}))


def check(step: FirstStep, dots: int = 0) -> None:
    """The formulas equal the count: forward in every part, forward and backward in all."""
    work, count = WorkMeter(step.task).of(step.moved), counted(step.task, step.moved)
    of_dots = 2 * dots * step.task.width
    assert not work.unknown
    for stage, path in PARTS.items():
        if stage in work.stages:
            assert work.stages[stage].forward == count.forward.get(path, 0), stage
    assert work.total.forward == count.forward["Global"] + of_dots
    assert work.total.backward == count.backward + 2 * of_dots


def test_weights_below_kept_states_are_not_read(even: Path, tmp_path: Path) -> None:
    """Of a frozen encoder whose texts are kept as one state each, the projection alone moves."""
    step = first_step(even, tmp_path, text("bert", 0), terms=DAP, keeps_states=True)
    tower = step.task.recommender.item_encoder.text_encoder
    work = WorkMeter(step.task).of(step.moved).stages["text"]
    num_rows = len(step.moved.items.fields["text"].item_index_R.values)
    projection = 4 * sum(one.numel() for one in tower.projection.parameters())
    read = step.moved.items.fields["text"].state.nbytes
    assert work.forward_bytes == projection + read + 4 * 8 * num_rows
