import copy
import io
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmmrec.contracts import PixelSpec
from pmmrec.data import images
from pmmrec.data.cache import ContentCache
from pmmrec.data.domain import Domain
from pmmrec.data.images import PictureError, PixelTable, pixels, stored_jpeg
from pmmrec.errors import DataError, MachineError

RED, BLUE = (255, 0, 0), (0, 0, 255)
JPEG_ERROR = 3  # widest measured: 2, of flat colours at quality 90


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stored = io.BytesIO()
    image.save(stored, format=kind, **options)
    return stored.getvalue()


def two_halves(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def reread(data: bytes, side: int = 64) -> Image.Image:
    image = Image.open(io.BytesIO(stored_jpeg(data, side)))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return image


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its few bytes hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def assert_close(found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= JPEG_ERROR, (found, expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize(("size", "expected"), [((300, 200), (96, 64)), ((200, 300), (64, 96)), ((40, 30), (40, 30))])
def test_the_shortest_side_shrinks_and_never_grows(kind: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = reread(encoded(two_halves(*size), kind))
    assert image.size == expected
    assert_close(image.getpixel((4, 4)), RED)
    assert_close(image.getpixel((expected[0] - 4, 4)), BLUE)


def test_a_large_jpeg_decoded_small_looks_like_one_decoded_whole() -> None:
    ramp = np.add.outer(np.arange(600), np.arange(800)) % 256 // 8 * 8
    image = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    drafted = np.asarray(reread(encoded(image, "JPEG", quality=95)), dtype=int)
    whole = np.asarray(reread(encoded(image, "PNG")), dtype=int)
    assert np.abs(drafted - whole).mean() < 2  # measured 1.6; moved by three pixels it would be 48


def test_a_turned_photograph_is_set_upright_and_loses_its_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    exif[0x010F] = "a camera with a name"
    image = reread(encoded(two_halves(80, 40), "JPEG", exif=exif, quality=95))
    assert image.size == (40, 80)
    assert_close(image.getpixel((20, 8)), RED)
    assert_close(image.getpixel((20, 72)), BLUE)
    assert len(image.getexif()) == 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_metadata_does_not_cost_the_picture() -> None:
    assert reread(encoded(two_halves(40, 40), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).size == (40, 40)


def test_cmyk_becomes_rgb() -> None:
    image = reread(encoded(two_halves(40, 40).convert("CMYK"), "JPEG", quality=95))
    assert_close(image.getpixel((4, 4)), RED)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_transparent_pictures_are_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0)).convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    assert_close(reread(encoded(image, **options)).getpixel((20, 20)), (255, 255, 255))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((40, 40), 128 * 256, dtype=np.uint16))
    assert_close(reread(encoded(grey)).getpixel((20, 20)), (128, 128, 128))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert_close(reread(data).getpixel((20, 20)), RED)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am a picture", "not a picture of a known format"),
        (encoded(two_halves(40, 40), "TIFF"), "not a picture of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture of a known format"),
        (encoded(two_halves(400, 400), "JPEG")[:1500], "broken or truncated"),
        (encoded(two_halves(400, 400), "PNG")[:600], "broken or truncated"),
        (png_of(300, 300), "broken or truncated"),
    ],
)
def test_unreadable_pictures_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        stored_jpeg(data, 64)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [7_100, 10_000, 100_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    start = time.process_time()
    with pytest.raises(PictureError, match="more than 50,000,000 pixels"):
        stored_jpeg(png_of(side, side), 64)
    assert time.process_time() - start < 0.5  # measured 0.001 s; decoding 100 megapixels takes seconds


def test_pixels_squeeze_the_whole_picture_without_a_crop() -> None:
    squeezed = pixels(stored_jpeg(encoded(two_halves(120, 40)), 40), 16)
    assert (squeezed.shape, squeezed.dtype) == ((3, 16, 16), np.uint8)
    assert_close(tuple(int(c) for c in squeezed[:, 8, 1]), RED)
    assert_close(tuple(int(c) for c in squeezed[:, 8, 14]), BLUE)


def test_no_image_is_grey() -> None:
    assert np.unique(pixels(None, 4)).tolist() == [128]


@pytest.fixture
def domain(make_domain: Callable[..., Domain]) -> Domain:
    return make_domain([[0, 1, 2, 3, 4]], images=[1, 2, 4])


def test_a_table_holds_what_pixels_gives(domain: Domain, tmp_path: Path) -> None:
    table = PixelTable.open(domain, PixelSpec(8), ContentCache(tmp_path / "cache"))
    rows = np.array([4, 1, 4, 2])
    expected = np.stack([pixels(jpeg, 8) for jpeg in domain.jpegs(rows)])
    np.testing.assert_array_equal(table.read(rows), expected)
    np.testing.assert_array_equal(copy.deepcopy(table).read(rows), expected)


def test_a_table_is_built_once(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []
    PixelTable.open(domain, PixelSpec(8), ContentCache(tmp_path / "cache"), lambda *call: calls.append(call))
    assert calls == [("pixels", 3, 3)]
    PixelTable.open(domain, PixelSpec(8), ContentCache(tmp_path / "cache"), lambda *call: calls.append(call))
    assert len(calls) == 1
    PixelTable.open(domain, PixelSpec(4), ContentCache(tmp_path / "cache"), lambda *call: calls.append(call))
    assert len(calls) == 2


def test_tables_of_other_images_are_other_files(make_domain: Callable[..., Domain], tmp_path: Path) -> None:
    for name, rows in (("one", [0]), ("two", [1]), ("one_again", [0])):
        PixelTable.open(make_domain([[0, 1]], name=name, images=rows), PixelSpec(4), ContentCache(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_items_without_image_have_no_pixels(domain: Domain, tmp_path: Path) -> None:
    table = PixelTable.open(domain, PixelSpec(4), ContentCache(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"items \[0\] have no image"):
        table.read(np.array([0, 1]))


def test_a_domain_without_images_has_no_table(make_domain: Callable[..., Domain], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no item has an image"):
        PixelTable.open(make_domain([[0, 1]]), PixelSpec(4), ContentCache(tmp_path / "cache"))


def test_lack_of_room_is_said_before_the_work(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(images.shutil, "disk_usage", lambda _: free)
    with pytest.raises(MachineError, match=r"pixels need 144 bytes, 1,000 are free"):
        PixelTable.open(domain, PixelSpec(4), ContentCache(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_threads_that_open_one_table_at_once_decode_it_once(domain: Domain, tmp_path: Path) -> None:
    start, tables, calls = threading.Barrier(4), [], []

    def build() -> None:
        start.wait()
        cache = ContentCache(tmp_path / "cache")
        tables.append(PixelTable.open(domain, PixelSpec(32), cache, lambda *call: calls.append(call)))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = np.array([1, 2, 4])
    expected = np.stack([pixels(jpeg, 32) for jpeg in domain.jpegs(rows)])
    assert len(tables) == 4
    assert calls == [("pixels", 3, 3)]
    for table in tables:
        np.testing.assert_array_equal(table.read(rows), expected)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("harm", [lambda data: data[:-5], lambda data: data[:-1] + b"x", lambda _: b""])
def test_a_damaged_table_is_built_again(domain: Domain, tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    path = PixelTable.open(domain, PixelSpec(8), ContentCache(tmp_path / "cache")).path
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    PixelTable.open(domain, PixelSpec(8), ContentCache(tmp_path / "cache"))
    assert path.read_bytes() == whole


def test_a_broken_stored_image_names_its_item_and_leaves_no_table(domain: Domain, tmp_path: Path) -> None:
    path = domain.folder / "images.arrow"
    stored = domain.jpegs(np.array([2]))[0]
    path.write_bytes(path.read_bytes().replace(stored, b"\0" * len(stored)))
    with pytest.raises(DataError, match="image of item 2: not a picture"):
        PixelTable.open(Domain.open(domain.folder), PixelSpec(4), ContentCache(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []
