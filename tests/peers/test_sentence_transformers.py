"""Folders of sentence-transformers give the vectors that the library itself gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model, T5Config, T5EncoderModel

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import TokenInputs
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.encoders.tokenizer import special_token_ids, train_bpe
from pmmrec.rows import laid_out

library = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
base = pytest.importorskip("sentence_transformers.base.modules")

TEXTS = ["Red shoe for a RUN", "blue", "a cast-iron pan for two"]
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 300,
    "max_position_embeddings": 40,
    **special_token_ids(),
}
SHARED = {**SIZES, "num_key_value_heads": 1, "head_dim": 4}
T5 = T5Config(d_model=8, num_layers=2, num_heads=2, d_ff=16, d_kv=4, vocab_size=300, **special_token_ids())


def backbones() -> dict[str, nn.Module]:
    return {
        "bert": BertModel(BertConfig(**SIZES)),
        "qwen3": Qwen3Model(Qwen3Config(**SHARED)),
        "t5": T5EncoderModel(T5),
    }


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize(
    ("model_type", "pool"),
    [("bert", "cls"), ("bert", "mean"), ("bert", "max"), ("bert", "lasttoken"), ("qwen3", "lasttoken"), ("t5", "mean")],
)
def test_a_folder_gives_the_vectors_of_the_library(
    tmp_path: Path, model_type: str, pool: str, with_head: bool, lowercase: bool
) -> None:
    torch.manual_seed(0)
    train_bpe(TEXTS, 300, tmp_path / "inner", lowercase=lowercase)
    backbones()[model_type].save_pretrained(tmp_path / "inner")
    transformer = base.Transformer(str(tmp_path / "inner"), max_seq_length=20, do_lower_case=lowercase)
    whole: list[Any] = [transformer, modules.Pooling(8, pooling_mode=pool)]
    if with_head:
        whole += [base.Dense(8, 5, activation_function=nn.Tanh()), base.Normalize()]
    theirs = library.SentenceTransformer(modules=whole, device="cpu")
    theirs.save(str(tmp_path / "saved"))
    config = HFTextConfig(weights="saved", max_tokens=20, sentence_modules=with_head, trainable_blocks=0)
    encoder = HFText(config, BuildContext(6, {"": Backbone(tmp_path / "saved", is_pretrained=True)})).eval()
    inputs = TokenInputs.of(encoder.tokenizer.encode(TEXTS))
    with torch.no_grad():
        ours = laid_out(encoder.pooled(inputs), inputs.item_index_R, len(TEXTS))
    torch.testing.assert_close(ours, theirs.encode(TEXTS, convert_to_tensor=True), rtol=0, atol=1e-6)
