"""Words of texts are hidden as BERT hides them, and guessed by the folder's own head or a fresh one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import TokenInputs
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.encoders.words import HiddenWords, hide_words, word_losses
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.testing.twins.item_matching import mixed_by_words

STEP, WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1
TEXTS = ["red shoes for running on wet roads", "a blue shirt", "x", ""]
ATOL = 1e-12  # float64; measured 2e-15


def number(seed: int, place: int) -> float:
    """The number that a seed gives for a place."""
    return (mixed_by_words((seed + place * STEP) & WORD) & ((1 << 53) - 1)) / (1 << 53)


def hidden_by_loops(texts: list[list[int]], seeds: list[int], share: float, tokenizer: Any) -> list[list[int]]:
    """The texts with the tokens that stand there after hiding, text by text and token by token."""
    special = set(tokenizer.special_ids)
    changed = []
    for text, seed in zip(texts, seeds, strict=True):
        num_hidden = min(len(text), max(1, round(share * max(0, len(text) - tokenizer.num_special))))
        order = sorted(range(len(text)), key=lambda t: (text[t] in special, number(seed, t)))
        what, which = mixed_by_words((seed + 1) & WORD), mixed_by_words((seed + 2) & WORD)
        new = list(text)
        for t in order[:num_hidden]:
            if number(what, t) < 0.8:
                new[t] = tokenizer.mask_token_id
            elif number(what, t) < 0.9:
                new[t] = int(number(which, t) * tokenizer.num_ids)
        changed.append(new)
    return changed


def hidden(encoder: HFText, texts: list[str], seed: int = 5, share: float = 0.15) -> tuple[TokenInputs, HiddenWords]:
    inputs = TokenInputs.of(encoder.tokenizer.encode(texts))
    seed_R = seed + 1_000_003 * torch.arange(len(texts))[inputs.item_index_R.on(torch.device("cpu"))]
    return inputs, hide_words(inputs.token_id_K, inputs.packing, seed_R, share, encoder._tokenizer)


@pytest.mark.parametrize("share", [0.15, 0.6, 0.99])
def test_words_are_hidden_as_loops_hide_them(fresh_text: Callable[..., HFText], share: float) -> None:
    encoder, num_kept, num_random = fresh_text(), 0, 0
    for seed in range(40):
        inputs, words = hidden(encoder, TEXTS, seed, share)
        order = inputs.item_index_R.values
        texts = [row.tolist() for row in torch.split(inputs.token_id_K, inputs.packing.length_R.tolist())]
        expected = hidden_by_loops(texts, [seed + 1_000_003 * int(item) for item in order], share, encoder._tokenizer)
        assert words.token_id_K.tolist() == [token for text in expected for token in text]
        assert words.target_M.tolist() == inputs.token_id_K[words.place_M].tolist()
        found = words.token_id_K[words.place_M]
        num_kept += int((found == words.target_M).sum())
        num_random += int(((found != words.target_M) & (found != encoder._tokenizer.mask_token_id)).sum())
    assert num_kept > 0
    assert num_random > 0


def test_the_hidden_words_of_a_text_depend_on_no_other_text(fresh_text: Callable[..., HFText]) -> None:
    encoder = fresh_text()
    _, together = hidden(encoder, TEXTS)
    _, alone = hidden(encoder, TEXTS[:1])
    assert together.token_id_K[: len(alone.token_id_K)].tolist() == alone.token_id_K.tolist()
    assert together.count_R[0] == alone.count_R[0] >= 1


def test_losses_are_means_over_the_words_of_a_text() -> None:
    draw = torch.Generator().manual_seed(0)
    score_MV = torch.randn(6, 5, generator=draw, dtype=torch.float64).requires_grad_()
    target_M, count_R = torch.tensor([0, 4, 2, 2, 1, 3]), [3, 1, 2]
    expected, place = [], 0
    for count in count_R:
        terms = []
        for m in range(place, place + count):
            odds = [torch.exp(score) for score in score_MV[m]]
            terms.append(-torch.log(odds[int(target_M[m])] / sum(odds)))
        expected.append(sum(terms) / count)
        place += count
    words = HiddenWords(torch.zeros(0), torch.zeros(0), target_M, torch.tensor(count_R).numpy())
    found = word_losses(score_MV, words)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=ATOL)
    gradients = [torch.autograd.grad((weights * one).sum(), score_MV)[0] for one in (found, torch.stack(expected))]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=ATOL)


def pretrained(folder: Path, fresh: HFText, whole: Any) -> HFText:
    """An encoder of the folder that a model of transformers with a head was saved to."""
    whole.save_pretrained(folder)
    fresh._tokenizer.save(folder)
    config = HFTextConfig(weights=str(folder), max_tokens=20, trainable_blocks="all", pool="mean")
    return HFText(config, BuildContext(6, {"": Backbone(folder, is_pretrained=True)})).double()


@pytest.mark.parametrize(
    ("config_class", "model_class"), [(BertConfig, BertForMaskedLM), (RobertaConfig, RobertaForMaskedLM)]
)
def test_the_own_head_of_a_folder_gives_the_loss_of_transformers(
    fresh_text: Callable[..., HFText], tmp_path: Path, bert: dict[str, Any], config_class: Any, model_class: Any
) -> None:
    fresh = fresh_text()
    sizes = {key: value for key, value in bert.items() if key != "model_type"}
    config = config_class(vocab_size=fresh._tokenizer.num_ids, pad_token_id=0, **sizes)
    torch.manual_seed(1)
    whole = model_class(config).double().eval()
    for parameter in whole.parameters():  # biases start at 0
        torch.nn.init.normal_(parameter, std=0.3)
    encoder = pretrained(tmp_path / "whole", fresh, whole.float()).eval()
    whole = whole.double()
    head = encoder.word_head().double()
    assert not any("no head" in warning for warning in encoder.warnings)

    inputs, words = hidden(encoder, TEXTS[:1])
    seed_R = torch.tensor([5])
    ours = encoder.word_loss(inputs, seed_R, head, 0.15)
    labels = torch.full_like(inputs.token_id_K, -100).index_copy(0, words.place_M, words.target_M)
    theirs = whole(input_ids=words.token_id_K[None], labels=labels[None]).loss
    torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-12)
    name = "embeddings.word_embeddings.weight"
    gradient = torch.autograd.grad(ours.sum(), encoder.backbone.get_parameter(name))[0]
    torch.testing.assert_close(
        gradient, torch.autograd.grad(theirs, whole.base_model.get_parameter(name))[0], rtol=0, atol=1e-12
    )


def test_a_folder_without_a_head_gets_a_fresh_one_and_a_line(fresh_text: Callable[..., HFText], tmp_path: Path) -> None:
    fresh = fresh_text()
    encoder = pretrained(tmp_path / "bare", fresh, fresh.backbone)
    encoder.word_head()
    assert [one for one in encoder.warnings if "has no head for hidden words; a fresh one learns" in one]


def test_a_head_with_broken_numbers_is_refused(
    fresh_text: Callable[..., HFText], tmp_path: Path, bert: dict[str, Any]
) -> None:
    fresh = fresh_text()
    sizes = {key: value for key, value in bert.items() if key != "model_type"}
    encoder = pretrained(tmp_path / "b", fresh, BertForMaskedLM(BertConfig(vocab_size=300, **sizes)))
    path = tmp_path / "b" / "model.safetensors"
    tensors: dict[str, Tensor] = load_file(path)
    tensors["cls.predictions.bias"][3] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"cls\.predictions\.bias holds NaN or infinity; take another copy"):
        encoder.word_head()


@pytest.mark.parametrize(
    ("is_causal", "mask_id", "message"),
    [
        (False, None, "gpt2 has no mask token, so no word can be hidden"),
        (True, 3, "gpt2 guesses a word from the earlier"),
    ],
)
def test_a_backbone_from_which_no_word_can_be_hidden_is_refused(
    fresh_text: Callable[..., HFText], is_causal: bool, mask_id: int | None, message: str
) -> None:
    encoder = fresh_text({"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2}, pool="mean")
    if not is_causal:
        encoder._tokenizer._tokenizer.mask_token = mask_id
    with pytest.raises(RecipeError, match=message):
        encoder.word_head()
