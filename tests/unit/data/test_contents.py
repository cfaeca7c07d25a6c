"""Items are alike where the model is told the same of them, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmmrec.contracts import Modality
from pmmrec.data.contents import contents_of
from pmmrec.data.domain import Domain
from pmmrec.data.text import TokenTable

BOTH = frozenset({Modality.TEXT, Modality.IMAGE})
TEXT, IMAGE = frozenset({Modality.TEXT}), frozenset({Modality.IMAGE})
TEXTS = ["a bb", "x yy", "a bb", "a bb", None, "a bb ccc", None, "a bb"]
SAME_PICTURES = ((3, 2), (6, 4), (5, 1))  # the picture of the second is put in the place of the first


@pytest.fixture
def domain(make_domain: Callable[..., Domain], monkeypatch: pytest.MonkeyPatch) -> Domain:
    """Texts 0, 1, 2, 3 and 7 give the same tokens; images 2 and 3, 4 and 6, 1 and 5 are the same; 0 and 7 have none."""
    save = Image.Image.save

    def save_same(image: Image.Image, path: Path, **options: Any) -> None:
        for row, other in SAME_PICTURES:
            if isinstance(path, Path) and path.name == f"i{row:02d}.jpg":
                image = Image.new("RGB", image.size, (10 * other,) * 3)
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", save_same)
    return make_domain([list(range(8))], texts=TEXTS, images=[1, 2, 3, 4, 5, 6])


@pytest.fixture
def tokens(domain: Domain, tokenizer: Any, tmp_path: Path) -> TokenTable:
    return TokenTable.open(domain, tokenizer, tmp_path / "cache")


def test_texts_are_alike_where_their_tokens_are(domain: Domain, tokens: TokenTable) -> None:
    contents = contents_of(domain, TEXT, tokens)
    assert contents.same_as_N.tolist() == [0, 0, 0, 0, 4, 5, 4, 0]
    assert contents.is_readable_N.tolist() == [True] * 4 + [False, True, False, True]
    assert contents.distinct.tolist() == [0, 5]


def test_images_are_alike_where_their_bytes_are(domain: Domain) -> None:
    contents = contents_of(domain, IMAGE, None)
    assert contents.same_as_N.tolist() == [0, 1, 2, 2, 4, 1, 4, 0]
    assert contents.distinct.tolist() == [1, 2, 4]


def test_with_both_modalities_both_must_be_alike(domain: Domain, tokens: TokenTable) -> None:
    contents = contents_of(domain, BOTH, tokens)
    assert contents.same_as_N.tolist() == [0, 1, 2, 2, 4, 5, 4, 0]
    assert contents.is_readable_N.all()
    assert contents.distinct.tolist() == [0, 1, 2, 4, 5]


def test_only_images_of_items_with_the_same_text_are_read(
    domain: Domain, tokens: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    jpegs = domain.jpegs
    monkeypatch.setattr(domain, "jpegs", lambda rows: read.extend(rows.tolist()) or jpegs(rows))
    contents_of(domain, BOTH, tokens)
    assert read == [0, 1, 2, 3, 4, 6, 7]


def test_a_model_that_knows_ids_tells_all_items_apart(domain: Domain) -> None:
    contents = contents_of(domain, frozenset(), None)
    assert np.array_equal(contents.same_as_N, np.arange(8))
    assert np.array_equal(contents.distinct, np.arange(8))
