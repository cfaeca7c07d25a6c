"""Inputs of encoders hold the content of the requested items, in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmmrec.contracts import ItemInputs, Modality, PixelSpec, TextSpec
from pmmrec.data.items import ItemReader
from pmmrec.errors import DataError
from tests.support.packed import texts_of

IMAGE = {"image": PixelSpec(size=8)}


@pytest.fixture
def shops(make_domain: Any) -> list[Any]:
    """Two domains with equal item ids: items 0 and 1 of the first and 1 of the second have no image, item 2 no text."""
    first = make_domain([[0, 1, 2, 3]], "first", texts=["a", "a bb", None, "a bb ccc"], images=[2, 3])
    second = make_domain([[0, 1, 2, 0]], "second", texts=["dddd", "dddd dddd", None], images=[0, 2])
    return [first, second]


@pytest.fixture
def reader(shops: list[Any], tokenizer: Any, tmp_path: Path) -> ItemReader:
    return ItemReader(shops, {"text": TextSpec(tokenizer), **IMAGE}, tmp_path / "cache")


def read(reader: ItemReader, *items: tuple[int, int]) -> ItemInputs:
    domain_U, row_U = np.array(items).T
    return reader.read(domain_U, row_U)


def test_items_of_several_domains_keep_their_order(reader: ItemReader) -> None:
    items = read(reader, (1, 0), (0, 1), (1, 1), (0, 0))
    text = items.fields["text"]
    assert texts_of(text) == {0: [1, 14], 1: [1, 11, 12], 2: [1, 14, 14], 3: [1, 11]}
    assert text.item_index_R.values.tolist() == [1, 2, 0, 3]  # longer texts first
    assert text.packing.length_R.tolist() == [3, 3, 2, 2]
    assert (items.domain_U.tolist(), items.row_U.tolist()) == ([1, 0, 1, 0], [0, 1, 1, 0])


def test_an_encoder_is_given_only_the_items_that_have_its_modality(reader: ItemReader) -> None:
    items = read(reader, (0, 0), (0, 2), (1, 0), (0, 3))
    assert {modality: has.tolist() for modality, has in items.has_U.items()} == {
        Modality.TEXT: [True, False, True, True],
        Modality.IMAGE: [False, True, True, True],
    }
    assert sorted(items.fields["text"].item_index_R.values) == [0, 2, 3]
    assert items.fields["image"].item_index_R.values.tolist() == [1, 2, 3]
    assert items.fields["image"].pixels_RCHW.shape == (3, 3, 8, 8)
    greys = items.fields["image"].pixels_RCHW.float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(greys, torch.tensor([20.0, 0.0, 30.0]), rtol=0, atol=1.5)  # JPEG; measured 0


def test_one_padding_token_is_read_where_no_item_has_a_text(reader: ItemReader) -> None:
    text = read(reader, (0, 2), (1, 2)).fields["text"]
    assert text is not None
    assert texts_of(text) == {2: [0]}  # of no item: there are two


def test_one_grey_image_is_read_where_no_item_has_one(reader: ItemReader) -> None:
    image = read(reader, (0, 0), (1, 1)).fields["image"]
    assert image is not None
    assert image.pixels_RCHW.shape == (1, 3, 8, 8)
    assert (image.pixels_RCHW == 128).all()
    assert image.pixels_RCHW.dtype == torch.uint8
    assert image.item_index_R.values.tolist() == [2]


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_the_catalogue_holds_every_content_once_longest_texts_first(reader: ItemReader, chunk: int) -> None:
    chunks = list(reader.catalogue(0, chunk))
    rows = torch.cat([items.row_U for items in chunks]).tolist()
    assert rows == [3, 1, 0, 2]
    assert all(items.num_items <= chunk and (items.domain_U == 0).all() for items in chunks)
    assert texts_of(chunks[0].fields["text"])[0] == [1, 11, 12, 13]


def test_the_catalogue_holds_equal_items_once(make_domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    shop = make_domain([[0, 1, 2, 3, 4]], texts=["a", "aa bb", "b", "cc dd", "e ff"])
    reader = ItemReader([shop], {"text": TextSpec(tokenizer)}, tmp_path / "cache")
    assert [items.row_U.tolist() for items in reader.catalogue(0, 2)] == [[1, 4], [0]]


def test_images_are_compared_once_for_all_epochs(
    shops: list[Any], reader: ItemReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reader.contents(0)
    monkeypatch.delattr(type(shops[0]), "jpegs")  # whoever reads images now fails
    assert reader.contents(0) is first
    assert len(list(reader.catalogue(0, 1))) == 4


def test_a_model_that_knows_items_by_id_is_given_ids_only(shops: list[Any], tmp_path: Path) -> None:
    reader = ItemReader(shops, {}, tmp_path / "cache")
    items = read(reader, (0, 1), (1, 2))
    assert (items.row_U.tolist(), items.has_U, items.fields) == ([1, 2], {}, {})
    assert [items.row_U.tolist() for items in reader.catalogue(0, 3)] == [[0, 1, 2], [3]]
    assert not (tmp_path / "cache").exists()


def test_a_domain_without_images_needs_no_pixels(make_domain: Any, tokenizer: Any, tmp_path: Path) -> None:
    reads = {"text": TextSpec(tokenizer), **IMAGE}
    reader = ItemReader([make_domain([[0, 1, 2]])], reads, tmp_path / "cache")
    image = read(reader, (0, 1)).fields["image"]
    assert image is not None
    assert (image.pixels_RCHW == 128).all()


@pytest.mark.parametrize("max_unreadable", [0.0, 0.05, 0.49])
def test_more_items_with_nothing_to_read_than_allowed_are_an_error(
    shops: list[Any], max_unreadable: float, tmp_path: Path
) -> None:
    words = (
        r"first: 2 of 4 items have no image for the model to read \('i00', 'i01'\), "
        rf"more than the share of {max_unreadable:g} that may be so"
    )
    with pytest.raises(DataError, match=words):
        ItemReader(shops, IMAGE, tmp_path / "cache", None, max_unreadable)


def test_items_with_nothing_to_read_are_named_and_given_to_no_encoder(shops: list[Any], tmp_path: Path) -> None:
    reader = ItemReader(shops, IMAGE, tmp_path / "cache", None, 0.5)
    first, second = reader.warnings
    assert "first: 2 of 4 items have no image for the model to read ('i00', 'i01'); they count as zero" in first
    assert "second: 1 of 3 items have no image for the model to read ('i01'); they count as zero" in second
    assert [items.row_U.tolist() for items in reader.catalogue(0, 9)] == [[2, 3]]
    items = read(reader, (0, 0), (0, 2))
    assert items.fields["image"].item_index_R.values.tolist() == [1]
    assert items.has_U[Modality.IMAGE].tolist() == [False, True]


def test_a_domain_without_the_modality_is_refused_whatever_is_allowed(make_domain: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 of 3 items have no image for the model to read"):
        ItemReader([make_domain([[0, 1, 2]])], IMAGE, tmp_path / "cache", None, 1.0)


def test_there_is_no_warning_where_each_item_can_be_read(shops: list[Any], reader: ItemReader) -> None:
    assert reader.warnings == ()
