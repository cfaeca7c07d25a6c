"""Pictures in a column of a parquet file follow the same rules as pictures in a folder."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmmrec.contracts import Modality
from pmmrec.data.domain import Domain
from pmmrec.data.images import pixels
from pmmrec.data.importers import picture_column, pictures
from pmmrec.data.importers.new_items import import_new_items
from pmmrec.errors import DataError, RecipeError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(shade: int, form: str = "PNG") -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (32, 32), (shade,) * 3).save(stored, format=form)
    return stored.getvalue()


def write(shop, images: pa.Array, **more: object) -> Path:
    path = shop.folder / "items.parquet"
    texts = more.pop("text", ["red", "blue", "hat"])
    pq.write_table(
        pa.table({"item_id": ["a", "b", "c"], "text": texts, "image": images, **more}), path, row_group_size=2
    )
    return path


def shades(domain: Domain) -> list[int | None]:
    jpegs = domain.jpegs(np.arange(domain.num_items))
    return [None if jpeg is None else round(pixels(jpeg, 4).mean() / 10) * 10 for jpeg in jpegs]


@pytest.mark.parametrize("kind", [STRUCT, pa.binary(), pa.large_binary(), pa.binary_view(), "dictionary", "reversed"])
def test_bytes_become_pictures(shop, rejected, kind: pa.DataType | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_column, "ROWS_AT_ONCE", 1)
    data = [picture(10), None, picture(30, "WEBP")]
    if kind == "dictionary":
        images = pa.array(data).dictionary_encode()
    elif kind == "reversed":
        fields = pa.struct([("path", pa.string()), ("width", pa.int32()), ("bytes", pa.large_binary())])
        images = pa.array([None if one is None else {"path": "x", "width": 1, "bytes": one} for one in data], fields)
    elif kind == STRUCT:
        images = pa.array([None if one is None else {"bytes": one, "path": "../etc/passwd"} for one in data], STRUCT)
    else:
        images = pa.array(data, kind)
    domain = shop.run(items=write(shop, images, price=["1", "2", "3"]), image_side=16)
    assert shades(domain) == [10, None, 30]
    assert domain.has[Modality.IMAGE].tolist() == [True, False, True]
    assert domain.info.image_side == 16
    assert rejected(domain) == []
    assert len(domain.info.summary.notes) == 1
    with pa.memory_map(str(domain.folder / "items.arrow")) as source:
        assert pa.ipc.open_file(source).schema.names == ["item_id", "text", "price"]
    with pa.memory_map(str(domain.folder / "images.arrow")) as source:
        hashes = pa.ipc.open_file(source).read_all()["source_sha256"].to_pylist()
    assert hashes == [hashlib.sha256(data[0]).digest(), None, hashlib.sha256(data[2]).digest()]


def test_a_folder_and_a_column_of_the_same_pictures_make_the_same_images(shop) -> None:
    for name, shade in (("a.png", 10), ("c.png", 30)):
        shop.paint(name, shade)
    files = [(shop.folder / "pictures" / f"{name}.png") for name in "abc"]
    data = [path.read_bytes() if path.exists() else None for path in files]
    expected = shop.run(images=shop.folder / "pictures")
    found = shop.run(items=write(shop, pa.array(data)), out=shop.folder / "other")
    assert found.info.files["images.arrow"] == expected.info.files["images.arrow"]


def test_items_without_text_live_by_their_bytes_and_each_picture_is_decoded_once(
    shop, rejected, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    real = pictures.stored_jpeg
    monkeypatch.setattr(pictures, "stored_jpeg", lambda data, side: decoded.append(side) or real(data, side))
    path = write(shop, pa.array([picture(10), b"no picture", picture(30)]), text=[None, None, "hat"])
    domain = shop.run(items=path)
    assert domain.item_ids.to_pylist() == ["a", "c"]
    assert shades(domain) == [10, 30]
    assert len(decoded) == 3
    assert ("item", "b", 2, "neither text nor image") in rejected(domain)


def test_pictures_of_items_outside_the_core_are_passed_over(shop) -> None:
    shop.interactions.write_text("user_id,item_id\nu,c\nu,c\nv,b\n")
    domain = shop.run(items=write(shop, pa.array([picture(10), picture(20), picture(30)])), k_core=2)
    assert domain.item_ids.to_pylist() == ["c"]
    assert shades(domain) == [30]


def test_the_limits_of_files_hold_for_bytes(shop, rejected, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(wide, format="PNG", compress_level=9)
    bomb = wide.getvalue()
    images = pa.array([bomb, b"", picture(30, "TIFF")[:900]])
    monkeypatch.setattr(pictures, "MAX_PICTURE_BYTES", len(bomb))
    domain = shop.run(items=write(shop, images))
    unknown = "not a picture of a known format (JPEG, PNG, WEBP, GIF, BMP)"
    assert rejected(domain) == [
        ("image", "a", None, "more than 50,000,000 pixels"),
        ("image", "b", None, "empty file"),
        ("image", "c", None, unknown),
    ]
    monkeypatch.setattr(pictures, "MAX_PICTURE_BYTES", len(bomb) - 1)
    again = shop.run(items=write(shop, images), out=shop.folder / "again")
    assert rejected(again)[0] == ("image", "a", None, f"larger than {len(bomb) - 1:,} bytes")


def test_a_path_is_never_opened(shop, rejected) -> None:
    secret = shop.paint("secret.png")
    images = pa.array([{"bytes": None, "path": str(secret)}, None, {"bytes": picture(30), "path": None}], STRUCT)
    domain = shop.run(items=write(shop, images))
    assert shades(domain) == [None, None, 30]
    assert rejected(domain) == [("image", "a", None, "a path without bytes")]


def test_a_column_of_nulls_holds_no_pictures(shop, rejected) -> None:
    path = write(shop, pa.array([{"bytes": None, "path": "x.png"}, None, None], STRUCT))
    domain = shop.run(items=path)
    assert not (domain.folder / "images.arrow").exists()
    assert domain.info.image_side is None
    assert rejected(domain) == [("image", "a", None, "a path without bytes")]
    with pytest.raises(RecipeError, match="image_side has no effect without images"):
        shop.run(items=path, out=shop.folder / "other", image_side=64)


def test_a_column_and_a_folder_are_refused(shop) -> None:
    shop.paint("a.png")
    path = write(shop, pa.array([picture(10), None, None]))
    with pytest.raises(
        RecipeError, match="column 'image' holds pictures, and a folder of pictures is given too; leave"
    ):
        shop.run(items=path, images=shop.folder / "pictures")
    assert not shop.out.exists()


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("picture", pa.array([picture(10), None, None])),
        ("img", pa.array([{"bytes": picture(10), "path": "x"}, None, None], STRUCT)),
        ("images", pa.array([[{"bytes": picture(10), "path": "x"}], None, []], pa.list_(STRUCT))),
    ],
)
def test_bytes_of_another_name_are_said_and_left_out(shop, name: str, column: pa.Array) -> None:
    path = shop.folder / "items.parquet"
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], "text": ["x", "y", "z"], name: column}), path)
    domain = shop.run(items=path)
    assert domain.info.summary.notes[-1] == (
        f"items: columns of bytes not used: {name}; pictures are read from 'image', or from the column that "
        "--image-column names"
    )
    with pa.memory_map(str(domain.folder / "items.arrow")) as source:
        assert pa.ipc.open_file(source).schema.names == ["item_id", "text"]


def test_an_image_column_of_text_stays_an_attribute_and_is_said(shop) -> None:
    shop.items.write_text("item_id,text,image\na,red,https://shop/a.jpg\nb,blue,\nc,hat,\n")
    shop.paint("a.png")
    domain = shop.run(images=shop.folder / "pictures")
    assert domain.has[Modality.IMAGE].tolist() == [True, False, False]
    assert (
        "items: column 'image' is VARCHAR and kept as text; pictures come from its bytes in a parquet file, or "
        in (domain.info.summary.notes[1])
    )


def test_new_items_bring_their_pictures_along(shop) -> None:
    path = write(shop, pa.array([None, picture(20), None]), text=["red", None, "hat"])
    domain = import_new_items(path, None, shop.folder / "work")
    assert domain.item_ids.to_pylist() == ["a", "b", "c"]
    assert shades(domain) == [None, 20, None]


def test_a_column_that_breaks_off_is_refused(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise pa.ArrowInvalid("a page is broken")

    path = write(shop, pa.array([picture(10), None, None]))
    monkeypatch.setattr(picture_column.pq, "ParquetFile", broken)
    with pytest.raises(DataError, match=r"items\.parquet: column 'image' cannot be read: a page is broken"):
        shop.run(items=path)
