"""What every registered part must do, whoever wrote it: a new part needs one line in EXAMPLES and inherits the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pmmrec.context import Backbone, BuildContext, Catalogue
from pmmrec.contracts import (
    History,
    ItemInputs,
    ItemVectors,
    Modality,
    PixelInputs,
    Query,
    TokenInputs,
    TokenStates,
    UserStates,
)
from pmmrec.encoders import text_encoders, vision_encoders
from pmmrec.family import Entry, Family
from pmmrec.fusion import fusions
from pmmrec.models import item_encoders, scorers
from pmmrec.settings import validate
from pmmrec.users import user_encoders

WIDTH = 8
TEXTS = ["red shoes", "a blue shirt", "green"]
SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
BERT = {"model_type": "bert", "max_position_embeddings": 24, **SIZES}
TEXT = {"type": "hf_text", "architecture": BERT, "vocab_size": 300, "max_tokens": 12}
VIT = {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZES}
VISION = {"type": "hf_vision", "architecture": VIT}
RESNET = {"name": "resnet18", "channels": [4, 4, 8, 8], "zero_init_last": False}
MERGE = {"type": "merge_attention", "num_heads": 2}

FAMILIES: dict[str, Family[Any]] = {
    family.name: family for family in (text_encoders, vision_encoders, fusions, user_encoders, item_encoders, scorers)
}
EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "text encoder": {"hf_text": TEXT},
    "vision encoder": {
        "hf_vision": VISION,
        "timm": {"type": "timm", "architecture": RESNET, "image_size": 64, "pool": "mean"},
    },
    "fusion": {"merge_attention": MERGE},
    "user encoder": {
        "transformer": {"type": "transformer"},
        "gru": {"type": "gru"},
        "user_table": {"type": "user_table"},
    },
    "item encoder": {
        "towers": {"type": "towers", "text": TEXT, "vision": VISION, "fusion": MERGE},
        "ids": {"type": "ids"},
    },
    "scorer": {"dot": {"type": "dot", "popularity": 1.0}},
}

torch.set_num_threads(1)


@dataclass(frozen=True)
class Example:
    """A part to be built, and the way to run it."""

    family: str
    name: str
    build: Callable[[], Any]
    run: Callable[[nn.Module], list[Tensor]]
    folder: Path | None  # of an encoder's backbone


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).requires_grad_()


def valid(lengths: list[int], longest: int, *, left: bool = False) -> Tensor:
    rows = [[place < length for place in range(longest)] for length in lengths]
    return torch.tensor([row[::-1] if left else row for row in rows])


def token_inputs(encoder: Any) -> TokenInputs:
    rows = encoder.tokenizer.encode(TEXTS)
    longest = max(map(len, rows))
    padded = torch.tensor([row + [encoder.tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    return TokenInputs(padded, valid([len(row) for row in rows], longest), torch.arange(3))


def pixel_inputs(encoder: Any) -> PixelInputs:
    size = encoder.pixel_spec.size
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=generator)
    return PixelInputs(pixels, torch.arange(3))


def tensors_of(states: TokenStates) -> list[Tensor]:
    assert states.tokens_RTD.shape == (3, states.is_valid_RT.shape[1], WIDTH)
    assert states.cls_RD.shape == (3, WIDTH)
    assert states.is_valid_RT.dtype == torch.bool
    return [states.tokens_RTD[states.is_valid_RT], states.cls_RD]


def run_text(part: Any) -> list[Tensor]:
    return tensors_of(part(token_inputs(part)))


def run_vision(part: Any) -> list[Tensor]:
    return tensors_of(part(pixel_inputs(part)))


def run_fusion(part: nn.Module) -> list[Tensor]:
    text = TokenStates(random(3, 4, WIDTH), valid([4, 2, 0], 4), random(3, WIDTH))
    image = TokenStates(random(3, 5, WIDTH), valid([5, 0, 5], 5), random(3, WIDTH))
    fused_UD = part({Modality.TEXT: text, Modality.IMAGE: image})
    assert fused_UD.shape == (3, WIDTH)
    return [fused_UD]


def run_user(part: nn.Module) -> list[Tensor]:
    is_valid_BL = valid([4, 2, 1], 4, left=True)
    states = part(History(random(3, 4, WIDTH), is_valid_BL, user_index_B=torch.arange(3)))
    assert states.hidden_BLD.shape == (3, 4, WIDTH)
    assert torch.equal(states.is_valid_BL, is_valid_BL)
    return [states.hidden_BLD[is_valid_BL]]


def run_items(part: Any) -> list[Tensor]:
    has_U = {modality: torch.tensor([True, True, True]) for modality in part.modalities}
    text = token_inputs(part) if part.tokenizer is not None else None
    image = pixel_inputs(part) if part.pixel_spec is not None else None
    vectors: ItemVectors = part(ItemInputs(torch.zeros(3, dtype=torch.long), torch.arange(3), has_U, text, image))
    assert vectors.fused_UD.shape == (3, WIDTH)
    assert set(vectors.has_U) == part.modalities
    return [vectors.fused_UD, *vectors.cls_UD.values()]


def run_scorer(part: nn.Module) -> list[Tensor]:
    states = UserStates(random(2, 4, WIDTH), valid([4, 2], 4, left=True))
    scores_KN = part(Query.last(states), ItemVectors(random(3, WIDTH)))
    assert scores_KN.shape == (2, 3)
    return [scores_KN, part.ranked(scores_KN, torch.tensor([0, 4, 1]))]


RUNS: dict[str, Callable[[Any], list[Tensor]]] = {
    "text encoder": run_text,
    "vision encoder": run_vision,
    "fusion": run_fusion,
    "user encoder": run_user,
    "item encoder": run_items,
    "scorer": run_scorer,
}


def registered(*families: Family[Any]) -> Iterator[Any]:
    for family in families:
        for entry in family:
            yield pytest.param((family.name, entry), id=f"{family.name}: {entry.name}".replace(" ", "_"))


of_every_family = pytest.mark.parametrize("registration", list(registered(*FAMILIES.values())))
of_encoders = pytest.mark.parametrize("registration", list(registered(text_encoders, vision_encoders)))


@pytest.fixture
def example(registration: tuple[str, Entry[Any]], tmp_path: Path) -> Example:
    family, entry = registration
    tree = EXAMPLES[family].get(entry.name)
    if tree is None:
        pytest.fail(f"{family} {entry.name!r} has no example here; add its smallest settings to EXAMPLES")
    config: Any = validate(entry.config_class, tree, "example")
    if family in ("text encoder", "vision encoder"):
        folder = start(entry, config, tmp_path / "backbone")
        return Example(
            family,
            entry.name,
            lambda: entry.part_class(config, BuildContext(WIDTH, {"": Backbone(folder, False)})),
            RUNS[family],
            folder,
        )
    if family == "item encoder":
        backbones = {}
        for name, encoder in config.encoders.items():
            home = text_encoders if name == "text_encoder" else vision_encoders
            backbones[name] = Backbone(start(home[encoder.type], encoder, tmp_path / name), False)
        catalogues = [Catalogue("books", 3, "aa")]
        return Example(
            family,
            entry.name,
            lambda: entry.part_class(config, BuildContext(WIDTH, backbones, catalogues)),
            RUNS[family],
            None,
        )
    context = BuildContext(WIDTH, catalogues=[Catalogue("books", 3, "aa", 3, "bb")])
    return Example(family, entry.name, lambda: entry.part_class(config, context), RUNS[family], None)


@pytest.fixture
def part(example: Example) -> nn.Module:
    torch.manual_seed(0)
    return example.build()


def start(entry: Entry[Any], config: Any, folder: Path) -> Path:
    folder.mkdir()
    entry.part_class.start(config, folder, TEXTS)
    return folder


@of_every_family
def test_it_says_what_it_is_in_its_first_line(example: Example) -> None:
    assert len(FAMILIES[example.family][example.name].summary) > 10


@of_every_family
def test_its_settings_survive_a_round_trip(example: Example) -> None:
    config_class = FAMILIES[example.family][example.name].config_class
    config = validate(config_class, EXAMPLES[example.family][example.name], "example")
    assert validate(config_class, config.model_dump(mode="json"), "example") == config


@of_every_family
def test_it_runs_and_says_something_finite(example: Example, part: nn.Module) -> None:
    for tensor in example.run(part):
        assert tensor.isfinite().all()


@of_every_family
def test_gradients_reach_every_trainable_parameter_and_no_frozen_one(example: Example, part: nn.Module) -> None:
    part.eval()
    outputs = example.run(part)
    loss = sum((tensor * random(*tensor.shape)).sum() for tensor in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in part.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, f"{name} is frozen, yet has a gradient"
            continue
        assert parameter.grad is not None, f"{name} trains, yet gets no gradient"
        assert parameter.grad.any(), f"{name} trains, yet its gradient is 0"


@of_every_family
def test_in_training_too_every_trainable_parameter_gets_a_gradient(example: Example, part: nn.Module) -> None:
    outputs = example.run(part.train())
    torch.stack([tensor.square().sum() for tensor in outputs]).sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in part.parameters())


@of_every_family
def test_in_eval_it_says_the_same_twice(example: Example, part: nn.Module) -> None:
    part.eval()
    for first, second in zip(example.run(part), example.run(part), strict=True):
        assert torch.equal(first, second)


@of_every_family
def test_the_same_seed_builds_the_same_part(example: Example, part: nn.Module) -> None:
    torch.manual_seed(0)
    state, again = part.state_dict(), example.build().state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(state[name], again[name]) for name in state)


@of_every_family
def test_its_state_makes_another_say_the_same(example: Example, part: nn.Module) -> None:
    torch.manual_seed(1)
    other = example.build()
    other.load_state_dict(part.state_dict())
    for first, second in zip(example.run(part.eval()), example.run(other.eval()), strict=True):
        assert torch.equal(first, second)


@of_every_family
def test_it_can_be_built_without_memory(example: Example, part: nn.Module) -> None:
    with torch.device("meta"):
        dry = example.build()
    assert all(tensor.is_meta for tensor in [*dry.parameters(), *dry.buffers()])
    shapes = [(name, p.shape, p.requires_grad) for name, p in part.named_parameters()]
    assert [(name, p.shape, p.requires_grad) for name, p in dry.named_parameters()] == shapes


@of_encoders
def test_an_encoder_reads_back_the_bits_it_saved(example: Example, part: Any, tmp_path: Path) -> None:
    prefix = "backbone."
    state = {name.removeprefix(prefix): t for name, t in part.state_dict().items() if name.startswith(prefix)}
    (tmp_path / "saved").mkdir()
    with torch.device("meta"):
        dry = example.build()
    dry.save_backbone(tmp_path / "saved", state)  # the tensors come from the caller, not from the module
    read = part.read_backbone(tmp_path / "saved")
    assert set(read) == set(state)
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in state.items())


@of_encoders
def test_a_saved_encoder_opens_as_a_pretrained_one(example: Example, part: Any, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    part.save_backbone(tmp_path / "saved", part.backbone.state_dict())
    entry = FAMILIES[example.family][example.name]
    tree = {**EXAMPLES[example.family][example.name], "architecture": None, "weights": "saved"}
    config = validate(entry.config_class, {k: v for k, v in tree.items() if k != "vocab_size"}, "example")
    opened = entry.part_class(config, BuildContext(WIDTH, {"": Backbone(tmp_path / "saved", is_pretrained=True)}))
    opened.projection.load_state_dict(part.projection.state_dict())
    for first, second in zip(example.run(part.eval()), example.run(opened.eval()), strict=True):
        assert torch.equal(first, second)
