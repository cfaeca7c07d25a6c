"""The contract of every kind of adapter, on every supported architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pmmrec.adapters import adapters
from pmmrec.adapters.plan import AdapterPlan, adapt
from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import History, PixelInputs, TokenInputs
from pmmrec.encoders import text_encoders, vision_encoders
from pmmrec.encoders.text_layouts import LAYOUTS as TEXT_LAYOUTS
from pmmrec.encoders.timm_layouts import LAYOUTS as TIMM_LAYOUTS
from pmmrec.encoders.vision_layouts import LAYOUTS as VISION_LAYOUTS
from pmmrec.packing import HostArray
from pmmrec.users import user_encoders
from tests.support.tiny_encoders import IMAGE_SIZE, TIMM, tiny_image, tiny_text, whole_of

WIDTH = 6
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "dora": {"r": 2},
    "ia3": {},
    "houlsby": {"width": 3},
    "houlsby, parallel": {"width": 3, "parallel": True},
    "pfeiffer": {"width": 3},
    "pfeiffer, parallel": {"width": 3, "parallel": True},
}
Use = tuple[nn.Module, str, Callable[[Any], Tensor]]


def text(folder: Path, model_type: str) -> Use:
    config = text_encoders.config(
        {
            "type": "hf_text",
            "architecture": tiny_text(model_type),
            "vocab_size": 270,
            "max_tokens": 20,
            "pool": whole_of(model_type),
            "trainable_blocks": 0,
        }
    )
    encoder = _started(text_encoders.part_class(config), config, folder)
    inputs = TokenInputs.of([[2, 20, 30, 40, 3], [2, 25, 3]])
    return encoder, "text_encoder", lambda part: part(inputs).token_KD


def vision(folder: Path, config: Any, side: int) -> Use:
    encoder = _started(vision_encoders.part_class(config), config, folder)
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    inputs = PixelInputs(pixels, HostArray(range(2)))
    return encoder, "vision_encoder", lambda part: part(inputs).token_KD


def _started(part_class: Any, config: Any, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    part_class.start(config, folder, ["red shoe", "blue hat"])
    torch.manual_seed(0)
    return part_class(config, BuildContext(WIDTH, {"": Backbone(folder, is_pretrained=False)}))


def make(folder: Path, name: str) -> Use:
    """A part by its name, what it is in a model, and how it is called."""
    family, _, model_type = name.partition(" ")
    if family == "text":
        return text(folder, model_type)
    if family == "vision":
        tree = {
            "type": "hf_vision",
            "architecture": tiny_image(model_type),
            "pool": "mean",
            "trainable_blocks": 0,
        }
        return vision(folder, vision_encoders.config(tree), IMAGE_SIZE)
    if family == "timm":
        tree = {
            "type": "timm",
            "architecture": TIMM[model_type],
            "pool": "mean",
            "image_size": IMAGE_SIZE,
            "trainable_blocks": 0,
        }
        return vision(folder, vision_encoders.config(tree), IMAGE_SIZE)
    part, (inputs_BLD, is_valid_BL) = users({"type": model_type})
    return part, "user_encoder", lambda part: states_of(part, inputs_BLD, is_valid_BL)[:, 1:]


def users(settings: Mapping[str, Any]) -> tuple[Any, tuple[Tensor, Tensor]]:
    """A user encoder, and what two users touched."""
    config: Any = user_encoders.config({**settings, "max_inputs": 4})
    part_class: Any = user_encoders.part_class(config)
    torch.manual_seed(0)
    part = part_class(config, BuildContext(WIDTH))
    return part, (torch.randn(2, 4, WIDTH), torch.tensor([[False, True, True, True], [True] * 4]))


def states_of(users: Any, item_BLD: Tensor, is_valid_BL: Tensor) -> Tensor:
    return users(History(item_BLD.to(next(users.parameters())), is_valid_BL)).hidden_BLD


PARTS = [
    *(f"text {name}" for name, layout in TEXT_LAYOUTS.items() if layout.sites is not None),
    *(f"vision {name}" for name, layout in VISION_LAYOUTS.items() if layout.sites is not None),
    *(f"timm {name}" for name in TIMM if TIMM_LAYOUTS[name].sites is not None),
    "user transformer",
    "user nextitnet",
]


@pytest.fixture(scope="module", params=PARTS)
def use(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Use:
    """A part that is built once, to be copied; every weight of it counts."""
    part, place, call = make(tmp_path_factory.mktemp("fresh"), request.param)
    for parameter in part.parameters():  # some norms start at 0, and nothing below them would get a gradient
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return part, place, call


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_change_nothing_until_they_learn_and_then_learn_alone(use: Use, kind: str) -> None:
    part, place, call = deepcopy(use[0]), *use[1:]
    part.eval()
    torch.manual_seed(1)
    before = call(part)
    tree = {"type": kind.partition(",")[0], **KINDS[kind]}
    adapted = adapt({place: part}, AdapterPlan.model_validate({place: tree}))
    part.train()
    after = call(part)
    # DoRA divides a weight's length by itself, which may round (measured 0); all others are exact.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6 if kind == "dora" else 0)
    (after * torch.randn(after.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    learned = {key for key, parameter in part.named_parameters() if parameter.requires_grad}
    assert learned == set(adapted.parts[place].adapter_names)
    touched = {key for key, parameter in part.named_parameters() if parameter.grad is not None}
    assert touched == learned
    ends = {"lora": "lora_B.default.weight", "dora": "lora_B.default.weight", "ia3": "ia3_l.default"}
    end = ends.get(kind, "up.weight")
    for key, parameter in part.named_parameters():
        if key.endswith(end):
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings", [{"type": "transformer"}, {"type": "nextitnet"}, {"type": "nextitnet", "cls": True}]
)
def test_the_last_state_alone_is_adapted_as_among_all(settings: dict[str, Any], kind: str) -> None:
    part, (item_BLD, is_valid_BL) = users(settings)
    part.double().eval()
    adapt(
        {"user_encoder": part},
        AdapterPlan.model_validate({"user_encoder": {"type": kind.partition(",")[0], **KINDS[kind]}}),
    )
    for parameter in part.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    history = History(item_BLD.double(), is_valid_BL)
    alone_B1D, whole_BLD = (part(replace(history, last_alone=last_alone)).hidden_BLD for last_alone in (True, False))
    torch.testing.assert_close(alone_B1D, whole_BLD[:, -1:], rtol=0, atol=1e-12)  # float64


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_merged_weights_compute_what_the_part_computed_with_adapters(use: Use, kind: str) -> None:
    part, place, call = deepcopy(use[0]), *use[1:]
    part.double().eval()
    torch.manual_seed(1)
    names, plain = set(part.state_dict()), call(part)
    adapted = adapt({place: part}, AdapterPlan.model_validate({place: {"type": kind, **KINDS[kind]}}))
    for parameter in part.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    before = call(part)
    assert (before - plain).abs().max() > 1e-3
    adapted.parts[place].merge()
    assert set(part.state_dict()) == names
    torch.testing.assert_close(call(part), before, rtol=0, atol=1e-12)  # float64; measured 1e-14


def test_every_kind_is_tried() -> None:
    assert {entry.name for entry in adapters} == {kind.partition(",")[0] for kind in KINDS}
