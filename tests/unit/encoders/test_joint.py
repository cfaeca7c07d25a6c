"""Networks that read texts and images: their states are the library's, and nothing else changes them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.adapters.plan import AdapterPlan, adapt
from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs, TokenInputs, TokenStates, to_device
from pmmrec.encoders import VISUAL, JointEncoder
from pmmrec.encoders.joint_hf import HFJoint, HFJointConfig
from pmmrec.encoders.joint_layouts import LAYOUTS, VISUAL_LAYOUTS
from pmmrec.encoders.visual_bert import VisualBert, VisualBertConfig
from pmmrec.errors import PMMRecError
from pmmrec.packing import HostArray
from tests.support.tiny_encoders import IMAGE_SIZE, JOINT, tiny_joint

WORDS = ["red shoes for running on snow", "blue", "a pan"]
NAMES = sorted(JOINT)
CLASSES: dict[bool, tuple[Any, Any]] = {True: (VisualBert, VisualBertConfig), False: (HFJoint, HFJointConfig)}
TINY = {"vocab_size": 300, "max_tokens": 20}


def classes_of(name: str) -> tuple[Any, Any]:
    return CLASSES[name == "visual_bert"]


def config_of(name: str, **settings: Any) -> Any:
    architecture = {**tiny_joint(name), **settings.pop("architecture", {})}
    return classes_of(name)[1](**{"architecture": architecture, **TINY, "trainable_blocks": 1, **settings})


def built(name: str, folder: Path, **settings: Any) -> Any:
    """A tiny encoder with random weights, 6 wide."""
    encoder_class, config = classes_of(name)[0], config_of(name, **settings)
    folder.mkdir(exist_ok=True)
    encoder_class.start(config, folder, WORDS)
    torch.manual_seed(0)
    encoder = encoder_class(config, BuildContext(6, {"": Backbone(folder, is_pretrained=False)}))
    for key, tensor in encoder.backbone.state_dict().items():
        if tensor.is_floating_point() and "running" not in key:
            tensor.add_(0.1 * torch.randn(tensor.shape))  # cls tokens start at 0
    return encoder.eval()


def pixels() -> Tensor:
    return torch.randint(0, 256, (3, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=seeded())


def visual_tokens() -> Tensor:
    return torch.randn(3, 4, 5, generator=seeded())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def inputs_of(encoder: Any, places: list[int], lacking: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Some of the items, the first of which may lack a field; rows of a field that no item has stand in."""
    ours = range(len(places))
    there = {field: [place for place in ours if place or field != lacking] for field in ("text", "image")}
    has_U = {field: torch.tensor([place in found for place in ours]) for field, found in there.items()}
    index = {field: HostArray(found or [len(places)]) for field, found in there.items()}
    rows = {field: [places[place] for place in found] or [2] for field, found in there.items()}
    text = TokenInputs.of(encoder.text_spec.tokenizer.encode([WORDS[row] for row in rows["text"]]))
    text = dataclasses.replace(text, item_index_R=HostArray(index["text"].values[text.item_index_R.values]))
    fields = {"text": text, "image": PixelInputs(pixels()[rows["image"]], index["image"])}
    if isinstance(encoder, VisualBert):
        visual_UVD = visual_tokens()[places]
        states = TokenStates.of_even(visual_UVD, visual_UVD[:, 0])
        fields[VISUAL] = dataclasses.replace(states, length_R=states.length_R * has_U["image"].numpy())
    return fields, has_U


def by_library(name: str, encoder: Any, folder: Path, place: int) -> Tensor:
    """What the library itself, opening the saved folder, says of one item alone, pooled as `pool: mean` does."""
    model = type(encoder.backbone).from_pretrained(folder).eval()
    ids = torch.tensor(encoder.text_spec.tokenizer.encode([WORDS[place]]))
    if name == "visual_bert":
        return model(input_ids=ids, visual_embeds=visual_tokens()[[place]]).last_hidden_state.mean(dim=1)[0]
    normal = encoder.normalise(pixels()[[place]], torch.float32)
    if name == "vilt":
        return model(input_ids=ids, pixel_values=normal).last_hidden_state.mean(dim=1)[0]
    if name == "flava":
        return model(input_ids=ids, pixel_values=normal).multimodal_embeddings.mean(dim=1)[0]
    last = model.text_model(input_ids=ids).last_hidden_state[:, -1]  # the library pools elsewhere, see findings
    text = model.text_projection(last)
    return torch.cat([text, model.get_image_features(pixel_values=normal).pooler_output], dim=1)[0]


def test_every_network_of_the_matrix_has_a_tiny_configuration() -> None:
    assert set(JOINT) == set(LAYOUTS) | set(VISUAL_LAYOUTS)


@pytest.mark.parametrize("name", NAMES)
def test_every_network(name: str, tmp_path: Path) -> None:
    """States are the library's; those of an item do not depend on others, and saving changes nothing."""
    pool = {} if name in ("clip", "groupvit") else {"pool": "mean"}
    encoder, saved = built(name, tmp_path / "fresh", **pool), tmp_path / "saved"
    saved.mkdir()
    with torch.no_grad():
        encoder.save_backbone(saved, encoder.backbone.state_dict())
        together = encoder.whole(*inputs_of(encoder, [0, 1, 2]))
        for place in range(3):
            expected = by_library(name, encoder, saved, place)
            torch.testing.assert_close(together[place], expected, rtol=0, atol=1e-6)
            alone = encoder.whole(*inputs_of(encoder, [place]))
            torch.testing.assert_close(together[[place]], alone, rtol=0, atol=1e-6)
        encoder_class, config_class = classes_of(name)
        config = config_class(weights="saved", max_tokens=20, trainable_blocks=1, **pool)
        opened = encoder_class(config, BuildContext(6, {"": Backbone(saved, is_pretrained=True)})).eval()
        assert torch.equal(opened.whole(*inputs_of(encoder, [0, 1, 2])), together)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["text", "image"])
def test_a_field_that_an_item_lacks_is_seen_by_none_of_its_tokens(name: str, field: str, tmp_path: Path) -> None:
    encoder = built(name, tmp_path)
    with torch.no_grad():
        whole = encoder(*inputs_of(encoder, [0, 1, 2])).cls_RD
        lacking = encoder(*inputs_of(encoder, [0, 1, 2], lacking=field)).cls_RD
        alone = encoder(*inputs_of(encoder, [0], lacking=field)).cls_RD
    torch.testing.assert_close(lacking[1:], whole[1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(lacking[:1], alone, rtol=0, atol=1e-6)
    assert (lacking[0] - whole[0]).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_training_repeats_what_ranking_says_and_checkpoints_change_no_gradient(name: str, tmp_path: Path) -> None:
    """Without dropout; the library would shuffle the patches of ViLT and draw noise in GroupViT."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = built(
        name, tmp_path, trainable_blocks="all", architecture=quiet if name in ("vilt", "visual_bert") else {}
    )
    inputs = inputs_of(encoder, [0, 1, 2])
    ranked = encoder(*inputs).cls_RD

    def gradients() -> dict[str, Tensor]:
        encoder.train().zero_grad()
        trained = encoder(*inputs).cls_RD
        torch.testing.assert_close(trained, ranked, rtol=0, atol=0)
        trained.square().sum().backward()
        return {key: one.grad.clone() for key, one in encoder.named_parameters() if one.grad is not None}

    plain = gradients()
    assert set(plain) == {key for key, one in encoder.named_parameters() if one.requires_grad}
    encoder.checkpoint_activations()
    for key, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[key], rtol=0, atol=1e-6)
    with torch.device("meta"):
        dry = classes_of(name)[0](config_of(name), BuildContext(6, {"": Backbone(tmp_path, is_pretrained=False)}))
    fields, has_U = (to_device(one, torch.device("meta")) for one in inputs)
    assert dry.train()(fields, has_U).cls_RD.shape == (3, 6)


TRAINED = {  # of one block of each encoder
    "clip": r"(text|vision)_model\.(encoder\.layers\.1|final_layer_norm|post_layernorm)\..+"
    r"|(text|visual)_projection\..+",
    "flava": r"(text|image)_model\.encoder\.layer\.1\..+|multimodal_model\.(encoder|layernorm|cls_token).*"
    r"|(text|image)_to_mm_projection\..+",
    "groupvit": r"text_model\.encoder\.layers\.1\..+|vision_model\.encoder\.stages\.2\..+"
    r"|text_model\.final_layer_norm\..+|vision_model\.layernorm\..+|(text|visual)_projection\.[03]\..+",
    "vilt": r"encoder\.layer\.1\..+|layernorm\..+",
    "visual_bert": r"encoder\.layer\.1\..+",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_top_blocks_train_or_adapters_in_them(name: str, tmp_path: Path) -> None:
    encoder = built(name, tmp_path)
    for key, parameter in encoder.backbone.named_parameters():
        assert parameter.requires_grad == bool(re.fullmatch(TRAINED[name], key)), key
    before = encoder(*inputs_of(encoder, [0, 1, 2])).cls_RD
    plan = AdapterPlan.model_validate({"joint_encoder": {"type": "lora", "r": 2}})
    adapt({"joint_encoder": encoder}, plan)
    learned = [key for key, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert learned
    assert all("lora" in key for key in learned)
    assert torch.equal(encoder.eval()(*inputs_of(encoder, [0, 1, 2])).cls_RD, before)


def test_an_image_of_another_size_is_read_where_positions_can_be_stretched(tmp_path: Path) -> None:
    for name in ("clip", "flava", "vilt"):
        encoder = built(name, tmp_path / name)
        (tmp_path / name / "saved").mkdir()
        encoder.save_backbone(tmp_path / name / "saved", encoder.backbone.state_dict())
        config = HFJointConfig(weights="saved", max_tokens=20, image_size=16)
        opened = HFJoint(config, BuildContext(6, {"": Backbone(tmp_path / name / "saved", is_pretrained=True)}))
        fields, has_U = inputs_of(encoder, [0, 1, 2])
        small = dataclasses.replace(fields["image"], pixels_RCHW=fields["image"].pixels_RCHW[:, :, :16, :16])
        assert opened({**fields, "image": small}, has_U).cls_RD.isfinite().all()
        assert opened.reads["image"].size == 16


SHORT: dict[str, Any] = {"text_config": {"hiden_size": 8}}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("vilt", {"max_tokens": 50}, "max_tokens: 50 asked for, but architecture has positions for 24; say max_tokens: 24"),
    ("clip", {"pool": "mean"}, "pool: mean: has no effect, clip gives a vector of the text and one of the image"),
    (
        "vilt",
        {"architecture": {"image_size": 36}},
        "image_size: patches of 8 pixels do not fill 36; near sizes that work: 32, 40",
    ),
    ("vilt", {"trainable_blocks": 3}, "trainable_blocks: 3 asked for, but ViltModel has 2; choose 0 to 2, or all"),
    (
        "flava",
        {"architecture": {"multimodal_config": {"use_cls_token": False}}},
        "use_cls_token: false",
    ),
    ("visual_bert", {"architecture": {"bypass_transformer": True}}, "architecture: bypass_transformer: true"),
    ("vilt", {"architecture": {"model_type": "vlmo"}}, "'vlmo' is not read: neither transformers nor timm has it"),
    (
        "vilt",
        {"architecture": {"model_type": "visual_bert"}},
        "network says of an image; say type: visual_bert",
    ),
    ("vilt", {"architecture": {"model_type": "bert"}}, "'bert' is not known here; known: clip, flava, groupvit, vilt"),
    (
        "clip",
        {"architecture": SHORT},
        "text_config.hiden_size: clip_text_model has no such setting; did you mean 'hidden_size'?",
    ),
    ("clip", {"architecture": {"text_config": 8}}, "architecture.text_config: must hold settings, found 8"),
    ("vilt", {"architecture": {"vocab_size": 9}}, "architecture.vocab_size: is set for you"),
    ("clip", {"architecture": {"vision_config": {"image_size": 0}}}, "architecture: image_size: 0: must be above 0"),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_no_network_can_do_is_refused_in_one_line(
    tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(PMMRecError, match=re.escape(message)) as error:
        built(name, tmp_path, **settings)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def saved_vilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vilt")
    encoder = built("vilt", folder / "fresh")
    (folder / "saved").mkdir()
    encoder.save_backbone(folder / "saved", encoder.backbone.state_dict())
    return folder / "saved"


def opened(folder: Path, **settings: Any) -> JointEncoder:
    config = HFJointConfig(weights="saved", **{"max_tokens": 20, **settings})
    return HFJoint(config, BuildContext(6, {"": Backbone(folder, is_pretrained=True)}))


def broken(tmp_path: Path, saved: Path, change: str) -> Path:
    """A copy of a folder with one fault."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if change in ("model.safetensors", "tokenizer.json", "config.json"):
        (tmp_path / change).unlink()
        return tmp_path
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **json.loads(change)}))
    return tmp_path


FOLDERS = [
    ("model.safetensors", "its model.safetensors cannot be opened"),
    ("tokenizer.json", "has no tokenizer; copy tokenizer.json of the same backbone there"),
    ("config.json", "config.json: cannot be read"),
    ('{"vocab_size": 200}', "ids but its embedding 200 rows; the two do not belong together"),
    ('{"image_size": 64}', "tensor embeddings.position_embeddings has shape (1, 17, 8), but config.json asks for"),
    ('{"is_decoder": true}', "is_decoder: true: attention is causal"),
    ('{"auto_map": {}}', "auto_map asks for code outside the folder"),
]


@pytest.mark.parametrize(("change", "message"), FOLDERS, ids=lambda value: value[:30])
def test_a_broken_folder_is_refused_in_one_line(tmp_path: Path, saved_vilt: Path, change: str, message: str) -> None:
    with pytest.raises(PMMRecError, match=re.escape(message)) as error:
        opened(broken(tmp_path, saved_vilt, change))
    assert "\n" not in str(error.value)


def test_frozen_states_are_not_kept_and_it_says_why(saved_vilt: Path) -> None:
    with pytest.raises(PMMRecError, match=r"^prefix_cache: states of ViltModel are not kept, since it reads texts and"):
        _ = opened(saved_vilt, trainable_blocks=0).prefix
    assert opened(saved_vilt, trainable_blocks="all").prefix is None


def test_the_adapters_of_top_blocks_stand_in_both_encoders(tmp_path: Path) -> None:
    blocks = built("clip", tmp_path).host.blocks
    assert [name.partition("_model")[0] for name in blocks[-2:]] == ["vision", "text"]
    assert [name[-1] for name in blocks] == ["0", "0", "1", "1"]
