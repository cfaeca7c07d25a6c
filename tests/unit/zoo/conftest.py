"""A tiny recommender that reads text and images, and its checkpoint on disk."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import History, ItemInputs, PixelInputs, TokenInputs
from pmmrec.encoders import text_encoders, vision_encoders
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender
from pmmrec.objectives import objectives as objective_family
from pmmrec.packing import HostArray
from pmmrec.settings import validate
from pmmrec.zoo.save import save_checkpoint

WIDTH = 8
TITLES = ["red shoe", "blue hat", "green coat"]
TEXT = {
    "type": "hf_text",
    "trainable_blocks": "all",
    "vocab_size": 270,
    "max_tokens": 12,
    "architecture": {
        "model_type": "bert",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 16,
    },
}
VISION = {
    "type": "hf_vision",
    "trainable_blocks": "all",
    "architecture": {
        "model_type": "vit",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 8,
        "patch_size": 4,
    },
}
BOTH = {
    "type": "towers",
    "text": TEXT,
    "vision": VISION,
    "fusion": {"type": "merge_attention", "num_heads": 2},
}
TEXT_ONLY = {"type": "towers", "text": TEXT}


@dataclass(frozen=True)
class Run:
    """The arguments of a save."""

    model_config: ModelConfig
    recommender: Recommender
    objectives: Mapping[str, nn.Module]

    @property
    def state(self) -> dict[str, Tensor]:
        state = {f"recommender.{name}": tensor for name, tensor in self.recommender.state_dict().items()}
        for name, head in self.objectives.items():
            state |= {f"objectives.{name}.{key}": tensor for key, tensor in head.state_dict().items()}
        return state

    def save(self, folder: Path, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "system": "pmmrec",
            "model_config": self.model_config,
            "recommender": self.recommender,
            "objectives": self.objectives,
            "state": self.state,
            "recipe": "seed: 1\n",
            "metrics": {"valid/hr@10": 0.25},
            "card": "# tiny\n",
            "provenance": {"domains": ["demo"]},
        }
        save_checkpoint(folder, **{**settings, **changes})


def make_config(item_encoder: Mapping[str, Any] = BOTH) -> ModelConfig:
    tree = {"width": WIDTH, "item_encoder": item_encoder, "user_encoder": {"type": "transformer", "max_inputs": 4}}
    return validate(ModelConfig, tree, "test")


def make_run(config: ModelConfig, backbones: Mapping[str, Backbone], seed: int) -> Run:
    torch.manual_seed(seed)
    heads = {}
    for tree in ({"type": "noise_detection"}, {"type": "next_item"}):
        settings = objective_family.config(tree)
        heads[tree["type"]] = objective_family.part_class(settings)(settings, BuildContext(WIDTH))  # type: ignore[call-arg]
    return Run(config, build(config, backbones), heads)


def score_by_hand(recommender: Recommender) -> Tensor:
    """Scores of three items for one user who interacted with them in order."""
    tokenizer = recommender.item_encoder.reads["text"].tokenizer
    index, has = torch.arange(3), torch.ones(3, dtype=torch.bool)
    pixels = torch.arange(3 * 3 * 64).view(3, 3, 8, 8).remainder(251).to(torch.uint8)
    reads = recommender.item_encoder.fields
    inputs = {"text": TokenInputs.of(tokenizer.encode(TITLES)), "image": PixelInputs(pixels, HostArray(range(3)))}
    items = ItemInputs(
        domain_U=torch.zeros(3, dtype=torch.int64),
        row_U=index,
        has_U=dict.fromkeys(reads, has),
        fields={name: rows for name, rows in inputs.items() if name in reads},
    )
    with torch.no_grad():
        vectors = recommender.item_encoder(items)
        return recommender.score(recommender.query(History.of(vectors, index[None], has[None])), vectors)


@pytest.fixture
def score() -> Callable[[Recommender], Tensor]:
    """Scores of three items for one user who interacted with them in order."""
    return score_by_hand


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """Folders of fresh backbones, started once."""
    folder = tmp_path_factory.mktemp("backbones")
    config = make_config()
    for name, family in (("text_encoder", text_encoders), ("vision_encoder", vision_encoders)):
        (folder / name).mkdir()
        settings = config.item_encoder.encoders[name]
        family.part_class(settings).start(settings, folder / name, TITLES)  # type: ignore[attr-defined]
    return {name: Backbone(folder / name, is_pretrained=False) for name in ("text_encoder", "vision_encoder")}


@pytest.fixture(scope="session")
def run(backbones: dict[str, Backbone]) -> Run:
    """The run whose checkpoint is `saved`."""
    return make_run(make_config(), backbones, seed=1)


@pytest.fixture
def other(backbones: dict[str, Backbone]) -> Run:
    """A run of the same system with other weights."""
    return make_run(make_config(), backbones, seed=2)


@pytest.fixture
def text_only(backbones: dict[str, Backbone]) -> Run:
    """A run of a system that reads text alone."""
    return make_run(make_config(TEXT_ONLY), backbones, seed=3)


@pytest.fixture(scope="session")
def saved(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, to be read only."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    run.save(folder)
    return folder


@pytest.fixture
def saved_copy(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))
