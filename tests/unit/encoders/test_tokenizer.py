"""A tokenizer is learned once, read by anyone, and known by its fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer

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


def without_post_processor(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))


def rewritten(folder: Path, **keys: object) -> FolderTokenizer:
    """The tokenizer of a folder whose tokenizer_config.json says more."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return FolderTokenizer(folder, 6, lowercase=False)


@pytest.mark.parametrize("longest", ["512", [512], {}])
def test_a_length_that_is_no_number_is_refused(folder: Path, longest: object) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: model_max_length: .*: must be a number"):
        rewritten(folder, model_max_length=longest)


def test_the_token_before_every_text_is_known(folder: Path) -> None:
    assert FolderTokenizer(folder, 50, lowercase=False).first_token == special_token_ids()["cls_token_id"]
    without_post_processor(folder)
    assert FolderTokenizer(folder, 50, lowercase=False).first_token is None


def test_a_token_after_every_text_is_none_before_it(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["post_processor"]["single"] = tree["post_processor"]["single"][1:]  # $A <sep>
    path.write_text(json.dumps(tree))
    tokenizer = FolderTokenizer(folder, 50, lowercase=False)
    assert tokenizer.encode([""]) == [[special_token_ids()["sep_token_id"]]]
    assert tokenizer.first_token is None


def test_the_side_that_is_cut_is_the_folders_and_is_part_of_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    right = FolderTokenizer(folder, 6, lowercase=False)
    left = rewritten(folder, truncation_side="left")
    texts = ["Red shoes for running in blue"]
    assert left.encode(texts) != right.encode(texts)
    assert (left.encode(texts)[0][0], len(left.encode(texts)[0])) == (1, 6)  # cls stays
    assert left.fingerprint != right.fingerprint
    left.save(tmp_path / "saved")
    again = FolderTokenizer(tmp_path / "saved", 6, lowercase=False)
    assert (again.encode(texts), again.fingerprint) == (left.encode(texts), left.fingerprint)


@pytest.mark.parametrize(
    "keys", [{"padding_side": "left"}, {"model_max_length": 3}, {"clean_up_tokenization_spaces": True}]
)
def test_settings_that_change_no_token_here_change_none(folder: Path, keys: dict[str, object]) -> None:
    before = FolderTokenizer(folder, 6, lowercase=False)
    texts = ["Red", "Red shoes for running in blue"]
    assert rewritten(folder, **keys).encode(texts) == before.encode(texts)


def test_special_tokens_in_a_text_are_read_as_the_folder_says(folder: Path) -> None:
    whole = FolderTokenizer(folder, 6, lowercase=False)
    split = rewritten(folder, split_special_tokens=True)
    assert whole.encode(["<sep>"]) != split.encode(["<sep>"])
    assert whole.fingerprint != split.fingerprint


def test_a_tokenizer_that_draws_its_tokens_gives_the_same_ones_each_time(folder: Path) -> None:
    expected = FolderTokenizer(folder, 50, lowercase=False)
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["dropout"] = 0.9
    path.write_text(json.dumps(tree))
    tokenizer = FolderTokenizer(folder, 50, lowercase=False)
    texts = ["Red shoes for running"] * 20
    assert tokenizer.encode(texts) == expected.encode(texts)
    assert tokenizer.fingerprint == expected.fingerprint


def bert_tokenizer(folder: Path, *, lowercase: bool) -> Path:
    """As BertTokenizer of transformers writes it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "Red", "shoes", "Shoes", "no", "."]
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}, do_lower_case=lowercase).save_pretrained(
        folder
    )
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


@pytest.mark.parametrize("lowercase", [True, False])
def test_tokens_that_differ_from_the_folders_own_are_told_of(tmp_path: Path, lowercase: bool) -> None:
    told: list[str] = []
    FolderTokenizer(bert_tokenizer(tmp_path, lowercase=lowercase), 50, lowercase=False).say_differences(told.append)
    assert told == []
    path = tmp_path / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "do_lower_case"}
    path.write_text(json.dumps(kept))  # transformers takes true then, whatever tokenizer.json says
    FolderTokenizer(tmp_path, 50, lowercase=False).say_differences(told.append)
    assert len(told) == (not lowercase)
    assert all("tokenizer_config.json must say the same (do_lower_case" in line for line in told)


def test_token_types_that_no_encoder_is_given_are_told_of(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["post_processor"]["single"][1]["Sequence"]["type_id"] = 1
    path.write_text(json.dumps(tree))
    told: list[str] = []
    FolderTokenizer(folder, 50, lowercase=False).say_differences(told.append)
    assert [line.partition(": ")[2] for line in told] == [
        "its tokenizer gives texts token types other than 0; encoders are given 0 here"
    ]


def test_a_real_tokenizer_makes_its_own_tokens(minilm: Path) -> None:
    told: list[str] = []
    FolderTokenizer(minilm, 50, lowercase=False).say_differences(told.append)
    assert told == []


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("deberta-v2", "spm.model"), ("albert", "spiece.model"), ("xlm-roberta", "sentencepiece.bpe.model")],
)
def test_a_model_of_sentencepiece_alone_says_what_it_needs(tmp_path: Path, model_type: str, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / name).write_bytes(b"not a model")
    needs = rf"{name} alone is read only where the package sentencepiece is installed"
    with pytest.raises(CheckpointError, match=needs):
        FolderTokenizer(tmp_path, 50, lowercase=False)


@pytest.mark.parametrize(
    ("model_type", "name"), [("deberta-v2", "spiece.model"), ("roberta", "vocab.txt"), ("bert", "spm.model")]
)
def test_a_vocabulary_of_another_tokenizer_is_never_taken_for_an_empty_one(
    tmp_path: Path, model_type: str, name: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / name).write_text("red")
    with pytest.raises(CheckpointError, match=rf"holds {name}, but \w+ reads .*tokenizer\.json"):
        FolderTokenizer(tmp_path, 50, lowercase=False)


def test_a_tokenizer_that_names_other_files_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="fast_tokenizer_files: names other files"):
        rewritten(folder, fast_tokenizer_files=["tokenizer.4.0.0.json"])
