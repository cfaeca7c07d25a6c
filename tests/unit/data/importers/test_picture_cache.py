"""Pictures that were decoded by an earlier import are not decoded again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pmmrec.data.importers import picture_cache, pictures
from pmmrec.data.importers.picture_cache import FILE, PictureCache

SOURCE = bytes(range(32))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sides of all pictures that are decoded from now on."""
    sides: list[int] = []
    real = pictures.stored_jpeg
    monkeypatch.setattr(pictures, "stored_jpeg", lambda data, side: sides.append(side) or real(data, side))
    return sides


def test_a_second_import_decodes_none_and_gives_the_same_bytes(shop, decoded: list[int]) -> None:
    shop.items.write_text("item_id,text\na,\nb,blue\nc,hat\n")
    for name, shade in (("a.png", 10), ("b.png", 20), ("c.png", 30)):
        shop.paint(name, shade)
    settings = {"images": shop.folder / "pictures", "cache": shop.folder / "cache"}
    first = shop.run(**settings)
    assert len(decoded) == 3
    again = shop.run(**settings, out=shop.folder / "again", num_threads=1)
    assert len(decoded) == 3
    without = shop.run(images=shop.folder / "pictures", out=shop.folder / "without")
    for name in ("images.arrow", "domain.json", "pictures.parquet"):
        assert len({(domain.folder / name).read_bytes() for domain in (first, again, without)}) == 1


def test_an_import_without_pictures_makes_no_cache(shop) -> None:
    shop.items.write_text("item_id,text\na,red\n")
    shop.interactions.write_text("user_id,item_id\nu,a\n")
    shop.run(cache=shop.folder / "cache")
    assert not (shop.folder / "cache").exists()


def test_pictures_that_changed_and_other_sides_are_decoded(shop, decoded: list[int]) -> None:
    for name in ("a.png", "b.png"):
        shop.paint(name, 10 + ord(name[0]))
    settings = {"images": shop.folder / "pictures", "cache": shop.folder / "cache"}
    shop.run(**settings)
    shop.paint("b.png", 3)
    shop.run(**settings, out=shop.folder / "changed")
    shop.run(**settings, out=shop.folder / "smaller", image_side=16)
    assert decoded == [256, 256, 256, 16, 16]


def test_a_stopped_import_continues_with_what_it_had_decoded(
    shop, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "IMAGE_BATCH", 2)
    ids = [f"i{number}" for number in range(40)]
    shop.items.write_text("item_id,text\n" + "".join(f"{item_id},x\n" for item_id in ids))
    shop.interactions.write_text("user_id,item_id\nu,i3\n")
    for number, item_id in enumerate(ids):
        shop.paint(f"{item_id}.png", number)
    settings = {"images": shop.folder / "pictures", "cache": shop.folder / "cache", "num_threads": 1}
    real = pictures.Pictures._cached
    batches: list[int] = []

    def stop_at_ten(self: pictures.Pictures, batch: list) -> None:
        real(self, batch)
        batches.append(len(batch))
        if len(batches) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(pictures.Pictures, "_cached", stop_at_ten)
    with pytest.raises(KeyboardInterrupt):
        shop.run(**settings)
    assert not shop.out.exists()
    decoded.clear()
    monkeypatch.setattr(pictures.Pictures, "_cached", real)
    assert shop.run(**settings).info.summary.kept["images"] == 40
    assert len(decoded) == 20


def test_a_damaged_picture_is_not_given(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path, 8)
    cache.put([(SOURCE, b"jpeg")])
    assert cache.get(SOURCE) == b"jpeg"
    cache.close()
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("UPDATE pictures SET jpeg = x'00'")
    assert PictureCache(tmp_path, 8).get(SOURCE) is None


def test_an_import_without_a_usable_cache_says_so_and_goes_on(shop, decoded: list[int]) -> None:
    shop.paint("a.png")
    shop.write(f"cache/{FILE}", b"no database at all" * 1000)
    with pytest.warns(UserWarning, match=r"pictures\.sqlite: pictures are decoded and not kept: "):
        shop.run(images=shop.folder / "pictures", cache=shop.folder / "cache")
    with pytest.warns(UserWarning, match="decoded and not kept"):
        shop.run(images=shop.folder / "pictures", cache=shop.items, out=shop.folder / "again")
    assert len(decoded) == 2


def test_the_first_pictures_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_cache, "MAX_BYTES", 200_000)
    cache = PictureCache(tmp_path, 8)
    keys = [number.to_bytes(32, "big") for number in range(100)]
    for key in keys:
        cache.put([(key, key * 300)])
    kept = [cache.get(key) is not None for key in keys]
    assert kept == sorted(kept)
    assert 10 <= sum(kept) <= 21
