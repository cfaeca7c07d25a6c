"""Keys of config.json that change what a backbone computes or returns are honoured, pinned or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import TokenInputs
from pmmrec.encoders.huggingface import read_config
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.errors import CheckpointError, RecipeError

Fresh = Callable[..., HFText]


@pytest.fixture
def saved(fresh_text: Fresh, tmp_path: Path) -> Path:
    """A tiny bert as transformers writes it."""
    encoder = fresh_text()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    return tmp_path / "saved"


def say(folder: Path, **more: Any) -> None:
    """Put keys into the config.json of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def opened(folder: Path) -> HFText:
    return HFText(
        HFTextConfig(weights="saved", max_tokens=20), BuildContext(6, {"": Backbone(folder, is_pretrained=True)})
    ).eval()


def hidden(encoder: HFText) -> torch.Tensor:
    return encoder.hidden(TokenInputs.of(encoder.tokenizer.encode(["red shoe"])))


@pytest.mark.parametrize(
    "key",
    [
        {"return_dict": False},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"chunk_size_feed_forward": 4},
        {"torchscript": True},
        {"dtype": "float16"},
        {"torch_dtype": "bfloat16"},
        {"use_cache": True},
        {"problem_type": "regression"},
        {"_attn_implementation": "eager"},
    ],
    ids=str,
)
def test_keys_that_change_only_what_is_returned_change_no_vector_and_are_saved_so(
    saved: Path, tmp_path: Path, key: dict[str, Any]
) -> None:
    expected = hidden(opened(saved))
    say(saved, **key)
    encoder = opened(saved)
    torch.testing.assert_close(hidden(encoder), expected, rtol=0, atol=2e-6)  # eager against sdpa; measured 2e-7
    encoder.save_backbone(tmp_path / "again", encoder.backbone.state_dict())
    assert torch.equal(hidden(opened(tmp_path / "again")), hidden(encoder))
    read = BertConfig.from_pretrained(tmp_path / "again")
    assert (read.return_dict, read.output_attentions, read.chunk_size_feed_forward) == (True, False, 0)


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("is_decoder", True, "choose an encoder, or set it to false"),
        ("add_cross_attention", True, "set it to false"),
        ("position_embedding_type", "relative_key_query", "choose another backbone"),
        ("pruned_heads", {"0": [1]}, "choose a backbone that was not pruned"),
        ("transformers_weights", "other.safetensors", "rename the file and remove the key"),
        ("configuration_files", ["config.4.0.0.json"], "remove the key"),
        ("auto_map", {"AutoModel": "evil.Evil"}, "remove it"),
        ("quantization_config", {"quant_method": "bitsandbytes"}, "remove it"),
    ],
)
def test_keys_that_change_what_is_computed_are_refused_by_file_and_key(
    saved: Path, key: str, value: Any, right: str
) -> None:
    say(saved, **{key: value})
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}.*{right}") as caught:
        read_config(saved)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("key", ["is_decoder", "add_cross_attention"])
def test_an_architecture_is_refused_by_the_same_keys(fresh_text: Fresh, bert: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError, match=f"architecture: {key}: true: "):
        fresh_text({**bert, key: True})


def test_layers_are_never_left_out_in_training(fresh_text: Fresh) -> None:
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "word_embed_proj_dim": 8,
    }
    architecture = {"model_type": "opt", **sizes, "max_position_embeddings": 40, "layerdrop": 0.9}
    encoder = fresh_text(architecture, pool="mean", trainable_blocks="all").train()
    encoder(TokenInputs.of(encoder.tokenizer.encode(["red shoe"]))).cls_RD.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.backbone.parameters() if parameter.requires_grad)


def test_tensors_of_blocks_that_nothing_computes_with_are_told_of(saved: Path) -> None:
    assert opened(saved).warnings == ()
    state = load_file(saved / "model.safetensors")
    state["encoder.layer.0.attention.self.distance_embedding.weight"] = torch.zeros(3, 4)
    state["pooler.dense.weight"] = torch.zeros(8, 8)
    save_file(state, saved / "model.safetensors", {"format": "pt"})
    (warning,) = opened(saved).warnings
    assert "1 tensors of its blocks are not used, such as encoder.layer.0.attention.self.distance_embedding" in warning


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("is_dry", [False, True])
def test_adapters_left_beside_whole_weights_are_refused(saved: Path, name: str, is_dry: bool) -> None:
    (saved / name).write_text("{}")
    message = rf"{name}: adapters beside whole weights.*merge them"
    with torch.device("meta" if is_dry else "cpu"), pytest.raises(CheckpointError, match=message):
        opened(saved)


def test_two_sets_of_weights_are_refused(saved: Path) -> None:
    (saved / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match=r"two sets of weights; remove the older one"):
        opened(saved)


def test_pickles_and_weights_of_other_libraries_beside_the_weights_play_no_part(saved: Path) -> None:
    expected = hidden(opened(saved))
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"):
        (saved / name).write_bytes(b"not read")
    assert torch.equal(hidden(opened(saved)), expected)


def test_shards_are_read_and_a_missing_one_is_named(saved: Path) -> None:
    expected = hidden(opened(saved))
    model = AutoModel.from_pretrained(saved, add_pooling_layer=False)
    (saved / "model.safetensors").unlink()
    model.save_pretrained(saved, max_shard_size="2KB")
    shards = sorted(saved.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(hidden(opened(saved)), expected)
    shards[-1].unlink()
    with pytest.raises(CheckpointError, match=shards[-1].name):
        opened(saved)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_found_when_the_folder_is_opened(saved: Path, number: float) -> None:
    state = load_file(saved / "model.safetensors")
    state["encoder.layer.1.output.dense.bias"][0] = number
    save_file(state, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError,
        match=r"1 tensors hold NaN or infinity, such as model\.safetensors: encoder\.layer\.1\.output\.dense\.bias",
    ):
        opened(saved)
