"""Pictures are found in folders below, by paths in a column, in archives and in LMDB files."""

from __future__ import annotations

import gzip
import io
import pickle
import stat
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.data.images import pixels
from pmmrec.data.importers import picture_archive
from pmmrec.data.importers.picture_database import check_whole
from pmmrec.errors import DataError, MachineError, RecipeError


def shades(domain: Domain) -> list[int | None]:
    images = domain.jpegs(np.arange(domain.num_items))
    return [None if jpeg is None else round(pixels(jpeg, 4).mean()) for jpeg in images]


def png(shade: int) -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (32, 32), (shade,) * 3).save(stored, format="PNG")
    return stored.getvalue()


def test_folders_below_are_searched_and_the_nearest_picture_is_taken(shop, rejected) -> None:
    for name, shade in (("0/0/a.png", 10), ("9/a.png", 20), ("0/b.png", 30), ("c.png", 40), ("0/c.png", 50)):
        (shop.folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (shop.folder / "pictures" / name).write_bytes(png(shade))
    (shop.folder / "pictures" / "loop").symlink_to(shop.folder / "pictures")
    domain = shop.run(images=shop.folder / "pictures")
    assert shades(domain) == [20, 30, 40]
    assert rejected(domain) == [("image", one, None, "second picture of an item") for one in "ac"]
    assert domain.info.summary.notes[-1] == "images: 3 items have a picture by name, 0 have none"


def test_paths_in_a_column_name_pictures(shop, rejected) -> None:
    for name, shade in (("one/x.png", 10), ("two/x.png", 20), ("y.png", 30)):
        (shop.folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (shop.folder / "pictures" / name).write_bytes(png(shade))
    paths = [
        "two/x.png",
        "./one/x.png",
        "data/pictures/y.png",
        "pictures\\y.png",
        "no.png",
        "../secret.png",
        "/etc/x.png",
        "",
    ]
    rows = [f"{number},text,{path}" for number, path in enumerate(paths)]
    (shop.folder / "secret.png").write_bytes(png(99))
    shop.items.write_text("\n".join(["item_id,text,cover", *rows]))
    shop.interactions.write_text("user_id,item_id\nu,1\n")
    domain = shop.run(images=shop.folder / "pictures", image_column="cover")
    assert shades(domain) == [20, 10, 30, 30, None, None, None, None]
    assert rejected(domain) == [
        ("image", "4", None, "no such picture"),
        ("image", "5", None, "path outside the folder"),
        ("image", "6", None, "path outside the folder"),
    ]
    assert domain.info.summary.notes[-1] == "images: 4 items have a picture by path, 4 have none"


def test_paths_that_name_no_picture_are_told_beside_a_name_that_would(shop) -> None:
    (shop.folder / "pictures" / "deep").mkdir(parents=True)
    (shop.folder / "pictures" / "deep" / "a.png").write_bytes(png(10))
    shop.items.write_text("item_id,text,cover\na,text,a.png\n")
    with pytest.raises(DataError, match=r"paths in the column must name files within it, such as 'deep/a\.png'$"):
        shop.run(images=shop.folder / "pictures", image_column="cover")


def test_a_file_that_holds_no_pictures_is_refused_with_what_would(shop) -> None:
    with pytest.raises(DataError, match=r"items\.csv: no pictures are read from such a file; give a folder, \.zip"):
        shop.run(images=shop.items)


def test_addresses_of_pictures_are_refused(shop) -> None:
    shop.paint("a.png")
    shop.items.write_text("item_id,text,cover\na,x,a.png\nb,y,http://169.254.169.254/b.png\n")
    with pytest.raises(RecipeError, match=r"row 2 holds an address, 'http://169.*; pictures are fetched with --fetch"):
        shop.run(images=shop.folder / "pictures", image_column="cover")
    with pytest.raises(RecipeError, match="holds paths, so name the folder"):
        shop.run(image_column="cover")
    with pytest.raises(DataError, match="no column 'photo'"):
        shop.run(images=shop.folder / "pictures", image_column="photo")


def test_a_column_of_bytes_of_another_name_is_read(shop) -> None:
    path = shop.folder / "items.parquet"
    covers = pa.array(
        [{"bytes": png(70), "path": "x"}, None], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({"item_id": ["a", "b"], "text": ["x", "y"], "cover": covers}), path)
    shop.interactions.write_text("user_id,item_id\nu,a\nu,b\n")
    assert shades(shop.run(items=path, image_column="cover")) == [70, None]


def archive(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["p.zip", "p.tar", "p.tar.gz"])
def test_archives_are_read_like_folders(shop, name: str) -> None:
    path = archive(shop.folder / name, {"x/a.png": png(10), "c.png": png(30), "notes.txt": b"x"})
    domain = shop.run(images=path)
    assert shades(domain) == [10, None, 30]
    assert sorted(one.name for one in domain.folder.iterdir()) == sorted(
        [*domain.info.files, "domain.json", "pictures.parquet"]
    )


def test_a_member_that_comes_twice_counts_once_if_its_bytes_are_the_same(shop) -> None:
    path = shop.folder / "p.tar"
    for content in (png(10), png(10)):
        with tarfile.open(path, "a") as file:
            info = tarfile.TarInfo("a.png")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    assert shades(shop.run(images=path)) == [10, None, None]
    for changed in (png(20), png(10)[:-1], png(10) + b"x"):
        with tarfile.open(shop.folder / "q.tar", "w") as file:
            for content in (png(10), changed):
                info = tarfile.TarInfo("x/a.png")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
        with pytest.raises(DataError, match=r"q\.tar: two members are called 'x/a\.png' and differ; keep one of them"):
            shop.run(images=shop.folder / "q.tar", out=shop.folder / "other")


def test_pictures_of_one_name_in_folders_side_by_side_are_ambiguous(shop, left_out) -> None:
    members = {"x/a.png": png(10), "y/a.jpg": png(20), "b.png": png(30), "x/b.jpg": png(40), "x/y/a.png": png(50)}
    domain = shop.run(images=archive(shop.folder / "p.zip", {**members, "stranger.png": png(1)}))
    assert shades(domain) == [None, 30, None]
    reason = "one of several in different folders"
    assert [(row["id"], row["image"], row["reason"]) for row in left_out(domain)] == [
        ("a", "x/a.png", reason),
        ("a", "x/y/a.png", reason),
        ("a", "y/a.jpg", reason),
        ("b", "x/b.jpg", "second picture of an item"),
    ]
    assert any(
        "3 pictures have the name of an item in several folders, and none of them is taken" in note
        for note in domain.info.summary.notes
    )
    assert pq.read_table(domain.folder / "pictures.parquet").to_pylist() == [
        {"item_id": "b", "image": "b.png", "outcome": "taken", "rule": "name"},
        {"item_id": None, "image": "stranger.png", "outcome": "belongs to no item", "rule": None},
        {"item_id": "a", "image": "x/a.png", "outcome": reason, "rule": "name"},
        {"item_id": "b", "image": "x/b.jpg", "outcome": "second picture of an item", "rule": "name"},
        {"item_id": "a", "image": "x/y/a.png", "outcome": reason, "rule": "name"},
        {"item_id": "a", "image": "y/a.jpg", "outcome": reason, "rule": "name"},
        {"item_id": "c", "image": None, "outcome": "no picture", "rule": None},
    ]


def test_the_table_of_pictures_says_what_became_of_each(shop) -> None:
    shop.write("pictures/bad.png", b"")
    shop.paint("good.png")
    shop.items.write_text("item_id,text,cover\na,red,good.png\nb,blue,bad.png\nc,hat,no.png\nd,x,good.png\n")
    domain = shop.run(images=shop.folder / "pictures", image_column="cover", k_core=1)
    assert [tuple(row.values()) for row in pq.read_table(domain.folder / "pictures.parquet").to_pylist()] == [
        ("b", "bad.png", "empty file", "path"),
        ("a", "good.png", "taken", "path"),
        ("d", "good.png", "taken, but the item is left out", "path"),
        ("c", None, "no such picture", None),
    ]


def test_shards_of_a_webdataset_are_read(shop) -> None:
    (shop.folder / "shards").mkdir()
    archive(shop.folder / "shards" / "0000.tar", {"a.png": png(10), "a.json": b"{}"})
    archive(shop.folder / "shards" / "0001.tar", {"b.png": png(20), "b.txt": b"red"})
    (shop.folder / "shards" / "info.json").write_text("{}")
    assert shades(shop.run(images=shop.folder / "shards")) == [10, 20, None]


@pytest.mark.parametrize("name", ["p.zip", "p.tar"])
@pytest.mark.parametrize("member", ["../a.png", "/srv/a.png", "x/../../a.png", "C:\\a.png", "x\\..\\a.png"])
def test_members_that_lead_out_are_refused_before_anything_is_written(shop, name: str, member: str) -> None:
    path = archive(shop.folder / name, {"b.png": png(10), member: png(20)})
    before = sorted(shop.folder.iterdir())
    with pytest.raises(DataError, match="leads out of the folder; nothing was unpacked"):
        shop.run(images=path)
    assert sorted(shop.folder.iterdir()) == before
    assert not (shop.folder.parent / "a.png").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(shop, kind: bytes) -> None:
    path = shop.folder / "p.tar"
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(DataError, match=r"'a\.png' is a link or device; nothing was unpacked"):
        shop.run(images=path)


def test_links_in_a_zip_are_refused(shop) -> None:
    path = shop.folder / "p.zip"
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="is a link or device"):
        shop.run(images=path)


@pytest.mark.parametrize("name", ["p.zip", "p.tar.gz"])
def test_archives_that_grow_or_have_too_many_members_are_refused(
    shop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = archive(shop.folder / name, {"a.png": bytes(200_000)})
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a.png", bytes(200_000))
    monkeypatch.setattr(picture_archive, "GROWTH_FROM_BYTES", 10_000)
    with pytest.raises(DataError, match="grows to more than 1"):
        shop.run(images=path)
    monkeypatch.setattr(picture_archive, "MAX_MEMBERS", 1)
    many = archive(shop.folder / name, {"a.png": b"", "b.png": b""})
    with pytest.raises(DataError, match="more than 1 members"):
        shop.run(images=many)


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.zip", b"no zip"), ("p.tar", b"no tar"), ("p.tar.gz", gzip.compress(b"x", mtime=0))],
    ids=["zip", "tar", "tar.gz"],
)
def test_broken_archives_are_refused(shop, name: str, content: bytes) -> None:
    with pytest.raises(DataError, match="cannot be unpacked"):
        shop.run(images=shop.write(name, content))


def test_a_member_with_wrong_bytes_is_refused(shop) -> None:
    path = shop.folder / "p.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", png(10) * 20)
    data = bytearray(path.read_bytes())
    for place in range(60, 80):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"p\.zip: cannot be unpacked"):
        shop.run(images=path)
    assert not shop.out.exists()


def test_members_whose_names_exclude_each_other_are_refused(shop) -> None:
    path = archive(shop.folder / "p.zip", {"a.png": png(1), "a.png/b.png": png(2)})
    with pytest.raises(DataError, match="names that exclude each other"):
        shop.run(images=path)


class LMDB_Image:
    def __init__(self, shade: int) -> None:
        self.channels, self.size, self.id = 3, (4, 6), 0
        self.image = np.full((4, 6, 3), shade, np.uint8).tobytes()


def in_main(value: object) -> bytes:
    """A pickle of an object of a script, as those that made the files."""
    main, old = sys.modules["__main__"], type(value).__module__
    type(value).__module__, main.LMDB_Image = "__main__", LMDB_Image  # type: ignore[attr-defined]
    try:
        return pickle.dumps(value)
    finally:
        type(value).__module__ = old
        del main.LMDB_Image  # type: ignore[attr-defined]


def database(path: Path, values: dict[bytes, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with (
        lmdb.open(str(path), subdir=False, map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key, value)
    return path


@pytest.mark.parametrize("keys", [(b"v1", b"v2"), (b"1", b"2")])
def test_lmdb_files_of_released_layouts_are_read(shop, keys: tuple[bytes, bytes]) -> None:
    shop.items.write_text("item_id,text\nv1,red\nv2,blue\nv3,hat\n")
    shop.interactions.write_text("user_id,item_id\nu,v1\n")
    floats = types.SimpleNamespace(image=np.full((3, 224, 224), 0.5, np.float32).tobytes())
    of_microlens = LMDB_Image(0)
    of_microlens.__dict__ = dict(floats.__dict__)
    values = dict(zip(keys, [in_main(LMDB_Image(40)), in_main(of_microlens)], strict=True))
    path = database(shop.folder / "p.lmdb", {**values, b"__keys__": pickle.dumps([]), b"__len__": pickle.dumps(2)})
    domain = shop.run(images=path)
    assert shades(domain) == [40, 191, None]
    rule = "name" if keys[0] == b"v1" else "name without the first letter of the id"
    assert domain.info.summary.notes[-1] == f"images: 2 items have a picture by {rule}, 1 have none"


def test_keys_may_have_a_letter_that_ids_lack_and_values_may_be_encoded(shop) -> None:
    shop.items.write_text("item_id,text\n1,red\n2,blue\n")
    shop.interactions.write_text("user_id,item_id\nu,1\n")
    assert shades(shop.run(images=database(shop.folder / "p.lmdb", {b"i1": png(60)}))) == [60, None]


def test_nothing_but_the_image_class_is_built_from_a_value(shop, rejected) -> None:
    canary = shop.folder / "canary"

    class Evil:
        def __reduce__(self) -> tuple:
            return open, (str(canary), "w")

    wrong_size = LMDB_Image(1)
    wrong_size.size = (4, 7)
    path = database(
        shop.folder / "p.lmdb", {b"a": pickle.dumps(Evil()), b"b": in_main(wrong_size), b"c": in_main(LMDB_Image(9))}
    )
    domain = shop.run(images=path)
    assert shades(domain) == [None, None, 9]
    assert {row[1]: row[3] for row in rejected(domain)} == dict.fromkeys("ab", "not a picture of a known LMDB layout")
    assert not canary.exists()


def test_an_lmdb_file_that_was_not_copied_whole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.lmdb"
    path.write_bytes(bytes(4096 * 3))
    pages = types.SimpleNamespace(info=lambda: {"last_pgno": 2}, stat=lambda: {"psize": 4096})
    check_whole(path, pages)
    pages.info = lambda: {"last_pgno": 3}
    with pytest.raises(DataError, match="12,288 bytes where its pages need 16,384; it was not copied whole"):
        check_whole(path, pages)


def test_a_file_that_is_no_lmdb_is_refused_and_the_package_is_named(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shop.write("p.lmdb", b"nothing of the kind" * 1000)
    pytest.importorskip("lmdb")
    with pytest.raises(DataError, match="cannot be read as an LMDB file"):
        shop.run(images=path)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(MachineError, match="lmdb is not installed; pip install"):
        shop.run(images=path)
