"""A tokenizer is learned once, read by anyone, and known by its fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pmmrec.encoders.tokenizer import FolderTokenizer, special_token_ids, train_bpe
from pmmrec.errors import CheckpointError, RecipeError

TEXTS = ["Red shoes for running", "Red shirt for running", "blue shoes"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train_bpe(TEXTS, 300, tmp_path, lowercase=False)
    return tmp_path


def test_a_text_stands_between_cls_and_sep(folder: Path) -> None:
    ids = special_token_ids()
    (tokens,) = FolderTokenizer(folder, 50, lowercase=False).encode(["Red shoes"])
    assert tokens[0] == ids["cls_token_id"]
    assert tokens[-1] == ids["sep_token_id"]
    assert len(tokens) > 2


def test_an_empty_text_is_cls_and_sep(folder: Path) -> None:
    assert FolderTokenizer(folder, 50, lowercase=False).encode([""]) == [[1, 2]]


def test_no_texts_give_no_tokens(folder: Path) -> None:
    assert FolderTokenizer(folder, 50, lowercase=False).encode([]) == []


def test_no_text_is_unknown(folder: Path) -> None:
    (tokens,) = FolderTokenizer(folder, 50, lowercase=False).encode(["日本 😀 naïve"])
    assert special_token_ids()["unk_token_id"] not in tokens


def test_long_texts_are_cut_and_keep_both_special_tokens(folder: Path) -> None:
    (tokens,) = FolderTokenizer(folder, 5, lowercase=False).encode(["Red shoes " * 20])
    assert len(tokens) == 5
    assert (tokens[0], tokens[-1]) == (1, 2)


def test_short_texts_are_not_padded(folder: Path) -> None:
    short, long = FolderTokenizer(folder, 50, lowercase=False).encode(["Red", "Red shoes for running"])
    assert len(short) < len(long)


def test_lowercase_makes_case_meaningless(folder: Path) -> None:
    lowered = FolderTokenizer(folder, 50, lowercase=True)
    kept = FolderTokenizer(folder, 50, lowercase=False)
    assert lowered.encode(["RED"]) == lowered.encode(["red"])
    assert kept.encode(["RED"]) != kept.encode(["red"])


def test_the_vocabulary_is_at_most_what_was_asked_for(folder: Path) -> None:
    assert 261 < FolderTokenizer(folder, 50, lowercase=False).num_ids <= 300


def test_a_vocabulary_without_room_for_bytes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="vocab_size: 100 leaves no room"):
        train_bpe(TEXTS, 100, tmp_path, lowercase=False)


def test_the_same_texts_give_the_same_fingerprint(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    train_bpe(iter(TEXTS), 300, again, lowercase=False)
    first, second = (FolderTokenizer(place, 50, lowercase=False).fingerprint for place in (folder, again))
    assert first == second


def test_the_fingerprint_knows_length_case_and_vocabulary(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    train_bpe([*TEXTS, "green trousers, green trousers"], 300, other, lowercase=False)
    prints = {
        FolderTokenizer(folder, 50, lowercase=False).fingerprint,
        FolderTokenizer(folder, 49, lowercase=False).fingerprint,
        FolderTokenizer(folder, 50, lowercase=True).fingerprint,
        FolderTokenizer(other, 50, lowercase=False).fingerprint,
    }
    assert len(prints) == 4


def test_use_does_not_change_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    tokenizer = FolderTokenizer(folder, 5, lowercase=False)
    tokenizer.encode(["Red shoes " * 20])
    saved = tmp_path / "saved"
    tokenizer.save(saved)
    assert FolderTokenizer(saved, 5, lowercase=False).fingerprint == tokenizer.fingerprint


def test_anyone_reads_the_same_tokens(folder: Path) -> None:
    plain = AutoTokenizer.from_pretrained(folder)
    assert plain(TEXTS)["input_ids"] == FolderTokenizer(folder, 50, lowercase=False).encode(TEXTS)
    assert plain.pad_token_id == FolderTokenizer(folder, 50, lowercase=False).pad_token_id == 0


def test_the_truncation_a_folder_carries_does_not_count(minilm: Path) -> None:
    """MiniLM's tokenizer.json says: 128 tokens, padded to 128."""
    (tokens,) = FolderTokenizer(minilm, 200, lowercase=False).encode(["shoes " * 300])
    assert len(tokens) == 200
    (tokens,) = FolderTokenizer(minilm, 200, lowercase=False).encode(["shoes"])
    assert len(tokens) == 3


def test_a_tokenizer_of_code_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    with pytest.raises(CheckpointError, match="auto_map asks for code outside the folder"):
        FolderTokenizer(folder, 50, lowercase=False)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        FolderTokenizer(tmp_path, 50, lowercase=False)


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    with pytest.raises(CheckpointError, match="tokenizer cannot be opened"):
        FolderTokenizer(folder, 50, lowercase=False)
