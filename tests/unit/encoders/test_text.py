"""Text through encoders of transformers: fresh, pretrained, partly frozen, saved and read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, CLIPConfig, CLIPModel

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PrefixInputs, TokenInputs
from pmmrec.encoders.packed_attention import NAME
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.encoders.text_layouts import LAYOUTS
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.packing import HostArray
from pmmrec.rows import laid_out
from tests.support.plain_texts import LONG, ROUNDED, plain_states, plain_twin, precise, token_inputs
from tests.support.tiny_encoders import SIZES, tiny_text, whole_of

Fresh = Callable[..., HFText]


def in_order(rows: Tensor, inputs: TokenInputs) -> Tensor:
    return laid_out(rows, inputs.item_index_R, len(inputs.item_index_R))


@pytest.mark.parametrize("depth", [1, "all"])
@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_gradients_reach_exactly_what_trains_of_every_known_architecture(
    fresh_text: Fresh, texts: list[str], model_type: str, depth: Any
) -> None:
    encoder = fresh_text(tiny_text(model_type), pool=whole_of(model_type), trainable_blocks=depth)
    states = encoder(token_inputs(encoder, texts))
    generator = torch.Generator().manual_seed(0)
    (states.cls_RD * torch.randn(states.cls_RD.shape, generator=generator)).sum().backward()
    for name, parameter in encoder.backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert any(parameter.requires_grad for parameter in encoder.backbone.parameters())


@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_packed_texts_are_what_transformers_makes_of_padded_ones(
    fresh_text: Fresh, tmp_path: Path, model_type: str
) -> None:
    """Values of each token, and gradients of each weight."""
    encoder = precise(fresh_text(tiny_text(model_type), pool="mean", trainable_blocks="all"))
    twin, inputs = plain_twin(encoder, tmp_path / "saved"), token_inputs(encoder, LONG)
    theirs = plain_states(encoder, twin, LONG)
    assert len(set(map(len, theirs))) > 2
    expected = torch.cat([theirs[row] for row in inputs.item_index_R.values.tolist()])
    actual = encoder.hidden(inputs)
    rounded = ROUNDED.get(model_type, 0.0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=max(rounded, 1e-12))
    weights = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(0))
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    of_twin = dict(twin.named_parameters())
    learned = [name for name, weight in encoder.backbone.named_parameters() if weight.requires_grad]
    for name in learned:
        ours = encoder.backbone.get_parameter(name).grad
        torch.testing.assert_close(ours, of_twin[name].grad, rtol=rounded, atol=max(rounded, 1e-10))
    assert len(learned) > 10


def test_the_cls_vector_is_token_zero_and_the_tokens_are_the_others(
    fresh_text: Fresh, texts: list[str], tmp_path: Path
) -> None:
    encoder = fresh_text().eval().double()
    inputs = token_inputs(encoder, texts)
    states = encoder(inputs)
    plain = plain_states(encoder, plain_twin(encoder, tmp_path / "saved"), texts)
    for row, item in enumerate(inputs.item_index_R.values.tolist()):
        projected_TD = encoder.projection(plain[item])
        torch.testing.assert_close(states.cls_RD[row], projected_TD[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(states.of_item(row), projected_TD[1:], rtol=0, atol=1e-12)


def test_the_mean_is_over_the_tokens_of_each_text_alone(fresh_text: Fresh, texts: list[str], tmp_path: Path) -> None:
    encoder = fresh_text(pool="mean").eval().double()
    inputs = token_inputs(encoder, texts)
    together = in_order(encoder(inputs).cls_RD, inputs)
    twin = plain_twin(encoder, tmp_path / "saved")
    alone = [encoder.projection(plain_states(encoder, twin, [text])[0]).mean(0) for text in texts]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-12)  # float64; measured 1e-16


@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_no_text_changes_another(fresh_text: Fresh, texts: list[str], model_type: str) -> None:
    encoder = precise(fresh_text(tiny_text(model_type), pool="mean", trainable_blocks=0))
    inputs = token_inputs(encoder, texts)
    alone = torch.cat([encoder(token_inputs(encoder, [text])).cls_RD for text in texts])
    tolerance = ROUNDED.get(model_type, 1e-12)
    torch.testing.assert_close(in_order(encoder(inputs).cls_RD, inputs), alone, rtol=0, atol=tolerance)


def test_packed_texts_are_read_where_transformers_thinks_that_a_model_cannot(
    fresh_text: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BertModel, "_can_set_attn_implementation", lambda: False)
    encoder = fresh_text()
    assert encoder.backbone.config._attn_implementation == NAME


def test_a_backbone_that_is_called_without_a_packing_says_so(fresh_text: Fresh) -> None:
    encoder = fresh_text()
    with pytest.raises(TypeError, match="reads packed texts; call it with packing="):
        encoder.backbone(input_ids=torch.ones(2, 3, dtype=torch.int64))


def test_images_are_refused(fresh_text: Fresh) -> None:
    encoder = fresh_text()
    with pytest.raises(TypeError, match="reads states of texts, not of images"):
        encoder(PrefixInputs(torch.zeros(1, 8), None, HostArray([0])))


def test_the_frozen_prefix_says_the_same_twice_in_training(fresh_text: Fresh, texts: list[str]) -> None:
    encoder = fresh_text(trainable_blocks=1).train()
    seen: list[Tensor] = []
    encoder.backbone.encoder.layer[1].register_forward_hook(lambda _block, _inputs, output: seen.append(output))
    first, second = (encoder(token_inputs(encoder, texts)).cls_RD for _ in range(2))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(first, second)  # the dropout of the top block is alive


def test_a_fully_frozen_backbone_trains_its_projection_only(fresh_text: Fresh) -> None:
    encoder = fresh_text(trainable_blocks=0)
    names = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert names == {"projection.weight", "projection.bias"}
    assert not any(module.training for module in encoder.backbone.modules())


def test_a_saved_backbone_opens_with_plain_transformers_and_says_the_same(
    fresh_text: Fresh, texts: list[str], tmp_path: Path
) -> None:
    encoder = fresh_text().eval()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    assert "attn_implementation" not in (tmp_path / "saved" / "config.json").read_text()
    model, tokenizer = AutoModel.from_pretrained(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer(texts)["input_ids"] == encoder.tokenizer.encode(texts)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in encoder.backbone.state_dict().items())
    theirs, inputs = tokenizer(texts, padding=True, return_tensors="pt"), token_inputs(encoder, texts)
    ours = inputs.packing.padded(encoder.double().hidden(inputs))
    expected = model.eval().double()(**theirs).last_hidden_state[inputs.item_index_R.values]
    is_token = theirs["attention_mask"][inputs.item_index_R.values].bool()
    torch.testing.assert_close(ours[is_token], expected[is_token], rtol=0, atol=1e-12)


def test_a_real_pretrained_encoder_says_what_plain_transformers_says(minilm: Path, tmp_path: Path) -> None:
    config = HFTextConfig(weights="minilm", trainable_blocks=2)
    encoder = HFText(config, BuildContext(384, {"": Backbone(minilm, is_pretrained=True)})).eval()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    titles = ["Red shoes for running on snow", "a cast-iron pan"]
    ours = encoder.double().hidden(token_inputs(encoder, titles))
    for folder in (minilm, tmp_path / "saved"):
        plain = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
        for of_title, ids in zip(
            AutoTokenizer.from_pretrained(folder)(titles, padding=False)["input_ids"],
            encoder.tokenizer.encode(titles),
            strict=True,
        ):
            assert [token_id for token_id in of_title if token_id] == ids  # its tokenizer pads with 0
        torch.testing.assert_close(ours, torch.cat(plain_states(encoder, plain, titles)), rtol=0, atol=1e-10)


def test_a_pretrained_encoder_brings_meaning(minilm: Path) -> None:
    encoder = HFText(
        HFTextConfig(weights="minilm"), BuildContext(384, {"": Backbone(minilm, is_pretrained=True)})
    ).eval()
    titles = ["red running shoes", "crimson sneakers for jogging", "a cast-iron frying pan"]
    inputs = token_inputs(encoder, titles)
    mean_RD = in_order(inputs.packing.mean(encoder.hidden(inputs)), inputs)
    near, far = torch.cosine_similarity(mean_RD[[0, 0]], mean_RD[[1, 2]])
    assert near > 0.6
    assert far < 0.3


def test_what_was_saved_is_read_by_the_same_names(fresh_text: Fresh, tmp_path: Path) -> None:
    encoder = fresh_text()
    state = {name: torch.randn_like(tensor) for name, tensor in encoder.backbone.state_dict().items()}
    encoder.save_backbone(tmp_path / "saved", state)
    read = encoder.read_backbone(tmp_path / "saved")
    assert list(read) == list(state)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_a_state_that_is_not_the_backbones_is_refused(fresh_text: Fresh, tmp_path: Path) -> None:
    encoder = fresh_text()
    state = dict(encoder.backbone.state_dict())
    state.pop("encoder.layer.0.output.dense.bias")
    with pytest.raises(CheckpointError, match=r"1 tensors do not fit.*encoder\.layer\.0\.output\.dense\.bias"):
        encoder.save_backbone(tmp_path / "saved", state)


def test_a_dry_build_reads_no_weights(minilm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no_weights"
    shutil.copytree(minilm, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with torch.device("meta"):
        encoder = HFText(HFTextConfig(weights="minilm"), BuildContext(8, {"": Backbone(folder, is_pretrained=True)}))
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert sum(parameter.numel() for parameter in encoder.backbone.parameters()) == 22_565_376


def test_weights_load_in_float32_whatever_they_were_saved_in(fresh_text: Fresh, tmp_path: Path) -> None:
    encoder = fresh_text()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    AutoModel.from_pretrained(tmp_path / "saved").to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    again = HFText(
        HFTextConfig(weights="saved", max_tokens=20),
        BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)}),
    )
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_the_same_seed_draws_the_same_fresh_backbone(fresh_text: Fresh) -> None:
    one, other = fresh_text(folder="one"), fresh_text(folder="other")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_configuration_is_fitted_to_the_vocabulary(fresh_text: Fresh, tmp_path: Path) -> None:
    encoder = fresh_text(vocab_size=9000)
    config = json.loads((tmp_path / "fresh" / "config.json").read_text())
    assert config["vocab_size"] == encoder.backbone.embeddings.word_embeddings.num_embeddings < 400
    assert config["pad_token_id"] == 0


def test_texts_longer_than_the_positions_are_an_error(fresh_text: Fresh, bert: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="max_tokens: 25 asked for, but architecture has positions for 24"):
        fresh_text(max_tokens=25)
    with pytest.raises(RecipeError, match="max_tokens: 24 asked for, but architecture has positions for 23"):
        fresh_text({**bert, "model_type": "roberta"}, folder="roberta", max_tokens=24)


def test_all_positions_of_a_roberta_can_be_used(fresh_text: Fresh, bert: dict[str, Any]) -> None:
    encoder = fresh_text({**bert, "model_type": "roberta"}, max_tokens=23).eval()
    inputs = token_inputs(encoder, ["shoes " * 50])
    assert inputs.packing.longest == 23
    assert encoder(inputs).cls_RD.isfinite().all()


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(fresh_text: Fresh, tmp_path: Path, minilm: Path) -> None:
    encoder = fresh_text()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    shutil.copy(minilm / "tokenizer.json", tmp_path / "saved" / "tokenizer.json")
    with pytest.raises(CheckpointError, match="its tokenizer has 30527 ids but its embedding"):
        HFText(
            HFTextConfig(weights="saved", max_tokens=20),
            BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)}),
        )


def test_cls_of_a_causal_backbone_is_an_error(fresh_text: Fresh) -> None:
    with pytest.raises(RecipeError, match="token 0 of opt sees nothing but itself; use last or mean"):
        fresh_text(tiny_text("opt"))


def test_pickled_weights_are_never_read(fresh_text: Fresh, tmp_path: Path) -> None:
    encoder = fresh_text()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    torch.save(encoder.backbone.state_dict(), tmp_path / "saved" / "pytorch_model.bin")
    (tmp_path / "saved" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"its model\.safetensors cannot be opened"):
        HFText(
            HFTextConfig(weights="saved", max_tokens=20),
            BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)}),
        )


def test_weights_of_another_size_are_refused(fresh_text: Fresh, bert: dict[str, Any], tmp_path: Path) -> None:
    small = fresh_text({**bert, "num_hidden_layers": 2})
    small.save_backbone(tmp_path / "saved", small.backbone.state_dict())
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"16 tensors are missing, such as encoder\.layer\.2\."):
        HFText(
            HFTextConfig(weights="saved", max_tokens=20),
            BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)}),
        )


def test_a_checkpoint_with_heads_gives_its_encoder(tmp_path: Path, fresh_text: Fresh, bert: dict[str, Any]) -> None:
    encoder = fresh_text()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    with_pooler = BertModel(BertConfig.from_pretrained(tmp_path / "saved"))
    with_pooler.save_pretrained(tmp_path / "saved")
    again = HFText(
        HFTextConfig(weights="saved", max_tokens=20),
        BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)}),
    )
    assert not any("pooler" in name for name, _ in again.named_parameters())
    assert torch.equal(again.backbone.embeddings.word_embeddings.weight, with_pooler.embeddings.word_embeddings.weight)


def test_the_text_half_of_a_clip_checkpoint_is_read(tmp_path: Path, fresh_text: Fresh, texts: list[str]) -> None:
    fresh_text()  # leaves a tokenizer of 300 ids at most
    torch.manual_seed(0)
    images = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    text = {**SIZES, "vocab_size": 300, "max_position_embeddings": 24, "eos_token_id": 3, "bos_token_id": 2}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=images, projection_dim=4)).eval()
    clip.save_pretrained(tmp_path / "clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tmp_path / "fresh" / name, tmp_path / "clip" / name)
    config = HFTextConfig(weights="clip", pool="mean", max_tokens=20)
    encoder = HFText(config, BuildContext(6, {"": Backbone(tmp_path / "clip", is_pretrained=True)})).eval()
    state = clip.text_model.state_dict()
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, state[name.removeprefix("text_model.")])  # a prefix of earlier releases
    inputs, theirs = token_inputs(encoder, texts), plain_states(encoder, clip.double().text_model, texts)
    expected = torch.cat([theirs[row] for row in inputs.item_index_R.values.tolist()])
    torch.testing.assert_close(encoder.double().hidden(inputs), expected, rtol=0, atol=1e-12)
    encoder.float()
    encoder.save_backbone(tmp_path / "half", encoder.backbone.state_dict())
    assert encoder.read_backbone(tmp_path / "half").keys() == encoder.backbone.state_dict().keys()


def saved_without_cls(fresh_text: Fresh, folder: Path, **settings: Any) -> Backbone:
    encoder = fresh_text(**settings)
    encoder.save_backbone(folder, encoder.backbone.state_dict())
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    return Backbone(folder, is_pretrained=True)


def test_a_first_word_is_never_taken_for_the_whole_text(fresh_text: Fresh, tmp_path: Path) -> None:
    backbone = saved_without_cls(fresh_text, tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"puts no special token before a text.*or use pool: mean"):
        HFText(HFTextConfig(weights="saved", max_tokens=20), BuildContext(6, {"": backbone}))
    pooled = HFText(HFTextConfig(weights="saved", max_tokens=20, pool="mean"), BuildContext(6, {"": backbone}))
    assert any("the first word is none of the item's tokens" in warning for warning in pooled.warnings)


@pytest.mark.parametrize(("said", "message"), [(None, "pad_token_id: null, but roberta"), (3, "pads with id 0, but")])
def test_positions_are_counted_from_the_padding_of_the_tokenizer(
    fresh_text: Fresh, tmp_path: Path, bert: dict[str, Any], said: int | None, message: str
) -> None:
    encoder = fresh_text({**bert, "model_type": "roberta"})
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    path = tmp_path / "saved" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": said}))
    with pytest.raises(CheckpointError, match=message):
        HFText(
            HFTextConfig(weights="saved", max_tokens=20),
            BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)}),
        )
