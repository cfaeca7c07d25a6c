"""A folder of transformers is configured with words it knows, and never runs code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmmrec.context import Backbone, BuildContext
from pmmrec.encoders.huggingface import new_config, read_config
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.errors import CheckpointError, RecipeError


@pytest.mark.parametrize(
    "extra",
    [
        {"auto_map": {"AutoModel": "evil.Evil"}},
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel"},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"vision_config": {"auto_map": {"AutoModel": "evil.Evil"}}},
    ],
)
def test_a_configuration_that_would_run_code_is_refused(tmp_path: Path, extra: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **extra}))
    with pytest.raises(CheckpointError, match="asks for code outside the folder, which is never run"):
        read_config(tmp_path)


def test_attention_that_transformers_brings_is_fine(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "_attn_implementation": "sdpa"}')
    assert read_config(tmp_path).model_type == "bert"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[]", "must hold an object, found a list"),
        ("{}", "not a configuration of transformers"),
        ('{"model_type": "birt"}', "not a configuration of transformers"),
        ('{"model_type": "bert", "hidden_size": "wide"}', "not a configuration of transformers"),
    ],
)
def test_a_broken_configuration_is_an_error_that_names_the_file(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({}, "architecture: needs `model_type`"),
        ({"model_type": "birt"}, "architecture.model_type: transformers knows no 'birt'"),
        (
            {"model_type": "bert", "hidden_sise": 8},
            "architecture.hidden_sise: bert has no such setting; did you mean 'hidden_size'",
        ),
        ({"model_type": "bert", "hidden_size": "wide"}, "architecture: bert cannot be configured so"),
        ({"model_type": "bert", "vocab_size": 9}, "architecture.vocab_size: is set for you"),
    ],
)
def test_a_wrong_architecture_is_an_error_that_names_the_key(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        new_config(architecture, vocab_size=100)


def test_a_setting_may_go_by_the_name_that_its_library_gives_it() -> None:
    assert new_config({"model_type": "distilbert", "dim": 16, "n_heads": 2}).hidden_size == 16
    assert new_config({"model_type": "distilbert", "hidden_size": 16, "n_heads": 2}).dim == 16


def test_heads_that_do_not_divide_the_width_are_an_error(
    fresh_text: Callable[..., HFText], bert: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="no bert can be built so"):
        fresh_text({**bert, "num_attention_heads": 3})


@pytest.mark.parametrize("wrong", [{"hidden_act": "gelo"}, {"num_hidden_layers": 10**9}])
def test_a_setting_that_no_model_can_have_is_an_error(
    fresh_text: Callable[..., HFText], bert: dict[str, Any], wrong: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=r"no bert can be built so: KeyError: 'gelo'|at most 1,000 are built"):
        fresh_text({**bert, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_act": "gelo"}, r"config\.json: no bert can be built so: KeyError: 'gelo'"),
        ({"pad_token_id": 5000}, r"config\.json: no bert can be built so: AssertionError: Padding_idx"),
        ({"hidden_size": 0}, r"config\.json: hidden_size: 0: must be above 0"),
        ({"num_attention_heads": -1}, r"config\.json: num_attention_heads: -1: must be above 0"),
        ({"num_hidden_layers": 10**5}, "num_hidden_layers: 100,000 blocks; at most 1,000 are built"),
        (
            {"intermediate_size": 12},
            r"tensor encoder.layer.0.intermediate.dense.bias has shape \(16,\), but config.json asks for \(12,\)",
        ),
    ],
)
def test_a_setting_of_a_folder_that_no_model_can_have_is_an_error(
    fresh_text: Callable[..., HFText], tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    encoder, folder = fresh_text(), tmp_path / "saved"
    encoder.save_backbone(folder, encoder.backbone.state_dict())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **wrong}))
    with pytest.raises((CheckpointError, RecipeError), match=message):
        HFText(
            HFTextConfig(weights="saved", max_tokens=20), BuildContext(6, {"": Backbone(folder, is_pretrained=True)})
        )


def test_an_architecture_that_is_not_for_text_is_an_error(tmp_path: Path) -> None:
    config = HFTextConfig(architecture={"model_type": "vit"})
    with pytest.raises(RecipeError, match="'vit' is not known here; known: albert, bert"):
        HFText.start(config, tmp_path, ["text"])


def test_a_pretrained_backbone_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is opened, not started"):
        HFText.start(HFTextConfig(weights="minilm"), tmp_path, ["text"])


def test_a_truncated_weights_file_is_refused(fresh_text: Callable[..., HFText], tmp_path: Path) -> None:
    encoder = fresh_text()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    path = tmp_path / "saved" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"its model\.safetensors cannot be opened"):
        HFText(
            HFTextConfig(weights="saved", max_tokens=20),
            BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)}),
        )
