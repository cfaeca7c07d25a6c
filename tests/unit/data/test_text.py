"""Texts are tokenised once, kept complete or made again, and read as ragged rows."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmmrec.data import text
from pmmrec.data.cache import ContentCache
from pmmrec.data.text import TokenTable
from pmmrec.errors import DataError

TEXTS = ["a bb", "ccc", None, "a a a a a a a a a a"]


@pytest.fixture
def domain(make_domain: Any) -> Any:
    return make_domain([[0, 1, 2, 3]], texts=TEXTS, images=[2])


def test_rows_are_read_one_after_another(domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    table, rows = TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache")), np.array([1, 0])
    token_ids = table.read(rows)
    assert (token_ids.tolist(), token_ids.dtype) == ([1, 13, 1, 11, 12], np.int64)
    assert table.num_tokens_of(rows).tolist() == [2, 3]


def test_items_without_a_text_have_no_tokens(domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    table = TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache"))
    assert table.num_tokens.tolist() == [3, 2, 0, 8]
    assert table.num_tokens_of(np.array([2, 1])).tolist() == [0, 2]
    assert table.read(np.array([2, 1])).tolist() == [1, 13]


def test_a_domain_without_any_text_is_read_as_well(make_domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    domain = make_domain([[0, 1, 0]], texts=[None, None], images=[0, 1])
    table = TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache"))
    assert table.read(np.array([0, 1])).tolist() == []


def test_texts_are_tokenised_once(domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    for _ in range(2):
        TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache"))
    assert tokenizer.num_encoded == 3  # the item without a text is never asked for


def test_another_tokenizer_makes_another_table(domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    long = TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache"))
    tokenizer.max_tokens = 2
    short = TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache"))
    assert (long.num_tokens.tolist(), short.num_tokens.tolist()) == ([3, 2, 0, 8], [2, 2, 0, 2])


@pytest.mark.parametrize("name", [text.VALUES, text.OFFSETS, "index.json"])
@pytest.mark.parametrize("harm", ["cut short", "changed", "removed", "emptied"])
def test_a_damaged_table_is_made_again(domain: Any, tokenizer: Any, tmp_path: Path, name: str, harm: str) -> None:
    said: list[str] = []
    cache = ContentCache(tmp_path / "cache", said.append)
    expected = TokenTable.open(domain, tokenizer, cache).read(np.arange(4)).tolist()
    (path,) = (tmp_path / "cache").glob(f"tokens-*/{name}")
    content = path.read_bytes()
    harmed = {"cut short": content[:-1], "changed": content[:-1] + bytes([content[-1] ^ 1]), "emptied": b""}
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(harmed[harm])
    assert TokenTable.open(domain, tokenizer, cache).read(np.arange(4)).tolist() == expected
    assert tokenizer.num_encoded == 6
    assert path.read_bytes() == content
    assert said == [f"{path.parent}: was damaged; token ids are made again"]


def test_nothing_unfinished_is_left_in_the_cache(domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache"))
    (entry,) = (tmp_path / "cache").iterdir()
    assert sorted(path.name for path in entry.iterdir()) == ["index.json", "offsets.npy", "values.npy"]


def test_a_text_that_gives_no_token_is_named(domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.max_tokens = 0
    with pytest.raises(DataError, match="item 'i00': its text gives no token"):
        TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache"))


def test_progress_counts_the_items_with_a_text(domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache"), lambda *call: calls.append(call))
    assert calls == [("tokens", 3, 3)]


def test_a_table_sent_to_another_process_opens_the_files_again(domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    table = TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache"))
    sent = pickle.dumps(table)
    assert len(sent) < 500
    received = pickle.loads(sent)  # noqa: S301  # what a DataLoader does where it cannot fork
    np.testing.assert_array_equal(received.read(np.arange(4)), table.read(np.arange(4)))


@pytest.fixture
def many(make_domain: Any, tokenizer: Any, tmp_path: Path) -> TokenTable:
    """Texts of one to four short words, many of them alike, some missing."""
    rng = np.random.default_rng(0)
    words = np.array(["a", "bb", "ccc"])
    texts = [None if not rng.integers(9) else " ".join(rng.choice(words, rng.integers(1, 5))) for _ in range(300)]
    return TokenTable.open(
        make_domain([[0, 1, 2]], texts=texts, images=range(300)), tokenizer, ContentCache(tmp_path / "cache")
    )


def first_same_by_loops(table: TokenTable) -> list[int]:
    contents = [table.content(row) for row in range(300)]
    return [contents.index(content) for content in contents]


@pytest.mark.parametrize("rows_at_once", [7, 1 << 18])
def test_equal_texts_are_found(many: TokenTable, monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setattr(text, "ROWS_AT_ONCE", rows_at_once)
    assert many.first_same().tolist() == first_same_by_loops(many)


def test_texts_that_share_a_hash_are_told_apart(many: TokenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, asked = TokenTable._keys, []

    def poor(table: TokenTable, seed: int) -> np.ndarray:
        asked.append(seed)
        return whole(table, seed) % np.uint64(2 if seed == 0 else 2**63)

    monkeypatch.setattr(TokenTable, "_keys", poor)
    assert many.first_same().tolist() == first_same_by_loops(many)
    assert asked == [0, 1]
