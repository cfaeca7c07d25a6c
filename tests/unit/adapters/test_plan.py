"""What is trained of a model with adapters, what is frozen, and plans that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pmmrec.adapters.plan import AdapterPlan, adapt
from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import History, PixelInputs, PrefixInputs, TokenInputs
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.encoders.vision_hf import HFVision, HFVisionConfig
from pmmrec.encoders.vision_timm import TimmConfig, TimmVision
from pmmrec.errors import RecipeError
from pmmrec.packing import HostArray
from pmmrec.users.transformer import TransformerConfig, TransformerUserEncoder

WIDTH = 6
SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
BERT = {"model_type": "bert", "max_position_embeddings": 24, **SIZES}
VIT = {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZES}
TEXTS = TokenInputs.of([[2, 20, 30, 40, 3], [2, 25, 3]])
IMAGES = PixelInputs(torch.arange(2 * 3 * 256).view(2, 3, 16, 16).remainder(251).to(torch.uint8), HostArray(range(2)))
LORA = {"type": "lora", "r": 2}


def started(part_class: Any, config: Any, folder: Path) -> Any:
    folder.mkdir()
    part_class.start(config, folder, ["red shoe", "blue hat"])
    torch.manual_seed(0)
    return part_class(config, BuildContext(WIDTH, {"": Backbone(folder, is_pretrained=False)}))


@pytest.fixture
def text(tmp_path: Path) -> HFText:
    encoder: HFText = started(HFText, HFTextConfig(architecture=BERT, vocab_size=270, max_tokens=20), tmp_path / "t")
    return encoder


@pytest.fixture
def vision(tmp_path: Path) -> HFVision:
    encoder: HFVision = started(HFVision, HFVisionConfig(architecture=VIT), tmp_path / "v")
    return encoder


@pytest.fixture
def users() -> TransformerUserEncoder:
    torch.manual_seed(0)
    return TransformerUserEncoder(TransformerConfig(max_inputs=4), BuildContext(WIDTH))


def plan(**trees: Any) -> AdapterPlan:
    return AdapterPlan.model_validate(trees)


def learning(part: nn.Module) -> set[str]:
    return {name for name, parameter in part.named_parameters() if parameter.requires_grad}


def drawn(part: nn.Module) -> None:
    """Move adapters away from their initial values, so that they have an effect."""
    torch.manual_seed(1)
    for parameter in part.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)


def test_parts_that_a_plan_does_not_name_are_frozen(text: HFText, users: TransformerUserEncoder) -> None:
    adapted = adapt({"text_encoder": text, "user_encoder": users}, plan(user_encoder={"type": "pfeiffer", "width": 3}))
    assert learning(text) == set()
    assert set(adapted.parts) == {"user_encoder"}
    assert learning(users) == {
        f"blocks.{b}.contract.adapter.{n}.{k}" for b in (0, 1) for n in ("down", "up") for k in ("weight", "bias")
    }


def test_named_modules_and_fresh_parts_are_trained_too(text: HFText, users: TransformerUserEncoder) -> None:
    fusion, parts = nn.Linear(2, 2), {"text_encoder": text, "user_encoder": users}
    adapted = adapt(
        {**parts, "fusion": fusion}, plan(text_encoder=LORA, train=["text_encoder.projection"]), fresh=["user_encoder"]
    )
    assert adapted.whole == ("user_encoder",)
    assert learning(users) == set(dict(users.named_parameters()))
    assert learning(fusion) == set()
    assert adapted.parts["text_encoder"].head_names == ["projection.weight", "projection.bias"]
    assert {name for name in learning(text) if "lora" not in name} == {"projection.weight", "projection.bias"}


def test_a_named_part_is_trained_as_configured(text: HFText, users: TransformerUserEncoder) -> None:
    as_built = learning(text)
    adapt({"text_encoder": text, "user_encoder": users}, plan(user_encoder=LORA, train=["text_encoder"]))
    assert learning(text) == as_built
    assert 0 < len(as_built) < len(list(text.parameters()))


def test_everything_except_adapters_stays_in_eval_mode(text: HFText, users: TransformerUserEncoder) -> None:
    tree = {**LORA, "dropout": 0.5}
    adapt({"text_encoder": text, "user_encoder": users}, plan(text_encoder=tree, user_encoder={"type": "houlsby"}))
    drawn(text)
    root = nn.ModuleDict({"text": text, "users": users}).train()
    one, two = text(TEXTS).cls_RD, text(TEXTS).cls_RD
    assert not torch.equal(one, two)  # dropout of the adapters
    modes = {name: module.training for name, module in text.named_modules() if isinstance(module, nn.Dropout)}
    assert {mode for name, mode in modes.items() if "lora_dropout" in name} == {True}
    assert {mode for name, mode in modes.items() if "lora_dropout" not in name} == {False}
    vectors_BLD, is_valid_BL = torch.randn(2, 4, WIDTH), torch.ones(2, 4, dtype=torch.bool)
    first, second = (users(History(vectors_BLD, is_valid_BL)).hidden_BLD for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    root.eval()
    torch.testing.assert_close(text(TEXTS).cls_RD, text(TEXTS).cls_RD, rtol=0, atol=0)
    assert not any(module.training for module in root.modules())


def states_of(encoder: Any, inputs: Any) -> PrefixInputs:
    packing = inputs.packing if isinstance(inputs, TokenInputs) else None
    return PrefixInputs(encoder.prefix.states(inputs), packing, inputs.item_index_R)


def gradients(encoder: Any, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    out: Tensor = encoder(inputs).cls_RD
    out.square().sum().backward()
    named = dict(encoder.named_parameters())
    return out.detach(), {name: named[name].grad.clone() for name in learning(encoder)}


@pytest.mark.parametrize("blocks", [1, 2, "all"])
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "houlsby", "pfeiffer"])
def test_cached_outputs_below_the_lowest_adapter_give_the_same_step(
    text: HFText, vision: HFVision, kind: str, blocks: Any
) -> None:
    tree = {"type": kind, "blocks": blocks}
    adapt({"text_encoder": text, "vision_encoder": vision}, plan(text_encoder=tree, vision_encoder=tree))
    for encoder, inputs in ((text, TEXTS), (vision, IMAGES)):
        drawn(encoder)
        encoder.train()
        out, wanted = gradients(encoder, inputs)
        kept, found = gradients(encoder, states_of(encoder, inputs))
        torch.testing.assert_close(kept, out, rtol=0, atol=1e-6)  # float32; measured 0
        assert set(found) == set(wanted)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)  # measured 0


def test_outputs_are_cached_directly_below_the_lowest_adapter(text: HFText) -> None:
    whole = text.prefix
    assert whole is not None
    top_two = whole.fingerprint  # as built, the top two blocks learn
    adapted = adapt({"text_encoder": text}, plan(text_encoder={**LORA, "blocks": 2}))
    assert {name.split(".")[2] for name in adapted.parts["text_encoder"].holders} == {"1", "2"}
    assert text.prefix is not None
    assert text.prefix.fingerprint == top_two  # the same frozen blocks, so the same kept states serve


def test_the_outputs_of_a_frozen_encoder_are_cached(text: HFText, users: TransformerUserEncoder) -> None:
    adapt({"text_encoder": text, "user_encoder": users}, plan(user_encoder=LORA))
    assert text.prefix is not None
    torch.testing.assert_close(text.prefix.states(TEXTS), text.hidden(TEXTS), rtol=0, atol=0)


def test_targets_can_be_named(text: HFText) -> None:
    tree = {**LORA, "targets": ["key", "intermediate.dense"], "blocks": 1}
    adapted = adapt({"text_encoder": text}, plan(text_encoder=tree))
    top = "encoder.layer.2"
    assert adapted.parts["text_encoder"].holders == (f"{top}.attention.self.key", f"{top}.intermediate.dense")


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        (
            {"text_encoder": {**LORA, "targets": ["q_proj"]}},
            r"adapters.text_encoder.targets: BertModel has no linear layer 'q_proj'; a block has "
            r"attention.self.query, attention.self.key",
        ),
        ({"text_encoder": {**LORA, "blocks": 4}}, r"adapters.text_encoder.blocks: 4 asked for, but BertModel has 3"),
        ({"vision_encoder": LORA}, r"adapters.vision_encoder: the model has no such part; it has text_encoder, user"),
        ({"text_encoder": LORA, "train": ["text_encoder"]}, r"text_encoder has adapters, so it is not trained"),
        ({"text_encoder": LORA, "train": ["fusion"]}, r"adapters.train: the model has no part 'fusion'"),
        (
            {"text_encoder": LORA, "train": ["text_encoder.head"]},
            r"text_encoder.head: no such module with weights; text_encoder has backbone, projection",
        ),
        (
            {"text_encoder": LORA, "train": ["text_encoder.backbone.encoder"]},
            r"is in a module that is frozen or trained",
        ),
        ({"user_encoder": LORA, "train": ["user_encoder.blocks"]}, r"is in a module that is frozen or trained already"),
        ({"user_encoder": LORA, "train": ["user_encoder.norm", "user_encoder"]}, r"has adapters"),
    ],
)
def test_plans_that_do_not_fit_the_model_are_refused(
    text: HFText, users: TransformerUserEncoder, trees: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        adapt({"text_encoder": text, "user_encoder": users}, plan(**trees))


def test_adapters_on_a_part_without_blocks_are_refused(users: TransformerUserEncoder) -> None:
    fusion = nn.Linear(2, 2)
    with pytest.raises(RecipeError, match=r"adapters.fusion: Linear cannot have adapters; leave it out"):
        adapt({"fusion": fusion, "user_encoder": users}, plan(fusion=LORA))
    assert learning(fusion) == {"weight", "bias"}


def test_adapters_on_a_fresh_part_are_refused(text: HFText) -> None:
    with pytest.raises(
        RecipeError, match=r"adapters.text_encoder: the part starts fresh, and adapters need trained weights"
    ):
        adapt({"text_encoder": text}, plan(text_encoder=LORA), fresh=["text_encoder"])


def test_an_unsupported_architecture_is_an_error_that_names_the_supported_ones(tmp_path: Path) -> None:
    config = TimmConfig(architecture={"name": "resnet18", "channels": [4, 4, 8, 8]}, pool="mean", image_size=32)
    encoder = started(TimmVision, config, tmp_path / "resnet")
    with pytest.raises(RecipeError, match=r"not supported in ResNet; supported: Eva, SwinTransformer, Swin"):
        adapt({"vision_encoder": encoder}, plan(vision_encoder=LORA))


def test_layers_that_are_never_called_cannot_be_targets(tmp_path: Path) -> None:
    sizes = {"embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    config = TimmConfig(architecture={"name": "swinv2_tiny_window8_256", **sizes}, pool="mean", image_size=32)
    encoder = started(TimmVision, config, tmp_path / "swin")
    with pytest.raises(RecipeError, match=r"has no linear layer 'qkv'; a block has"):
        adapt({"vision_encoder": encoder}, plan(vision_encoder={**LORA, "targets": ["qkv"]}))


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        ({"text_encoder": {"type": "lora", "r": 0}}, "greater than or equal to 1"),
        ({"text_encoder": {"type": "houlsby", "width": 0}}, "greater than or equal to 1"),
        ({"text_encoder": {"type": "lora", "targets": []}}, "needs 1 or more entries"),
        ({"text_encoder": {"type": "lorra"}}, "did you mean 'lora'"),
        ({"train": ["fusion"]}, "give adapters to a part"),
        ({"text_encoder": LORA, "train": ["fusion", "fusion"]}, "train names something twice"),
        ({"text_encoder": {**LORA, "width": 3}}, "unknown key"),
        ({"blocks": 3}, "must be a mapping with `type`"),
    ],
)
def test_invalid_settings_are_refused(trees: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plan(**trees)


def test_a_plan_survives_a_round_trip(text: HFText) -> None:
    before = plan(text_encoder={**LORA, "targets": ["key"]}, user_encoder={"type": "houlsby", "parallel": True})
    assert AdapterPlan.model_validate(before.model_dump(mode="json")) == before


def test_a_plan_of_an_earlier_version_says_null_for_parts_without_adapters() -> None:
    found = plan(text_encoder=LORA, vision_encoder=None, user_encoder=None, train=[])
    assert found == plan(text_encoder=LORA)
    assert set(found.model_dump(mode="json")) == {"text_encoder", "train"}


def test_tensor_names_on_disk_are_those_of_peft(text: HFText) -> None:
    adapted = adapt({"text_encoder": text}, plan(text_encoder={"type": "ia3", "blocks": 1}))
    assert set(adapted.parts["text_encoder"].adapter_names.values()) == {
        f"base_model.model.encoder.layer.2.{name}.ia3_l"
        for name in ("attention.self.key", "attention.self.value", "output.dense")
    }
