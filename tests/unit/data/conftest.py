"""Small domains on disk, made by the importer, and a simple tokenizer."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from kept_states import SEQUENCES, TEXTS, Ladder
from PIL import Image
from shops import Shops

from pmmrec.contracts import Modality, PixelSpec, TextSpec
from pmmrec.data.cache import Say, silent
from pmmrec.data.domain import Domain
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.items import ItemReader
from pmmrec.data.prefix import PrefixConfig

MakeDomain = Callable[..., Domain]


@dataclass
class WordTokenizer:
    """A token a word, by the length of the word; 1 begins a text, 0 pads."""

    max_tokens: int = 8
    pad_token_id: int = 0
    num_encoded: int = 0

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"words {self.max_tokens}".encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.num_encoded += len(texts)
        return [[1, *(10 + len(word) for word in text.split())][: self.max_tokens] for text in texts]


@pytest.fixture(scope="session")
def tokenizer_class() -> type[WordTokenizer]:
    return WordTokenizer


@pytest.fixture
def tokenizer(tokenizer_class: type[WordTokenizer]) -> WordTokenizer:
    return tokenizer_class()


@pytest.fixture
def make_domain(tmp_path: Path, domain_maker: Callable[[Path], MakeDomain]) -> MakeDomain:
    return domain_maker(tmp_path)


@pytest.fixture(scope="session")
def domain_maker() -> Callable[[Path], MakeDomain]:
    """A way to make domains in a folder: call its result with the sequences of users, `name=`, `texts=`, `images=`.

    Item row k is called `i0k`, user k `u0k`. `texts` holds the text or None of each item (default: as many words as the
    item's row says, and one), `images` the rows with an image, whose grey is ten times the row, `times` the times of
    each sequence (default: the same rising times for all users).
    """

    def make(
        parent: Path,
        sequences: Sequence[Sequence[int]],
        name: str = "shop",
        texts: Sequence[str | None] | None = None,
        images: Sequence[int] = (),
        times: Sequence[Sequence[int]] | None = None,
    ) -> Domain:
        folder = parent / f"{name}-tables"
        (folder / "images").mkdir(parents=True)
        num_items = 1 + max(item for sequence in sequences for item in sequence)
        texts = texts if texts is not None else [" ".join(["word"] * (1 + row)) for row in range(num_items)]
        _write_csv(folder / "items.csv", ["item_id", "text"], [[_item(k), text or ""] for k, text in enumerate(texts)])
        log = [
            [f"u{user:02d}", _item(item), 1000 + place if times is None else times[user][place]]
            for user, sequence in enumerate(sequences)
            for place, item in enumerate(sequence)
        ]
        _write_csv(folder / "interactions.csv", ["user_id", "item_id", "timestamp"], log)
        for row in images:
            Image.new("RGB", (32, 32), (10 * row,) * 3).save(folder / "images" / f"{_item(row)}.jpg", quality=95)
        domain = import_table(
            TableImport(
                items=folder / "items.csv",
                interactions=folder / "interactions.csv",
                images=folder / "images" if images else None,
                name=name,
                out=parent / name,
                k_core=None,
            )
        )
        assert domain.item_ids.to_pylist() == [_item(row) for row in range(len(texts))]
        assert domain.user_ids.to_pylist() == [f"u{user:02d}" for user in range(len(sequences))]
        return domain

    return lambda parent: partial(make, parent)


def _item(row: int) -> str:
    return f"i{row:02d}"


def _write_csv(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def shop(make_domain: MakeDomain) -> Domain:
    return make_domain(SEQUENCES, texts=TEXTS, images=[0, 1, 2, 5, 7])


@pytest.fixture
def films(make_domain: MakeDomain) -> Domain:
    """Longer texts, and no image at all."""
    texts = [" ".join(["w" * (1 + row)] * 6) for row in range(8)]
    return make_domain(SEQUENCES, name="films", texts=texts)


@pytest.fixture
def open_reader(tmp_path: Path, tokenizer_class: type) -> Callable[..., ItemReader]:
    def make(*domains: Domain, say: Say = silent, **settings: int) -> ItemReader:
        reads = {"text": TextSpec(tokenizer_class(**settings)), "image": PixelSpec(8)}
        return ItemReader(domains, reads, tmp_path / "cache", max_unreadable=1, say=say)

    return make


@pytest.fixture
def keep(open_reader: Callable[..., ItemReader]) -> Callable[..., ItemReader]:
    """A reader that keeps the states of both modalities."""

    def make(*domains: Domain, prefix: Ladder | None = None, precision: str = "float32", **settings: int) -> ItemReader:
        reader, prefix = open_reader(*domains, **settings), prefix or Ladder()
        for modality in Modality:
            reader.keep_states(modality, prefix, PrefixConfig(precision=precision))
        return reader

    return make


@pytest.fixture(scope="module")
def shops(
    domain_maker: Callable[[Path], MakeDomain],
    tokenizer_class: type[WordTokenizer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Shops:
    folder = tmp_path_factory.mktemp("shops")
    return Shops(domain_maker(folder), tokenizer_class(), folder / "cache")
