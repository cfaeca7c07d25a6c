"""Turn pictures of users into stored images, and stored images into the pixels that encoders read."""
# R rows of one encoder, C = 3 colour channels, H = W = size.

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from pmmrec.data.cache import SPARE_BYTES, ContentCache
from pmmrec.data.domain import Domain
from pmmrec.data.info import IMAGES_FILE
from pmmrec.data.parallel import in_order
from pmmrec.data.releases import made_by
from pmmrec.errors import OTHER_CACHE, DataError, MachineError
from pmmrec.modality import Modality, PixelSpec
from pmmrec.progress import Progress

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000
JPEG_QUALITY = 90
GREY = 128
PIXELS_VERSION = 1  # raise it when a change of `pixels` gives other numbers for the same image
NUM_THREADS = 4
PIXELS = "pixels.npy"
_UPRIGHT = 1
_ORIENTATION_TAG = 0x0112


class PictureError(Exception):
    """A picture that cannot be used; the message is the reason, the same for all pictures with that fault."""


def stored_jpeg(data: bytes, side: int) -> bytes:
    """A picture as a domain stores it: RGB JPEG, upright, its shortest side `side` or the original if smaller.

    Takes the first frame of an animation, puts transparent pictures on white and drops all metadata. Raises
    PictureError for broken pictures, other formats and more than `MAX_PIXELS` pixels, which the header tells.
    """
    image = _decode(data, draft_side=2 * side)
    image = image.resize(_at_least(image.size, side), Image.Resampling.BICUBIC)
    stored = io.BytesIO()
    try:
        image.save(stored, format="JPEG", quality=JPEG_QUALITY)
    except (OSError, ValueError) as error:
        raise PictureError("too long for a JPEG") from error
    return stored.getvalue()


def pixels(jpeg: bytes | None, size: int) -> np.ndarray:
    """uint8 `(3, size, size)`: the whole image, resized without a crop (bicubic); grey where there is none.

    Raises PictureError when the stored bytes are broken.
    """
    if jpeg is None:
        return np.full((3, size, size), GREY, dtype=np.uint8)
    image = _decode(jpeg).resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _decode(data: bytes, draft_side: int | None = None) -> Image.Image:
    """The first frame, RGB and upright. A JPEG may be decoded at 1/2, 1/4, ... of its size, down to `draft_side`."""
    if not data:
        raise PictureError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # a header reader may raise anything on hostile bytes
        raise PictureError(f"not a picture of a known format ({', '.join(FORMATS)})") from error
    if image.width * image.height > MAX_PIXELS:
        raise PictureError(f"more than {MAX_PIXELS:,} pixels")
    try:
        if draft_side is not None:
            image.draft("RGB", _at_least(image.size, draft_side))
        return _as_rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise PictureError("broken or truncated") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, _UPRIGHT)
    except Exception:  # noqa: BLE001  metadata may be broken where the picture is not
        return image
    return image if orientation == _UPRIGHT else ImageOps.exif_transpose(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey; convert() would clip them to 8
        high_byte = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        image = Image.fromarray(high_byte.astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")


def _at_least(size: tuple[int, int], side: int) -> tuple[int, int]:
    """`size` reduced so that its shortest side is `side`; never enlarged."""
    scale = min(1.0, side / min(size))
    width, height = (max(1, round(length * scale)) for length in size)
    return width, height


def pixels_source(domain: Domain, size: int) -> str:
    """Everything that the pixels of a domain depend on; part of the key of each cache entry made from them."""
    return f"{domain.info.sha256(IMAGES_FILE)} {size} {PIXELS_VERSION} {made_by('pixels')}"


class PixelTable:
    """Pixels of all images of a domain at one size, decoded once and kept in a cache as a memory map."""

    def __init__(self, path: Path, has_image: np.ndarray) -> None:
        self.path = path
        self._has_image = has_image
        self._slot = np.cumsum(has_image) - 1
        self._pixels = np.load(path, mmap_mode="r", allow_pickle=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return PixelTable, (self.path, self._has_image)  # a worker process maps the file again

    @classmethod
    def open(cls, domain: Domain, spec: PixelSpec, cache: ContentCache, progress: Progress | None = None) -> PixelTable:
        """The table of `domain` at the size of `spec`, made now if `cache` does not hold it.

        Raises MachineError where the cache cannot be written, DataError when a stored image is broken.
        """
        has_image = domain.has[Modality.IMAGE]
        if not has_image.any():
            raise DataError(f"{domain.folder}: no item has an image; import it with --images")

        def make(folder: Path) -> None:
            shape = (int(has_image.sum()), 3, spec.size, spec.size)
            _check_room(cache.folder, int(np.prod(shape)))
            with (folder / PIXELS).open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                _write_pixels(domain, spec.size, file, progress)

        entry = cache.entry("pixels", "pixels", {"source": pixels_source(domain, spec.size)})
        return entry.open(make, lambda folder: cls(folder / PIXELS, has_image))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """uint8 `(R, 3, H, W)` of the items `rows`, each of which must have an image."""
        rows = np.asarray(rows)
        if not self._has_image[rows].all():
            lacking = rows[~self._has_image[rows]][:5].tolist()
            raise DataError(f"{self.path}: items {lacking} have no image; ask only for rows of has[Modality.IMAGE]")
        taken: np.ndarray = self._pixels[self._slot[rows]]
        return taken


def _write_pixels(domain: Domain, size: int, file: IO[bytes], progress: Progress | None) -> None:
    rows = np.flatnonzero(domain.has[Modality.IMAGE])

    def decode(row: int) -> np.ndarray:
        try:
            return pixels(domain.jpegs(np.array([row]))[0], size)
        except PictureError as error:
            path = domain.folder / IMAGES_FILE
            raise DataError(
                f"{path}: image of item {row}: {error}; copy the domain again or import it again"
            ) from error

    for done, image in enumerate(in_order(decode, rows.tolist(), NUM_THREADS), start=1):
        file.write(image.tobytes())
        if progress is not None and (done % 1000 == 0 or done == len(rows)):
            progress("pixels", done, len(rows))


def _check_room(cache: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(cache).free
    if free < num_bytes + SPARE_BYTES:
        raise MachineError(
            f"{cache}: pixels need {num_bytes:,} bytes, {free:,} are free; free some or name {OTHER_CACHE}"
        )
