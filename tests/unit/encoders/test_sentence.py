"""A folder of sentence-transformers says how texts are pooled and lowercased; a recipe that says so itself wins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import TokenInputs, TokenStates
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.encoders.weights import WEIGHTS
from pmmrec.errors import CheckpointError, RecipeError
from tests.support.tiny_encoders import tiny_text

TEXTS = ["Red shoe for a RUN", "blue"]
SWITCHES = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}


def sentence_folder(folder: Path, pooling: dict[str, Any], *more: str, **texts: Any) -> Path:
    """Write what sentence-transformers writes beside a backbone: `pooling` and the kinds of modules after it."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *((kind, f"{2 + i}_{kind}") for i, kind in enumerate(more))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, **texts}))
    return folder


@pytest.fixture
def saved(fresh_text: Callable[..., HFText], tmp_path: Path) -> Path:
    """A tiny bert in a folder of transformers alone."""
    encoder = fresh_text()
    encoder.backbone.save_pretrained(tmp_path / "saved")
    encoder.tokenizer.save(tmp_path / "saved")
    return tmp_path / "saved"


def opened(folder: Path, *, is_pretrained: bool = True, **settings: Any) -> HFText:
    config = HFTextConfig(weights="saved", **{"max_tokens": 20, **settings})
    torch.manual_seed(0)
    return HFText(config, BuildContext(6, {"": Backbone(folder, is_pretrained)})).eval()


def states(encoder: HFText, texts: list[str] = TEXTS) -> TokenStates:
    return encoder(TokenInputs.of(encoder.tokenizer.encode(texts)))


def one_row(encoder: HFText) -> TokenInputs:
    return TokenInputs.of(encoder.tokenizer.encode(TEXTS[:1]))


def test_without_modules_the_whole_is_token_zero_and_case_counts(saved: Path) -> None:
    encoder = opened(saved)
    assert encoder.warnings == ()
    assert torch.equal(states(encoder).cls_RD, states(opened(saved, pool="cls", lowercase=False)).cls_RD)


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ({**SWITCHES, "pooling_mode_mean_tokens": True}, "mean"),
        ({**SWITCHES, "pooling_mode_cls_token": True}, "cls"),
        ({"embedding_dimension": 8, "pooling_mode": "mean"}, "mean"),
        ({"embedding_dimension": 8, "pooling_mode": ["cls"]}, "cls"),
        ({"word_embedding_dimension": 8}, "mean"),  # its default
        ({**SWITCHES, "pooling_mode_max_tokens": True}, "max"),
        ({**SWITCHES, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
@pytest.mark.parametrize("lowercase", [True, False])
def test_pooling_and_case_of_the_folder_count_where_the_recipe_is_silent(
    saved: Path, pooling: dict[str, Any], pool: str, lowercase: bool
) -> None:
    sentence_folder(saved, pooling, do_lower_case=lowercase)
    encoder = opened(saved)
    expected = states(opened(saved, pool=pool, lowercase=lowercase))
    assert torch.equal(states(encoder).cls_RD, expected.cls_RD)
    told = [warning.partition(", as ")[0] for warning in encoder.warnings]
    assert told == [f"pool: {pool}"] * (pool != "cls") + ["lowercase: true"] * lowercase


@pytest.mark.parametrize("pool", ["cls", "mean", "max", "last"])
def test_the_whole_of_a_text_by_each_pooling_in_loops(saved: Path, pool: str) -> None:
    encoder = opened(saved, pool=pool)
    for text in TEXTS:
        token_TH = encoder.hidden(TokenInputs.of(encoder.tokenizer.encode([text])))
        expected = {
            "cls": token_TH[0],
            "mean": torch.stack(list(token_TH)).sum(0) / len(token_TH),
            "max": torch.stack([max(column) for column in token_TH.T]),
            "last": token_TH[-1],
        }[pool]
        inputs = TokenInputs.of(encoder.tokenizer.encode([text, *TEXTS]))
        place = list(inputs.item_index_R.values).index(0)
        torch.testing.assert_close(encoder.pooled(inputs)[place], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(encoder(inputs).cls_RD[place], encoder.projection(expected), rtol=0, atol=1e-6)


def test_the_pooler_of_the_architecture_is_read_trained_and_saved(saved: Path, tmp_path: Path) -> None:
    model = BertModel(BertConfig.from_pretrained(saved), add_pooling_layer=True).eval()
    model.save_pretrained(saved)
    encoder, inputs = opened(saved, pool="pooler", trainable_blocks=1), TokenInputs.of([[1, 20, 30, 2], [1, 9, 2]])
    expected = torch.cat([model(input_ids=torch.tensor([row])).pooler_output for row in ([1, 20, 30, 2], [1, 9, 2])])
    torch.testing.assert_close(encoder.pooled(inputs), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder(inputs).cls_RD, encoder.projection(expected), rtol=0, atol=1e-6)
    kept = encoder.prefix.at_cut(inputs)
    torch.testing.assert_close(encoder(kept).cls_RD, encoder(inputs).cls_RD, rtol=0, atol=0)
    encoder(inputs).cls_RD.square().sum().backward()
    assert encoder.backbone.pooler.dense.weight.grad.abs().sum() > 0
    encoder.save_backbone(tmp_path / "kept", encoder.backbone.state_dict())
    assert torch.equal(opened(tmp_path / "kept", pool="pooler").pooled(inputs), encoder.pooled(inputs))
    assert sorted(encoder.read_backbone(tmp_path / "kept")) == sorted(encoder.backbone.state_dict())
    whole = opened(saved, pool="pooler", trainable_blocks=0)
    whole.gives_tokens = False
    torch.testing.assert_close(whole.prefix.states(inputs), expected, rtol=0, atol=1e-6)


def test_a_pooler_that_there_is_none_of_is_refused(fresh_text: Callable[..., HFText]) -> None:
    with pytest.raises(RecipeError, match="pool: gpt2 has no pooler; use mean, max, last"):
        fresh_text(tiny_text("gpt2"), pool="pooler")


def with_dense(folder: Path, activation: str = "Tanh") -> tuple[Path, nn.Linear]:
    """A folder with a Dense from 8 to 5 and a Normalize above its pooling."""
    sentence_folder(folder, {**SWITCHES, "pooling_mode_mean_tokens": True}, "Dense", "Normalize")
    (folder / "2_Dense").mkdir()
    path = f"torch.nn.modules.activation.{activation}"
    config = {"in_features": 8, "out_features": 5, "bias": True, "activation_function": path}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    linear = nn.Linear(8, 5)
    save_file({f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}, folder / "2_Dense" / WEIGHTS)
    return folder, linear


def alone(encoder: HFText) -> HFText:
    encoder.gives_tokens = False
    return encoder


@pytest.mark.parametrize("depth", [0, 1])
def test_dense_and_normalize_stand_above_the_pooling_where_the_recipe_asks(
    saved: Path, tmp_path: Path, depth: int
) -> None:
    folder, linear = with_dense(saved)
    encoder = alone(opened(folder, sentence_modules=True, trainable_blocks=depth))
    assert not any("left out" in warning for warning in encoder.warnings)
    inputs = TokenInputs.of(encoder.tokenizer.encode(TEXTS))
    mean_RH = inputs.packing.mean(encoder.hidden(inputs))
    dense_RH = torch.tanh(mean_RH @ linear.weight.T + linear.bias)
    expected = dense_RH / dense_RH.norm(dim=1, keepdim=True)
    torch.testing.assert_close(encoder.pooled(inputs), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder(inputs).cls_RD, encoder.projection(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder(encoder.prefix.at_cut(inputs)).cls_RD, encoder(inputs).cls_RD, rtol=0, atol=0)
    assert all(weight.requires_grad == (depth > 0) for weight in encoder.sentence.parameters())
    encoder.save_backbone(tmp_path / "kept", encoder.backbone.state_dict())
    again = alone(opened(tmp_path / "kept", sentence_modules=True))
    torch.testing.assert_close(again.pooled(inputs), encoder.pooled(inputs), rtol=0, atol=0)


def test_another_dense_has_another_fingerprint(saved: Path) -> None:
    found = []
    for _ in range(2):
        shutil.rmtree(saved / "2_Dense", ignore_errors=True)
        found.append(alone(opened(with_dense(saved)[0], sentence_modules=True, trainable_blocks=0)).prefix.fingerprint)
    assert found[0] != found[1]


def test_a_dense_and_a_model_that_reads_tokens_do_not_go_together(saved: Path) -> None:
    encoder = opened(with_dense(saved)[0], sentence_modules=True)
    with pytest.raises(RecipeError, match="sentence_modules: leaves one vector of a text, but tokens are read"):
        states(encoder)


def test_sentence_modules_without_any_are_refused(saved: Path) -> None:
    with pytest.raises(RecipeError, match=r"sentence_modules: has no effect, .* puts none above its pooling"):
        opened(saved, sentence_modules=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_features": 9}, "in_features: 9, but what enters is 8 wide"),
        ({"out_features": None}, "in_features and out_features must be whole numbers above 0"),
        ({"activation_function": "evil.Module"}, "activation_function: evil.Module is not known here"),
        ({"activation_function": ["Tanh"]}, r"activation_function: \['Tanh'\] is not known here"),
        ({"use_residual": True}, "use_residual: True is not computed here; leave sentence_modules out"),
        ({"out_features": 4}, "cannot be opened"),
    ],
)
def test_a_dense_that_is_not_computed_here_is_refused(saved: Path, change: dict[str, Any], message: str) -> None:
    path = with_dense(saved)[0] / "2_Dense" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        opened(saved, sentence_modules=True)


def test_a_dense_of_broken_numbers_is_refused(saved: Path) -> None:
    path = with_dense(saved)[0] / "2_Dense" / WEIGHTS
    save_file({"linear.weight": torch.full((5, 8), torch.nan), "linear.bias": torch.zeros(5)}, path)
    with pytest.raises(CheckpointError, match=r"2_Dense/model\.safetensors: holds NaN or infinity"):
        opened(saved, sentence_modules=True)


def test_a_prefix_stands_before_each_text(saved: Path, tmp_path: Path) -> None:
    sentence_folder(saved, {**SWITCHES, "pooling_mode_cls_token": True})
    prompts = {"prompts": {"passage": "Passage: "}, "default_prompt_name": "passage"}
    (saved / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder, plain = opened(saved, prefix="Passage: ", lowercase=True), opened(saved)
    assert encoder.warnings == ()
    assert plain.warnings[0].endswith("none is put there here; prefix: 'Passage: ' does")
    assert encoder.tokenizer.encode(TEXTS) == plain.tokenizer.encode([f"passage: {text.lower()}" for text in TEXTS])
    assert encoder.tokenizer.fingerprint != opened(saved, lowercase=True).tokenizer.fingerprint
    encoder.save_backbone(tmp_path / "kept", encoder.backbone.state_dict())
    assert opened(tmp_path / "kept", prefix="Passage: ", lowercase=True).warnings == ()
    (warning,) = opened(tmp_path / "kept", prefix="query: ", lowercase=True).warnings
    assert warning.endswith("(default_prompt_name); 'query: ' is put")


def test_a_tokenizer_without_padding_has_the_end_of_texts_there(
    fresh_text: Callable[..., HFText], tmp_path: Path
) -> None:
    encoder = fresh_text(tiny_text("gpt2"), pool="last")
    folder = tmp_path / "fresh"
    path = folder / "tokenizer_config.json"
    tree = json.loads(path.read_text())
    del tree["pad_token"]
    path.write_text(json.dumps({**tree, "eos_token": "<sep>"}))
    config = HFTextConfig(architecture=tiny_text("gpt2"), pool="last", max_tokens=20)
    again = HFText(config, BuildContext(6, {"": Backbone(folder, is_pretrained=False)}))
    assert again.tokenizer.pad_token_id == 2
    assert again.tokenizer.encode(TEXTS) == encoder.tokenizer.encode(TEXTS)


@pytest.mark.parametrize("said", [True, False])
def test_a_recipe_that_says_otherwise_wins_and_is_told_so(saved: Path, said: bool) -> None:
    mode = "pooling_mode_mean_tokens" if said else "pooling_mode_cls_token"
    sentence_folder(saved, {**SWITCHES, mode: True}, do_lower_case=said)
    encoder = opened(saved, pool="cls" if said else "mean", lowercase=not said)
    hidden_TD, mean_RD = encoder.projection(encoder.hidden(one_row(encoder))), states(encoder, TEXTS[:1]).cls_RD
    torch.testing.assert_close(mean_RD[0], hidden_TD[0] if said else hidden_TD.mean(0))
    assert (encoder.tokenizer.encode(["RED"]) == encoder.tokenizer.encode(["red"])) is not said
    assert [warning.partition(" the ")[0] for warning in encoder.warnings] == ["pool:", "lowercase:"]
    assert all("the recipe counts" in warning for warning in encoder.warnings)


def test_a_recipe_that_says_the_same_is_not_told_of(saved: Path) -> None:
    sentence_folder(saved, {**SWITCHES, "pooling_mode_mean_tokens": True}, "Normalize", do_lower_case=True)
    assert opened(saved, pool="mean", lowercase=True).warnings == ()


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({**SWITCHES, "pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({**SWITCHES, "pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({**SWITCHES, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls and mean"),
        ({"pooling_mode": ["cls", "max"]}, "cls and max"),
        ({"pooling_mode": 5}, "5"),
        ({"pooling_mode": None}, "None"),
        ({"pooling_mode": [{}]}, "{}"),
    ],
)
def test_a_pooling_that_is_not_done_here_is_refused_unless_the_recipe_chooses(
    saved: Path, pooling: dict[str, Any], named: str
) -> None:
    sentence_folder(saved, pooling)
    with pytest.raises(
        CheckpointError, match=rf"1_Pooling/config\.json: pools by {named}; texts are pooled by cls, mean, max or last"
    ):
        opened(saved)
    (warning,) = opened(saved, pool="mean").warnings
    assert warning.endswith(f"{named}; the recipe counts")


def test_a_pooling_that_was_not_copied_is_missed_unless_the_recipe_chooses(saved: Path) -> None:
    sentence_folder(saved, {})
    (saved / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json: cannot be read"):
        opened(saved)
    assert opened(saved, pool="mean").warnings == ()


def test_modules_that_are_left_out_and_prompts_that_are_not_put_are_told_of(saved: Path) -> None:
    sentence_folder(saved, {**SWITCHES, "pooling_mode_cls_token": True}, "Dense", "Normalize")
    prompts = {"prompts": {"passage": "passage: "}, "default_prompt_name": "passage"}
    (saved / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    dense, prompt = opened(saved).warnings
    assert "modules.json: Dense is left out" in dense
    assert dense.endswith("sentence_modules: true keeps it")
    assert "'passage: ' before each text" in prompt
    (saved / "config_sentence_transformers.json").write_text(json.dumps({**prompts, "default_prompt_name": None}))
    assert len(opened(saved).warnings) == 1


def test_a_prefix_that_leaves_no_room_for_the_text_is_refused(saved: Path) -> None:
    assert opened(saved, prefix="a ").tokenizer.prefix == "a "
    with pytest.raises(RecipeError, match="prefix: fills all 20 tokens of a text"):
        opened(saved, prefix="a b c d e f g h i j k l")


def test_texts_longer_than_those_of_its_training_are_told_of(saved: Path) -> None:
    sentence_folder(saved, {**SWITCHES, "pooling_mode_cls_token": True}, max_seq_length=12)
    (warning,) = opened(saved).warnings
    assert warning.startswith("max_tokens: 20, but ")
    assert opened(saved, max_tokens=12).warnings == ()


def test_a_backbone_below_its_modules_is_pooled_as_they_say(saved: Path) -> None:
    inner = saved.parent / "model" / "0_Transformer"
    inner.parent.mkdir()
    saved.rename(inner)
    sentence_folder(inner.parent, {**SWITCHES, "pooling_mode_mean_tokens": True})
    modules = json.loads((inner.parent / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (inner.parent / "modules.json").write_text(json.dumps(modules))
    (inner / "sentence_roberta_config.json").write_text('{"max_seq_length": 20, "do_lower_case": true}')
    expected = states(opened(inner, pool="mean", lowercase=True))
    assert torch.equal(states(opened(inner)).cls_RD, expected.cls_RD)


@pytest.mark.parametrize(
    "content", ['{"modules": []}', '["Transformer"]', '[{"type": "a.Pooling", "path": "../other"}]']
)
def test_modules_that_are_none_or_lead_outside_are_refused(saved: Path, content: str) -> None:
    (saved / "modules.json").write_text(content)
    with pytest.raises(
        CheckpointError, match=r"modules\.json: (must hold a list of modules|path '\.\./other' leads out)"
    ):
        opened(saved)


@pytest.mark.parametrize("settings", [{}, {"pool": "cls"}, {"lowercase": False}], ids=str)
def test_what_was_trained_is_read_again_as_it_was(saved: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    sentence_folder(saved, {**SWITCHES, "pooling_mode_mean_tokens": True}, do_lower_case=True)
    encoder = opened(saved, **settings)
    encoder.save_backbone(tmp_path / "kept", encoder.backbone.state_dict())
    again = opened(tmp_path / "kept", is_pretrained=False, **settings)
    again.load_state_dict(encoder.state_dict())
    assert again.warnings == ()
    assert again.tokenizer.fingerprint == encoder.tokenizer.fingerprint
    assert torch.equal(states(again).cls_RD, states(encoder).cls_RD)
    assert torch.equal(states(again).token_KD, states(encoder).token_KD)


def test_a_fresh_backbone_is_pooled_by_token_zero_and_its_case_counts(bert: dict[str, Any]) -> None:
    config = HFTextConfig(architecture=bert)
    assert (config.pool, config.lowercase) == ("cls", False)
    assert HFTextConfig(architecture=bert, pool="mean", lowercase=True).model_dump()["pool"] == "mean"
    assert HFTextConfig.model_validate(config.model_dump(mode="json")) == config
    assert HFTextConfig(weights="saved").pool is None
