"""Curves, maps and thumbnails are deterministic pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pmmrec.report.epochs import Epoch
from pmmrec.report.html.drawing import draw_curves, draw_map
from pmmrec.report.html.pictures import THUMBNAIL_SIDE, thumbnail

CURVES = {name: [[Epoch(e, {"hr@10": v / 10}) for e, v in enumerate(values)]] for name, values in
          {"full": [1, 3, 4, 3], "scratch": [0, 1, 2, 3]}.items()}  # fmt: skip


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def colors(png: bytes) -> set[tuple[int, int, int]]:
    return {color for _, color in opened(png).getcolors(maxcolors=1 << 24) or []}


def test_each_system_has_its_colour_and_pictures_are_deterministic() -> None:
    png = draw_curves(CURVES, "hr@10")
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colors(png)
    assert png == draw_curves(CURVES, "hr@10")
    assert png != draw_curves({"full": CURVES["full"]}, "hr@10")


def test_systems_differ_without_colours_too() -> None:
    """The same curve as first and as second system gives different pictures even in grey."""
    grey = []
    for names in (("a", "b"), ("b", "a")):
        empty = [[Epoch(0, {"hr@10": 0.0})]]
        systems = {name: CURVES["full"] if name == "a" else empty for name in names}
        grey.append(np.asarray(opened(draw_curves(systems, "hr@10")).convert("L"))[:, :600] < 200)
    assert (grey[0] != grey[1]).sum() > 300  # gaps of the dashes and another mark; measured 637


def test_names_that_look_like_formulas_are_drawn_literally() -> None:
    assert draw_curves({"$\\frac{": CURVES["full"]}, "hr@10").startswith(b"\x89PNG")


def test_every_group_of_a_map_has_its_colour() -> None:
    points = np.random.default_rng(0).normal(size=(30, 2))
    shown = colors(draw_map(points, ["a"] * 10 + ["b"] * 10 + ["c"] * 10))
    legend_marks = {(64, 149, 197), (224, 134, 64), (64, 182, 150)}  # a quarter of the white shines through
    nearest = [
        min(max(abs(x - y) for x, y in zip(mark, color, strict=True)) for color in shown) for mark in legend_marks
    ]
    assert max(nearest) <= 1


def test_thumbnails_are_small_jpegs_in_the_page_itself() -> None:
    whole = io.BytesIO()
    Image.new("RGB", (900, 600), (255, 0, 0)).save(whole, format="JPEG")
    source = thumbnail(whole.getvalue())
    assert source is not None
    head, _, data = source.partition(",")
    assert head == "data:image/jpeg;base64"
    small = Image.open(io.BytesIO(base64.b64decode(data)))
    assert max(small.size) == THUMBNAIL_SIDE
    assert small.getpixel((5, 5)) == pytest.approx((254, 0, 0), abs=3)


@pytest.mark.parametrize("data", [None, b"", b"<svg onload='x'/>", b"\xff\xd8\xff\xe0broken"])
def test_a_file_that_is_not_a_jpeg_has_no_picture(data: bytes | None) -> None:
    assert thumbnail(data) is None
