"""An encoder entered at its cut says what the whole encoder says, and trains what the whole encoder trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs, PrefixInputs, TokenInputs, TokenStates
from pmmrec.encoders import text_layouts, timm_layouts, vision_layouts
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.errors import RecipeError
from pmmrec.packing import HostArray
from tests.support.tiny_encoders import SIZES, TIMM, tiny_image, tiny_text, whole_of

Fresh = Callable[..., Any]


def cuttable(layouts: Any) -> list[str]:
    return sorted(name for name, layout in layouts.items() if layout.block_call is not None)


def token_inputs(encoder: HFText, texts: list[str]) -> TokenInputs:
    return TokenInputs.of(encoder.tokenizer.encode(texts))


def kept(encoder: Any, inputs: TokenInputs | PixelInputs) -> PrefixInputs:
    """What a table would hold of these inputs."""
    found: PrefixInputs = encoder.prefix.at_cut(inputs)
    return found


def trained(encoder: Any, inputs: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Vectors, tokens and gradients of one step in training mode, the dropout of one seed."""
    encoder.zero_grad()
    torch.manual_seed(3)
    states: TokenStates = encoder.train()(inputs)
    tokens = torch.cat([states.of_item(row) for row in range(len(states.length_R))])
    (states.cls_RD.square().sum() + tokens.pow(3).sum()).backward()
    gradients = {name: weight.grad.clone() for name, weight in encoder.named_parameters() if weight.grad is not None}
    return states.cls_RD.detach(), tokens.detach(), gradients


def assert_same_step(encoder: Any, inputs: TokenInputs | PixelInputs) -> None:
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    whole = trained(encoder, inputs)
    encoder.load_state_dict(buffers, strict=False)  # running statistics of trained stages, as they were
    entered = trained(encoder, kept(encoder, inputs))
    assert torch.equal(entered[0], whole[0])
    assert torch.equal(entered[1], whole[1])
    assert entered[2].keys() == whole[2].keys() == {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert all(torch.equal(gradient, whole[2][name]) for name, gradient in entered[2].items())


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("model_type", cuttable(text_layouts.LAYOUTS))
def test_a_text_encoder_entered_at_its_cut_trains_the_same_to_the_bit(
    fresh_text: Fresh, texts: list[str], model_type: str, depth: int
) -> None:
    encoder = fresh_text(tiny_text(model_type), pool=whole_of(model_type), trainable_blocks=depth)
    assert_same_step(encoder, token_inputs(encoder, texts))
    assert_same_step(encoder, token_inputs(encoder, ["as long", "as this"]))  # nothing is padded: there is no mask


@pytest.mark.parametrize("model_type", sorted(set(text_layouts.LAYOUTS) - set(cuttable(text_layouts.LAYOUTS))))
def test_any_text_encoder_can_be_kept_when_all_of_it_is_frozen(
    fresh_text: Fresh, texts: list[str], model_type: str
) -> None:
    encoder = fresh_text(tiny_text(model_type), pool=whole_of(model_type), trainable_blocks=0)
    assert_same_step(encoder, token_inputs(encoder, texts))


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("model_type", cuttable(vision_layouts.LAYOUTS))
def test_a_vision_encoder_entered_at_its_cut_trains_the_same_to_the_bit(
    fresh_vision: Fresh, pixels: Tensor, model_type: str, depth: int
) -> None:
    encoder = fresh_vision(tiny_image(model_type), pool=whole_of(model_type), trainable_blocks=depth)
    assert_same_step(encoder, PixelInputs(pixels, HostArray(range(len(pixels)))))


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("class_name", cuttable(timm_layouts.LAYOUTS))
def test_a_backbone_of_timm_entered_at_its_cut_trains_the_same_to_the_bit(
    fresh_timm: Fresh, pixels: Tensor, class_name: str, depth: int
) -> None:
    encoder = fresh_timm(TIMM[class_name], trainable_blocks=depth)
    assert_same_step(encoder, PixelInputs(pixels, HostArray(range(len(pixels)))))


def test_real_weights_entered_below_their_top_blocks_train_the_same_to_the_bit(minilm: Path, texts: list[str]) -> None:
    encoder = HFText(
        HFTextConfig(weights="minilm", trainable_blocks=2), BuildContext(16, {"": Backbone(minilm, is_pretrained=True)})
    )
    assert_same_step(encoder, token_inputs(encoder, texts))


def test_nothing_is_kept_where_all_of_a_backbone_trains(fresh_text: Fresh) -> None:
    assert fresh_text(trainable_blocks="all").prefix is None


def test_an_architecture_without_a_known_cut_names_those_that_have_one(fresh_text: Fresh) -> None:
    encoder = fresh_text(tiny_text("albert"), trainable_blocks=1)
    with pytest.raises(
        RecipeError, match=r"AlbertModel cannot be entered .* these can: bert, camembert, .*xlm-roberta"
    ):
        _ = encoder.prefix


def test_states_are_float32_without_gradients_also_under_autocast(fresh_text: Fresh, texts: list[str]) -> None:
    encoder = fresh_text(trainable_blocks=1)
    inputs = token_inputs(encoder, texts)
    expected = encoder.prefix.states(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.prefix.states(inputs), expected)
    assert (expected.dtype, expected.requires_grad) == (torch.float32, False)


def moved(weight: Tensor) -> None:
    with torch.no_grad():
        weight.view(-1)[0] += 1e-6


def test_a_frozen_weight_changes_the_fingerprint_and_a_trained_one_does_not(fresh_text: Fresh) -> None:
    encoder = fresh_text(trainable_blocks=1)
    before = encoder.prefix.fingerprint
    moved(encoder.projection.weight)
    for weight in encoder.backbone.encoder.layer[2].parameters():
        moved(weight)
    assert encoder.prefix.fingerprint == before
    moved(encoder.backbone.encoder.layer[1].output.dense.bias)
    assert encoder.prefix.fingerprint != before


def test_frozen_running_statistics_change_the_fingerprint(fresh_timm: Fresh) -> None:
    encoder = fresh_timm(TIMM["ResNet"], trainable_blocks=1)
    before = encoder.prefix.fingerprint
    moved(encoder.backbone.layer4[0].bn1.running_mean)
    assert encoder.prefix.fingerprint == before
    moved(encoder.backbone.layer3[0].bn1.running_mean)
    assert encoder.prefix.fingerprint != before


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_what_is_done_to_pixels_changes_the_fingerprint(fresh_timm: Fresh, fresh_vision: Fresh, library: str) -> None:
    fresh = fresh_timm if library == "timm" else fresh_vision
    given = TIMM["VisionTransformer"] if library == "timm" else {"model_type": "vit", **SIZES}
    settings = [{"image_size": 32}, {"image_size": 64}, {"mean": (0.4, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.4)}]
    encoders = [fresh(given, str(n), trainable_blocks=0, **some) for n, some in enumerate(settings)]
    assert len({encoder.prefix.fingerprint for encoder in encoders}) == len(settings)


def test_where_the_cut_lies_changes_the_fingerprint(fresh_text: Fresh) -> None:
    prefixes = [fresh_text(folder=str(depth), trainable_blocks=depth).prefix for depth in (0, 1, 2)]
    assert len({prefix.fingerprint for prefix in prefixes}) == 3


def test_an_encoder_that_was_saved_and_opened_has_the_same_fingerprint(fresh_text: Fresh, tmp_path: Path) -> None:
    encoder = fresh_text(trainable_blocks=1)
    (tmp_path / "saved").mkdir()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    config = HFTextConfig(weights="saved", max_tokens=20, trainable_blocks=1)
    again = HFText(config, BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)}))
    assert again.prefix is not None
    assert again.prefix.fingerprint == encoder.prefix.fingerprint
