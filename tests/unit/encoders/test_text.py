"""Text through encoders of transformers: fresh, pretrained, partly frozen, saved and read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, CLIPConfig, CLIPModel

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import TokenInputs
from pmmrec.encoders.text import LAYOUTS, HFText, HFTextConfig
from pmmrec.errors import CheckpointError, RecipeError

Fresh = Callable[..., HFText]
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
OTHER_NAMES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
    "opt": {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "word_embed_proj_dim": 4,
    },
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "electra": {**SIZES, "embedding_size": 4},
    "albert": {**SIZES, "embedding_size": 4},
}


def rows_of(token_id_RT: Tensor, is_valid_RT: Tensor) -> TokenInputs:
    return TokenInputs(token_id_RT, is_valid_RT, torch.arange(len(token_id_RT)))


def token_rows(encoder: HFText, texts: list[str]) -> tuple[Tensor, Tensor]:
    rows = encoder.tokenizer.encode(texts)
    longest = max(map(len, rows))
    token_id_RT = torch.tensor([row + [encoder.tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    return token_id_RT, torch.tensor([[place < len(row) for place in range(longest)] for row in rows])


@pytest.mark.parametrize("depth", [1, "all"])
@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_gradients_reach_exactly_what_trains_of_every_known_architecture(
    fresh_text: Fresh, texts: list[str], model_type: str, depth: Any
) -> None:
    architecture = {"model_type": model_type, "max_position_embeddings": 40, **OTHER_NAMES.get(model_type, SIZES)}
    encoder = fresh_text(architecture, pool="mean" if LAYOUTS[model_type].is_causal else "cls", trainable_blocks=depth)
    states = encoder(rows_of(*token_rows(encoder, texts)))
    generator = torch.Generator().manual_seed(0)
    (states.cls_RD * torch.randn(states.cls_RD.shape, generator=generator)).sum().backward()
    for name, parameter in encoder.backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert any(parameter.requires_grad for parameter in encoder.backbone.parameters())


def test_the_cls_vector_is_token_zero_and_the_tokens_are_the_others(fresh_text: Fresh, texts: list[str]) -> None:
    encoder = fresh_text().eval()
    token_id_RT, is_valid_RT = token_rows(encoder, texts)
    states = encoder(rows_of(token_id_RT, is_valid_RT))
    hidden_RTD = encoder.backbone(token_id_RT, attention_mask=is_valid_RT.long()).last_hidden_state
    projected_RTD = encoder.projection(hidden_RTD)
    assert torch.equal(states.cls_RD, projected_RTD[:, 0])
    assert torch.equal(states.tokens_RTD, projected_RTD[:, 1:])
    assert torch.equal(states.is_valid_RT, is_valid_RT[:, 1:])


def test_the_mean_is_over_the_tokens_of_each_text_alone(fresh_text: Fresh, texts: list[str]) -> None:
    encoder = fresh_text(pool="mean").eval().double()
    together = encoder(rows_of(*token_rows(encoder, texts))).cls_RD
    alone = []
    for text in texts:
        token_id_RT, is_valid_RT = token_rows(encoder, [text])
        hidden_RTD = encoder.backbone(token_id_RT, attention_mask=is_valid_RT.long()).last_hidden_state
        alone.append(encoder.projection(hidden_RTD)[0].mean(0))
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-12)  # float64; measured 1e-16


def test_padding_changes_no_text(fresh_text: Fresh, texts: list[str]) -> None:
    encoder = fresh_text().eval().double()
    token_id_RT, is_valid_RT = token_rows(encoder, texts)
    wider_id_RT = torch.nn.functional.pad(token_id_RT, (0, 4), value=encoder.tokenizer.pad_token_id)
    wider = encoder(rows_of(wider_id_RT, torch.nn.functional.pad(is_valid_RT, (0, 4))))
    torch.testing.assert_close(wider.cls_RD, encoder(rows_of(token_id_RT, is_valid_RT)).cls_RD, rtol=0, atol=1e-12)


def test_the_frozen_prefix_says_the_same_twice_in_training(fresh_text: Fresh, texts: list[str]) -> None:
    encoder = fresh_text(trainable_blocks=1).train()
    seen: list[Tensor] = []
    encoder.backbone.encoder.layer[1].register_forward_hook(lambda _block, _inputs, output: seen.append(output))
    first, second = (encoder(rows_of(*token_rows(encoder, texts))).cls_RD for _ in range(2))
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
    model, tokenizer = AutoModel.from_pretrained(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    theirs = tokenizer(texts, padding=True, return_tensors="pt")
    token_id_RT, is_valid_RT = token_rows(encoder, texts)
    assert torch.equal(theirs["input_ids"], token_id_RT)
    ours = encoder.backbone(token_id_RT, attention_mask=is_valid_RT.long()).last_hidden_state
    assert torch.equal(model.eval()(**theirs).last_hidden_state, ours)


def test_a_real_pretrained_encoder_says_what_plain_transformers_says(minilm: Path, tmp_path: Path) -> None:
    config = HFTextConfig(weights="minilm", trainable_blocks=2)
    encoder = HFText(config, BuildContext(384, {"": Backbone(minilm, is_pretrained=True)})).eval()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    titles = ["Red shoes for running", "a cast-iron pan"]
    token_id_RT, is_valid_RT = token_rows(encoder, titles)
    ours = encoder.backbone(token_id_RT, attention_mask=is_valid_RT.long()).last_hidden_state
    for folder in (minilm, tmp_path / "saved"):
        plain = AutoModel.from_pretrained(folder).eval()
        theirs = AutoTokenizer.from_pretrained(folder)(titles, padding=True, return_tensors="pt")
        assert torch.equal(theirs["input_ids"][:, : token_id_RT.shape[1]], token_id_RT)
        assert torch.equal(plain(token_id_RT, is_valid_RT.long()).last_hidden_state, ours)


def test_a_pretrained_encoder_brings_meaning(minilm: Path) -> None:
    encoder = HFText(
        HFTextConfig(weights="minilm"), BuildContext(384, {"": Backbone(minilm, is_pretrained=True)})
    ).eval()
    titles = ["red running shoes", "crimson sneakers for jogging", "a cast-iron frying pan"]
    token_id_RT, is_valid_RT = token_rows(encoder, titles)
    hidden_RTD = encoder.backbone(token_id_RT, attention_mask=is_valid_RT.long()).last_hidden_state
    mean_RD = torch.where(is_valid_RT[:, :, None], hidden_RTD, 0.0).sum(1)
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
    token_id_RT, is_valid_RT = token_rows(encoder, ["shoes " * 50])
    assert token_id_RT.shape[1] == 23
    assert encoder(rows_of(token_id_RT, is_valid_RT)).cls_RD.isfinite().all()


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
    with pytest.raises(RecipeError, match="token 0 of opt sees nothing but itself; use mean"):
        fresh_text({"model_type": "opt", "max_position_embeddings": 40, **OTHER_NAMES["opt"]})


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
    token_id_RT, is_valid_RT = token_rows(encoder, texts)
    theirs = clip.text_model(input_ids=token_id_RT, attention_mask=is_valid_RT.long()).last_hidden_state
    assert torch.equal(encoder.hidden(rows_of(token_id_RT, is_valid_RT)), theirs)
    encoder.save_backbone(tmp_path / "half", encoder.backbone.state_dict())
    assert encoder.read_backbone(tmp_path / "half").keys() == encoder.backbone.state_dict().keys()


def test_one_origin_must_be_given(bert: dict[str, Any]) -> None:
    for settings in ({}, {"weights": "minilm", "architecture": bert}):
        with pytest.raises(ValidationError, match="give one of `weights`"):
            HFTextConfig(**settings)


def test_a_vocabulary_for_a_pretrained_backbone_is_an_error() -> None:
    with pytest.raises(ValidationError, match="vocab_size: has no effect"):
        HFTextConfig(weights="minilm", vocab_size=500)


def test_settings_survive_a_round_trip(bert: dict[str, Any]) -> None:
    for config in (HFTextConfig(weights="minilm"), HFTextConfig(architecture=bert, trainable_blocks="all")):
        assert HFTextConfig.model_validate(config.model_dump(mode="json")) == config


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
