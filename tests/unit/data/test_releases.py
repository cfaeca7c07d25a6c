"""An entry of the cache is never read under another release of a library that computes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import features

from pmmrec.contracts import Modality, PixelSpec
from pmmrec.data import images, releases
from pmmrec.data.cache import ContentCache
from pmmrec.data.domain import Domain
from pmmrec.data.images import PixelTable
from pmmrec.data.items import ItemReader
from pmmrec.data.releases import LIBRARIES, made_by
from pmmrec.data.text import TokenTable

OTHER = "0.0.1"


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have one library be another release."""

    def set_release(name: str) -> None:
        real = releases.version
        if name == "pillow":
            monkeypatch.setattr(PIL, "__version__", OTHER)
        elif name == releases.JPEG_READER:
            monkeypatch.setattr(features, "version", lambda _: OTHER)
        else:
            monkeypatch.setattr(releases, "version", lambda asked: OTHER if asked == name else real(asked))

    return set_release


def kept(cache: Path, kind: str) -> set[str]:
    return {path.name for path in cache.glob(f"{kind}-*")}


def test_releases_are_named_once_in_plain_words() -> None:
    named = made_by("pixels", "states", "vectors")
    assert f"pillow {PIL.__version__}" in named
    assert [part.split()[0] for part in named.split(", ")] == [
        "pillow", "libjpeg", "torch", "transformers", "timm", "peft"
    ]  # fmt: skip
    assert "None" not in named


@pytest.mark.parametrize("name", LIBRARIES["pixels"])
def test_pixels_are_those_of_the_pillow_at_hand(
    shop: Domain, tmp_path: Path, pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows, spec = np.array([0, 1, 2]), PixelSpec(8)
    old = PixelTable.open(shop, spec, ContentCache(tmp_path / "cache")).read(rows)
    real = images.pixels
    monkeypatch.setattr(images, "pixels", lambda jpeg, size: real(jpeg, size) ^ 1)  # what another release computes
    pretend(name)
    np.testing.assert_array_equal(PixelTable.open(shop, spec, ContentCache(tmp_path / "cache")).read(rows), old ^ 1)
    monkeypatch.undo()
    np.testing.assert_array_equal(PixelTable.open(shop, spec, ContentCache(tmp_path / "cache")).read(rows), old)
    assert len(kept(tmp_path / "cache", "pixels")) == 2


@pytest.mark.parametrize("name", LIBRARIES["tokens"])
def test_tokens_are_made_again_by_another_release(
    shop: Domain, tmp_path: Path, tokenizer: object, pretend: Callable[[str], None], name: str
) -> None:
    for _ in range(2):
        TokenTable.open(shop, tokenizer, ContentCache(tmp_path))
    once = tokenizer.num_encoded
    pretend(name)
    TokenTable.open(shop, tokenizer, ContentCache(tmp_path))
    assert tokenizer.num_encoded == 2 * once


@pytest.mark.parametrize("name", LIBRARIES["states"])
def test_frozen_states_are_computed_again_by_another_release(
    keep: Callable[..., ItemReader], shop: Domain, tmp_path: Path, pretend: Callable[[str], None], name: str
) -> None:
    keep(shop)
    before = kept(tmp_path / "cache", "prefix")
    keep(shop)
    assert kept(tmp_path / "cache", "prefix") == before
    pretend(name)
    keep(shop)
    assert len(kept(tmp_path / "cache", "prefix")) == 2 * len(before) == 4


def test_states_of_images_depend_on_what_decodes_them_and_states_of_texts_do_not(
    keep: Callable[..., ItemReader], shop: Domain, tmp_path: Path, pretend: Callable[[str], None]
) -> None:
    keep(shop)
    pretend("pillow")
    keep(shop)
    assert len(kept(tmp_path / "cache", "prefix")) == 3


def test_the_same_images_are_the_same_under_every_release(
    shop: Domain, tmp_path: Path, open_reader: Callable[..., ItemReader], pretend: Callable[[str], None]
) -> None:
    for name in (None, *LIBRARIES["pixels"]):
        if name is not None:
            pretend(name)
        open_reader(shop).contents(0)
    assert len(kept(tmp_path / "cache", "same-images")) == 1


@pytest.mark.parametrize("name", [*LIBRARIES["pixels"], *LIBRARIES["tokens"]])
def test_items_read_by_another_release_are_other_items(
    shop: Domain, open_reader: Callable[..., ItemReader], pretend: Callable[[str], None], name: str
) -> None:
    reader = open_reader(shop)
    before = reader.fingerprint(0)
    pretend(name)
    assert reader.fingerprint(0) != before


def test_items_without_an_image_depend_on_no_reader_of_images(
    films: Domain, open_reader: Callable[..., ItemReader], pretend: Callable[[str], None]
) -> None:
    assert not films.has[Modality.IMAGE].any()
    reader = open_reader(films)
    before = reader.fingerprint(0)
    pretend("pillow")
    assert reader.fingerprint(0) == before
