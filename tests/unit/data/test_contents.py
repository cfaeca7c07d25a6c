"""Items are the same exactly where the model reads the same content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmmrec.contracts import PixelSpec, TextSpec
from pmmrec.data.cache import ContentCache
from pmmrec.data.contents import contents_of
from pmmrec.data.domain import Domain
from pmmrec.data.text import TokenTable
from pmmrec.errors import MachineError

TEXT, IMAGE = {"text": TextSpec}, {"image": PixelSpec}
BOTH = {**TEXT, **IMAGE}
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
    return TokenTable.open(domain, tokenizer, ContentCache(tmp_path / "cache"))


def test_texts_are_the_same_where_their_tokens_are(domain: Domain, tokens: TokenTable, tmp_path: Path) -> None:
    contents = contents_of(domain, TEXT, {"text": tokens}, ContentCache(tmp_path))
    assert contents.same_as_N.tolist() == [0, 0, 0, 0, 4, 5, 4, 0]
    assert contents.is_readable_N.tolist() == [True] * 4 + [False, True, False, True]
    assert contents.distinct.tolist() == [0, 5]


def test_images_are_the_same_where_their_bytes_are(domain: Domain, tmp_path: Path) -> None:
    contents = contents_of(domain, IMAGE, {}, ContentCache(tmp_path))
    assert contents.same_as_N.tolist() == [0, 1, 2, 2, 4, 1, 4, 0]
    assert contents.distinct.tolist() == [1, 2, 4]


def test_with_both_modalities_both_must_be_the_same(domain: Domain, tokens: TokenTable, tmp_path: Path) -> None:
    contents = contents_of(domain, BOTH, {"text": tokens}, ContentCache(tmp_path))
    assert contents.same_as_N.tolist() == [0, 1, 2, 2, 4, 5, 4, 0]
    assert contents.is_readable_N.all()
    assert contents.distinct.tolist() == [0, 1, 2, 4, 5]


@pytest.fixture
def rows_read(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The items whose image was read from the domain, one after another."""
    read: list[int] = []
    jpegs = domain.jpegs
    monkeypatch.setattr(domain, "jpegs", lambda rows: read.extend(rows.tolist()) or jpegs(rows))
    return read


def test_images_are_read_once_ever_to_be_compared(
    domain: Domain, tokens: TokenTable, rows_read: list[int], tmp_path: Path
) -> None:
    first = contents_of(domain, BOTH, {"text": tokens}, ContentCache(tmp_path))
    assert rows_read == list(range(8))
    again = contents_of(domain, BOTH, {"text": tokens}, ContentCache(tmp_path))
    alone = contents_of(domain, IMAGE, {}, ContentCache(tmp_path))
    assert rows_read == list(range(8))
    assert np.array_equal(again.same_as_N, first.same_as_N)
    assert alone.same_as_N.tolist() == [0, 1, 2, 2, 4, 1, 4, 0]


def test_texts_alone_read_no_image(domain: Domain, tokens: TokenTable, rows_read: list[int], tmp_path: Path) -> None:
    contents_of(domain, TEXT, {"text": tokens}, ContentCache(tmp_path))
    assert rows_read == []


def test_other_images_are_compared_anew(domain: Domain, make_domain: Callable[..., Domain], tmp_path: Path) -> None:
    contents_of(domain, IMAGE, {}, ContentCache(tmp_path))
    other = make_domain([list(range(8))], name="other", images=[0, 1, 2])
    assert contents_of(other, IMAGE, {}, ContentCache(tmp_path)).same_as_N.tolist() == [0, 1, 2, 3, 3, 3, 3, 3]
    assert contents_of(domain, IMAGE, {}, ContentCache(tmp_path)).same_as_N.tolist() == [0, 1, 2, 2, 4, 1, 4, 0]


def _empty(kept: Path) -> None:
    kept.write_bytes(b"")


def _cut_short(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:-8])


def _lose_a_row(kept: Path) -> None:
    np.save(kept, np.load(kept)[:-1])


def _change_one_entry(kept: Path) -> None:
    np.save(kept, np.array([0, 1, 2, 2, 4, 1, 1, 0]))


def _lose_its_pages(kept: Path) -> None:
    """Zeros behind a header that is whole: every item would be like the first."""
    np.save(kept, np.zeros(8, dtype=np.int64))


def _lose_its_index(kept: Path) -> None:
    (kept.parent / "index.json").unlink()


def _harm_its_index(kept: Path) -> None:
    (kept.parent / "index.json").write_bytes(b"\xff")


HARMS = [
    *(_empty, _cut_short, _lose_a_row, _change_one_entry),
    *(_lose_its_pages, _lose_its_index, _harm_its_index),
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_comparison_is_made_again(
    domain: Domain, rows_read: list[int], tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    first = contents_of(domain, IMAGE, {}, ContentCache(tmp_path))
    (kept,) = tmp_path.glob("same-images-*/same_as.npy")
    harm(kept)
    rows_read.clear()
    assert np.array_equal(contents_of(domain, IMAGE, {}, ContentCache(tmp_path)).same_as_N, first.same_as_N)
    assert rows_read == list(range(8))
    assert np.array_equal(np.load(kept), first.same_as_N)


def test_a_cache_that_cannot_be_written_is_named(domain: Domain, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"file: image comparisons cannot be kept there: .*name another cache"):
        contents_of(domain, IMAGE, {}, ContentCache(tmp_path / "file"))


def test_all_items_differ_for_a_model_of_item_ids(domain: Domain, tmp_path: Path) -> None:
    contents = contents_of(domain, {}, {}, ContentCache(tmp_path))
    assert np.array_equal(contents.same_as_N, np.arange(8))
    assert np.array_equal(contents.distinct, np.arange(8))
