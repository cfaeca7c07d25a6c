import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pmmrec.contracts import Modality
from pmmrec.data.images import pixels
from pmmrec.data.importers import picture_folder, pictures
from pmmrec.errors import DataError

ROWS = np.arange(3)


def shades(domain) -> list[int | None]:
    """Shade of each item's image, rounded to tens."""
    return [None if jpeg is None else round(pixels(jpeg, 4).mean() / 10) * 10 for jpeg in domain.jpegs(ROWS)]


def test_pictures_find_their_items_by_name(shop) -> None:
    shop.paint("a.jpg", 10)
    shop.paint("c.WEBP", 30)
    domain = shop.run(images=shop.folder / "pictures")
    assert shades(domain) == [10, None, 30]
    assert domain.has[Modality.IMAGE].tolist() == [True, False, True]
    assert domain.info.num_with[Modality.IMAGE] == 2


def test_images_keep_the_order_of_items_whatever_thread_ends_first(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "IMAGE_BATCH", 7)
    ids = [f"i{k}" for k in range(40)]
    shop.items.write_text("item_id,text\n" + "".join(f"{item_id},x\n" for item_id in ids))
    shop.interactions.write_text("user_id,item_id\nu,i3\n")
    for k, item_id in enumerate(ids):
        shop.paint(f"{item_id}.png", 5 * k)
    domain = shop.run(images=shop.folder / "pictures", num_threads=8)
    found = [round(float(pixels(jpeg, 4).mean())) for jpeg in domain.jpegs(np.arange(40))]
    assert np.abs(np.array(found) - 5 * np.arange(40)).max() <= 1  # measured 0


def test_each_image_names_the_file_it_came_from(shop) -> None:
    picture = shop.paint("b.png")
    with pa.memory_map(str(shop.run(images=shop.folder / "pictures").folder / "images.arrow")) as source:
        hashes = pa.ipc.open_file(source).read_all()["source_sha256"].to_pylist()
    assert hashes == [None, hashlib.sha256(picture.read_bytes()).digest(), None]


def test_pictures_of_unknown_items_are_ignored_and_counted(shop, rejected) -> None:
    picture = shop.paint("a.png").read_bytes()
    (shop.folder / "pictures" / ".hidden").mkdir()
    for name in ("stranger.png", "A.png", "b.txt", "b.png.bak", ".hidden/c.png"):
        (shop.folder / "pictures" / name).write_bytes(picture)
    domain = shop.run(images=shop.folder / "pictures")
    assert shades(domain) == [100, None, None]
    assert domain.info.summary.num_pictures_ignored == 2
    assert "ignored 2 pictures that belong to no item" in domain.info.summary.lines()
    assert rejected(domain) == []


def test_of_two_pictures_of_an_item_the_jpeg_is_taken(shop, rejected) -> None:
    shop.paint("a.png", 200)
    shop.paint("a.jpg", 50)
    domain = shop.run(images=shop.folder / "pictures")
    assert shades(domain)[0] == 50
    assert domain.info.summary.num_pictures_ignored == 0
    assert rejected(domain) == [("image", "a", None, "second picture of an item")]
    assert domain.info.summary.notes[-2] == (
        "images: 1 pictures are second pictures of an item; of those in the nearest folder, the first in the order "
        ".jpg, .jpeg, .jfif, .png, .webp, .gif, .bmp is taken (a.png)"
    )


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.jfif", "JPEG"), ("a.Png", "PNG"), ("a.gif", "GIF"), ("a.BMP", "BMP")],
)
def test_formats_are_read_whatever_the_case_of_the_suffix(shop, rejected, name: str, form: str) -> None:
    stored = io.BytesIO()
    Image.new("RGB", (32, 32), (90,) * 3).save(stored, format=form)
    shop.write(f"pictures/{name}", stored.getvalue())
    domain = shop.run(images=shop.folder / "pictures")
    assert shades(domain) == [90, None, None]
    assert rejected(domain) == []
    assert domain.info.summary.notes[1:] == ("images: 1 items have a picture by name, 2 have none",)


def test_every_unused_picture_is_noted_with_its_name_and_reason(shop, rejected) -> None:
    picture = shop.paint("a.png").read_bytes()
    for name in ("a.PNG", "a.webp", "a.tif", "b.tiff", "c.HEIC", "stranger.avif", "C.png", "notes.txt", ".DS_Store"):
        shop.write(f"pictures/{name}", picture)
    for name in ("010/0", "011", ".hidden"):
        (shop.folder / "pictures" / name).mkdir(parents=True)
        (shop.folder / "pictures" / name / "c.png").write_bytes(picture)
    domain = shop.run(images=shop.folder / "pictures")
    assert shades(domain) == [100, None, 100]
    assert rejected(domain) == [
        ("image", "a", None, "format not read: .tif"),
        ("image", "a", None, "second picture of an item"),
        ("image", "a", None, "second picture of an item"),
        ("image", "b", None, "format not read: .tiff"),
        ("image", "c", None, "format not read: .heic"),
        ("image", "c", None, "second picture of an item"),
    ]
    assert domain.info.summary.num_pictures_ignored == 2
    unread, case, matched = domain.info.summary.notes[2:]
    assert "3 pictures are second pictures of an item" in domain.info.summary.notes[1]
    assert domain.info.summary.notes[1].endswith(
        "(010/0/c.png, a.png, a.webp)"
    )  # a.PNG is taken: upper case sorts first
    assert unread == (
        "images: 3 pictures of items are in formats that are not read; save them as jpg, png or webp "
        "(a.tif, b.tiff, c.HEIC)"
    )
    assert case == (
        "images: 1 pictures differ from an item id only in upper and lower case; names must be equal (C.png)"
    )
    assert matched == "images: 2 items have a picture by name, 1 have none"


@pytest.mark.parametrize("suffix", [".jpe", ".pjpeg", ".apng", ".ppm", ".NEF", ".j2k"])
def test_a_picture_of_an_item_under_a_suffix_that_is_not_read_is_said(shop, rejected, suffix: str) -> None:
    picture = shop.paint("a.png").read_bytes()
    shop.write(f"pictures/b{suffix}", picture)
    domain = shop.run(images=shop.folder / "pictures")
    assert rejected(domain) == [("image", "b", None, f"format not read: {suffix.lower()}")]
    assert domain.info.summary.notes[1].endswith(f"(b{suffix})")


def test_a_name_that_is_equal_but_for_the_form_of_its_accents_is_said(shop) -> None:
    shop.items.write_text("item_id,text\na,red\ncaf\u00e9,blue\n", encoding="utf-8")
    shop.interactions.write_text("user_id,item_id\nu,a\nu,caf\u00e9\n", encoding="utf-8")
    shop.paint("a.png")
    shop.paint("cafe\u0301.png")
    domain = shop.run(images=shop.folder / "pictures")
    assert domain.info.summary.kept["images"] == 1
    assert domain.info.summary.notes[1].startswith("images: 1 pictures differ from an item id only in the Unicode form")


def test_only_the_first_names_are_shown(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_folder, "LIST_BATCH", 2)
    for name in ("a.png", "b.png", "c.png", "a.gif", "b.gif", "c.gif", "a.bmp"):
        shop.paint(name)
    domain = shop.run(images=shop.folder / "pictures")
    assert domain.info.summary.notes[1].endswith("is taken (a.bmp, a.gif, b.gif, ...)")
    assert domain.info.summary.rejected == {"image": {"second picture of an item": 4}}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["a.tiff"],
            "none of its 1 pictures can be read; .*; images: 1 pictures of items are in formats that are not read",
        ),
        (
            ["A.png"],
            r"none of its 1 pictures belongs to an item; .* upper and lower case; names must be equal \(A.png\)",
        ),
        (
            [".hidden/a.png"],
            "none of its 0 pictures belongs to an item; name them",
        ),
    ],
)
def test_a_folder_without_usable_pictures_is_refused_with_its_content(shop, names: list[str], message: str) -> None:
    for name in names:
        (shop.folder / "pictures" / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(shop.folder / "pictures" / name)
    with pytest.raises(DataError, match=message):
        shop.run(images=shop.folder / "pictures")


def test_an_id_never_becomes_a_path(shop, rejected) -> None:
    shop.items.write_text("item_id,text\n../secret,x\n/etc/passwd,y\na,z\n")
    shop.paint("a.png")
    shop.paint("../secret.png")
    domain = shop.run(images=shop.folder / "pictures")
    assert shades(domain) == [None, None, 100]
    assert all(kind != "image" for kind, *_ in rejected(domain))


def test_entries_that_are_not_files_are_rejected_without_waiting(shop, rejected) -> None:
    folder = shop.paint("c.png").parent
    os.mkfifo(folder / "pipe")
    (folder / "a.png").symlink_to(folder / "pipe")
    (folder / "b.png").symlink_to("b.png")
    reasons = {row[1]: row[3] for row in rejected(shop.run(images=folder))}
    assert reasons == {"a": "not a file", "b": "cannot be read: Too many levels of symbolic links"}


def test_links_may_lead_within_the_folder_only(shop, rejected) -> None:
    inside = shop.paint("real.png", 70)
    outside = shop.paint("../outside.png", 70)
    (shop.folder / "pictures" / "a.png").symlink_to(inside)
    (shop.folder / "pictures" / "b.png").symlink_to(outside)
    (shop.folder / "pictures" / "c.png").symlink_to(shop.folder / "pictures" / "nowhere.png")
    domain = shop.run(images=shop.folder / "pictures")
    assert shades(domain) == [70, None, None]
    assert set(rejected(domain)) == {
        ("image", "b", None, "link to a file outside the folder"),
        ("image", "c", None, "cannot be read: No such file or directory"),
    }


def bomb() -> bytes:
    stored = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(stored, format="PNG")
    return stored.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"not a picture", "not a picture of a known format (JPEG, PNG, WEBP, GIF, BMP)"),
        (bomb(), "more than 50,000,000 pixels"),
    ],
)
@pytest.mark.parametrize("text", ["hat", ""])
def test_a_picture_that_cannot_be_read_costs_its_item_the_image_only(
    shop, rejected, content: bytes, reason: str, text: str, recwarn: pytest.WarningsRecorder
) -> None:
    shop.items.write_text(f"item_id,text\na,red\nb,{text}\nc,blue\n")
    shop.write("pictures/b.png", content)
    shop.paint("a.png")
    domain = shop.run(images=shop.folder / "pictures")
    bare = [] if text else [("item", "b", 2, "neither text nor image")]
    lost = [] if text else [("interaction", "v/b", 2, "item with neither text nor image")]
    assert rejected(domain) == [("image", "b", None, reason), *lost, *bare]
    assert domain.num_items == (3 if text else 2)
    assert not [warning for warning in recwarn if "bomb" in str(warning.message)]


def test_a_picture_too_large_to_read_is_rejected(shop, rejected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PICTURE_BYTES", 1000)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    shop.paint("a.png")
    Image.fromarray(noise).save(shop.folder / "pictures" / "b.png")
    assert rejected(shop.run(images=shop.folder / "pictures")) == [("image", "b", None, "larger than 1,000 bytes")]


def test_an_item_without_text_lives_by_its_picture(shop, sequences) -> None:
    shop.items.write_text("item_id,text\na,\nb,\nc,hat\n")
    shop.paint("b.png", 80)
    domain = shop.run(images=shop.folder / "pictures")
    assert domain.item_ids.to_pylist() == ["b", "c"]
    assert sequences(domain) == {"v": ["b"], "u": ["c"]}
    assert round(pixels(domain.jpegs(np.array([0]))[0], 4).mean()) == 80


def test_each_picture_is_decoded_once(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.items.write_text("item_id,text\na,\nb,\nc,hat\n")
    decoded = []
    real = pictures.stored_jpeg
    monkeypatch.setattr(pictures, "stored_jpeg", lambda data, side: decoded.append(side) or real(data, side))
    for name in ("a.png", "b.png", "c.png", "stranger.png"):
        shop.paint(name)
    shop.run(images=shop.folder / "pictures", image_side=20)
    assert decoded == [20] * 3


def test_pictures_of_items_outside_the_core_are_not_decoded(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.interactions.write_text("user_id,item_id\nu,a\nu,a\nv,b\n")
    decoded = []
    real = pictures.stored_jpeg
    monkeypatch.setattr(pictures, "stored_jpeg", lambda data, side: decoded.append(side) or real(data, side))
    shop.paint("a.png")
    shop.paint("b.png")
    shop.run(images=shop.folder / "pictures", k_core=2)
    assert len(decoded) == 1


def test_a_folder_without_pictures_of_items_is_refused(shop) -> None:
    shop.paint("stranger.png")
    with pytest.raises(DataError, match=r"none of its 1 pictures belongs to an item; name them <item_id>\.jpg"):
        shop.run(images=shop.folder / "pictures")
    assert not shop.out.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere", "pictures cannot be listed"), ("items.csv", "no pictures are read from such a file")],
)
def test_a_folder_that_cannot_be_listed_is_refused(shop, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        shop.run(images=shop.folder / name)


def test_file_names_that_are_not_text_are_ignored(shop) -> None:
    picture: Path = shop.paint("a.png")
    try:
        (Path(os.fsdecode(os.fsencode(picture.parent) + b"/\xff.png"))).write_bytes(picture.read_bytes())
    except OSError:
        pytest.skip("this file system keeps to UTF-8 names")
    assert shades(shop.run(images=shop.folder / "pictures"))[0] == 100
