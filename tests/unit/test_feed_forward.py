"""A feed-forward that is computed some rows at a time gives the values and gradients of the plain one."""
# Shapes: K rows, F width of the activation, D width of the output.

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pmmrec import feed_forward
from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs, TokenInputs
from pmmrec.dropout import Dropout, kept
from pmmrec.encoders import text_encoders, vision_encoders
from pmmrec.feed_forward import ActivatedLinear, AppliedLater, activated_linear, part_activations
from pmmrec.testing.subjects import pixel_inputs, token_inputs

ROWS, F_WIDTH, WIDTH = 11, 6, 3
NUM_BLOCKS = 2
SIZES = {"hidden_size": 8, "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 2}
TEXTS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
IMAGES = ("vit", "deit", "dinov2", "vit_mae")


@pytest.fixture(autouse=True)
def few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FEWEST_NUMBERS", 0), ("NUMBERS_IN_CACHE", 2 * F_WIDTH), ("FEWEST_ROWS", 4)):
        monkeypatch.setattr(feed_forward, name, value)


def by_loops(x_KF: Tensor, linear: nn.Linear, activation: Any, is_kept_KF: Tensor, factor: float) -> Tensor:
    rows = []
    for k in range(len(x_KF)):
        numbers = []
        for d in range(len(linear.weight)):
            total = x_KF.new_zeros(()) if linear.bias is None else linear.bias[d]
            for f in range(x_KF.shape[1]):
                if is_kept_KF[k, f]:
                    total = total + activation(x_KF[k, f]) * factor * linear.weight[d, f]
            numbers.append(total)
        rows.append(torch.stack(numbers))
    return torch.stack(rows)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("activation", [F.gelu, F.relu])
def test_values_and_gradients_are_those_of_loops(activation: Any, has_bias: bool, p: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x_KF = torch.randn(ROWS, F_WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
    linear = nn.Linear(F_WIDTH, WIDTH, bias=has_bias, dtype=torch.float64)
    torch.manual_seed(1)
    is_kept_KF, factor = kept(x_KF, p) if p else (torch.ones(ROWS, F_WIDTH), 1.0)
    expected = by_loops(x_KF, linear, activation, is_kept_KF, factor)
    torch.manual_seed(1)
    actual = activated_linear(x_KF, linear, activation, p)
    assert type(actual.grad_fn).__name__ != type(linear(x_KF).grad_fn).__name__
    inputs, towards = [x_KF, *linear.parameters()], torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)  # measured 1e-15
    of_loops = torch.autograd.grad(expected, inputs, towards)
    for one, other in zip(torch.autograd.grad(actual, inputs, towards), of_loops, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)  # measured 5e-15


def test_rows_of_several_dimensions_keep_their_shape_and_frozen_weights_get_no_gradient() -> None:
    x = torch.randn(2, 5, F_WIDTH, requires_grad=True)
    linear = nn.Linear(F_WIDTH, WIDTH).requires_grad_(requires_grad=False)
    out = activated_linear(x, linear, F.gelu)
    assert out.shape == (2, 5, WIDTH)
    out.sum().backward()
    (expected,) = torch.autograd.grad(linear(F.gelu(x)).sum(), x)
    torch.testing.assert_close(x.grad, expected)
    assert linear.weight.grad is None


def test_what_is_kept_for_the_way_back_is_the_input_and_a_byte_for_each_number() -> None:
    x_KF, linear, kept_bytes = (
        torch.randn(ROWS, F_WIDTH, requires_grad=True),
        nn.Linear(F_WIDTH, WIDTH),
        dict[int, int](),
    )

    def keep(tensor: Tensor) -> Tensor:
        kept_bytes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        activated_linear(x_KF, linear, F.gelu, 0.5)
    byte_mask = sum(kept_bytes.values()) - x_KF.nbytes - linear.weight.nbytes
    assert x_KF.numel() <= byte_mask < x_KF.numel() + 8  # bits are drawn eight bytes at a time


def test_its_products_are_counted_as_those_of_a_linear_layer() -> None:
    x_KF, linear = torch.randn(ROWS, F_WIDTH, requires_grad=True), nn.Linear(F_WIDTH, WIDTH)
    with FlopCounterMode(display=False) as counter:
        activated_linear(x_KF, linear, F.gelu).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * ROWS * F_WIDTH * WIDTH


def encoder_of(folder: Path, model_type: str) -> Any:
    family: Any = text_encoders if model_type in TEXTS else vision_encoders
    own = {"max_position_embeddings": 24} if model_type in TEXTS else {"image_size": 16, "patch_size": 8}
    own |= {} if model_type == "dinov2" else {"intermediate_size": 16}
    tree: dict[str, Any] = {"architecture": {"model_type": model_type, **SIZES, **own}}
    tree |= {"type": "hf_text", "vocab_size": 300, "max_tokens": 12} if model_type in TEXTS else {"type": "hf_vision"}
    config = family.config(tree)
    family.part_class(config).start(config, folder, ["red shoes", "green"])
    torch.manual_seed(0)
    return family.part_class(config)(config, BuildContext(4, {"": Backbone(folder, is_pretrained=False)}))


@pytest.mark.parametrize("model_type", [*TEXTS, *IMAGES])
def test_backbones_compute_what_they_computed(tmp_path: Path, model_type: str) -> None:
    encoder = encoder_of(tmp_path, model_type).double().eval()
    names = set(encoder.state_dict())
    inputs: TokenInputs | PixelInputs
    inputs = token_inputs(encoder.tokenizer) if model_type in TEXTS else pixel_inputs(encoder.pixel_spec)
    assert sum(isinstance(module, ActivatedLinear) for module in encoder.modules()) == NUM_BLOCKS
    found = []
    for _ in range(2):
        hidden = encoder.hidden(inputs)
        learning = {name: one for name, one in encoder.backbone.named_parameters() if one.requires_grad}
        gradients = torch.autograd.grad(hidden.square().sum(), list(learning.values()), allow_unused=True)
        found.append((hidden, [one for one in gradients if one is not None]))
        part_activations(encoder.backbone)
    assert not any(isinstance(module, ActivatedLinear | AppliedLater) for module in encoder.modules())
    assert set(encoder.state_dict()) == names
    (joined, of_joined), (plain, of_plain) = found
    torch.testing.assert_close(joined, plain, rtol=0, atol=1e-13)  # measured 4e-15
    for one, other in zip(of_joined, of_plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # measured 3e-14


def test_dropout_of_a_backbone_is_drawn_cheaply(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "bert")
    dropouts = [module for module in encoder.modules() if isinstance(module, nn.Dropout)]
    assert dropouts
    assert all(type(module) is Dropout for module in dropouts)
