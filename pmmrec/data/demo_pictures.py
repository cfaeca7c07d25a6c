"""Draw the images of the three platforms of the demo world."""
# N images, C colour channels, H height, W width. Colours lie in 0..1, positions in -1..1 from edge to edge.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]

STYLE_HUES = np.array([0.0, 0.14, 0.32, 0.49, 0.62, 0.80])
NUM_PATTERNS = 4
VAGUE_OPACITY, VAGUE_NOISE = 0.3, 0.12
NO_TOPIC = -1


@dataclass(frozen=True)
class Look:
    """The style in which one platform draws all its images."""

    paper_top: Colour
    paper_bottom: Colour
    frame: Colour
    frame_from: float  # the frame lies between these distances from the centre, 1 being the edge
    frame_to: float
    grid: float  # how dark the lines of graph paper are
    vignette: float  # how much darker the corners are
    hue_shift: float
    saturation: float
    brightness: float
    noise: float  # standard deviation
    jpeg_quality: int


LOOKS: Mapping[str, Look] = {
    "bazaar": Look(
        paper_top=(0.98, 0.95, 0.82), paper_bottom=(0.96, 0.90, 0.72),
        frame=(0.95, 0.45, 0.10), frame_from=0.90, frame_to=1.0,
        grid=0.12, vignette=0.0, hue_shift=0.0, saturation=0.95, brightness=0.85, noise=0.05, jpeg_quality=70,
    ),
    "gallery": Look(
        paper_top=(0.16, 0.16, 0.19), paper_bottom=(0.10, 0.10, 0.12),
        frame=(0.93, 0.93, 0.90), frame_from=0.84, frame_to=1.0,
        grid=0.0, vignette=0.35, hue_shift=0.03, saturation=0.70, brightness=0.95, noise=0.02, jpeg_quality=90,
    ),
    "boutique": Look(
        paper_top=(0.98, 0.90, 0.91), paper_bottom=(0.86, 0.90, 0.97),
        frame=(0.35, 0.28, 0.32), frame_from=0.88, frame_to=0.92,
        grid=0.0, vignette=0.0, hue_shift=-0.03, saturation=0.60, brightness=0.75, noise=0.01, jpeg_quality=85,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Subjects:
    """What N images show."""

    topic_N: NDArray[np.int64]
    second_topic_N: NDArray[np.int64]  # NO_TOPIC where there is none
    style_N: NDArray[np.int64]
    is_vague_N: NDArray[np.bool_]

    def __getitem__(self, rows: slice) -> Subjects:
        return Subjects(self.topic_N[rows], self.second_topic_N[rows], self.style_N[rows], self.is_vague_N[rows])


def draw(look: Look, subjects: Subjects, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """`(N, H, W, C)` pixels: a glyph whose shape and pattern are the topic, whose colour is the style.

    A second topic is a small glyph in a corner. A vague image is a faint glyph without pattern under much noise: it
    leaves open which of the topics of one shape is meant.
    """
    num_images = len(subjects.topic_N)
    hue_N = STYLE_HUES[subjects.style_N] + look.hue_shift + rng.normal(0, 0.012, num_images)
    light_N = look.brightness * rng.uniform(0.9, 1.08, num_images)
    ink_N3 = _rgb(hue_N, np.full(num_images, look.saturation), light_N)
    pale_N3 = 0.45 * ink_N3 + 0.55 * np.asarray(look.paper_top)
    opacity_N = np.where(subjects.is_vague_N, VAGUE_OPACITY, 1.0)
    centre_N2 = rng.uniform(-0.12, 0.12, (num_images, 2))
    size_N, turn_N = rng.uniform(0.52, 0.68, num_images), rng.normal(0, 0.12, num_images)
    has_second_N = subjects.second_topic_N != NO_TOPIC
    second_topic_N = np.where(has_second_N, subjects.second_topic_N, 0)

    pixels_NHWC = np.repeat(_paper(look, side)[None], num_images, axis=0)
    cover_NHW, pattern_NHW = _glyph(subjects.topic_N, centre_N2, size_N, turn_N, side)
    pattern_NHW[subjects.is_vague_N] = 0.5
    pixels_NHWC = _paint(pixels_NHWC, (cover_NHW, pattern_NHW), (ink_N3, pale_N3), opacity_N)
    corner_N2, small_N = np.full((num_images, 2), 0.58), np.full(num_images, 0.22)
    glyph = _glyph(second_topic_N, corner_N2, small_N, turn_N, side)
    pixels_NHWC = _paint(pixels_NHWC, glyph, (ink_N3, pale_N3), opacity_N * has_second_N * ~subjects.is_vague_N)
    noise_N = np.where(subjects.is_vague_N, VAGUE_NOISE, look.noise).astype(np.float32)
    pixels_NHWC += noise_N[:, None, None, None] * rng.standard_normal(pixels_NHWC.shape, dtype=np.float32)
    bytes_NHWC: NDArray[np.uint8] = (pixels_NHWC.clip(0, 1) * 255).round().astype(np.uint8)
    return bytes_NHWC


def _paint(pixels_NHWC: Array, glyph: tuple[Array, Array], inks_N3: tuple[Array, Array], opacity_N: Array) -> Array:
    (cover_NHW, pattern_NHW), (ink_N3, pale_N3) = glyph, inks_N3
    pattern_NHW1 = pattern_NHW[..., None]
    glyph_NHWC = pattern_NHW1 * ink_N3[:, None, None] + (1 - pattern_NHW1) * pale_N3[:, None, None]
    alpha_NHW1 = (cover_NHW * opacity_N[:, None, None])[..., None]
    return (pixels_NHWC + alpha_NHW1 * (glyph_NHWC - pixels_NHWC)).astype(np.float32)


def _paper(look: Look, side: int) -> Array:
    y_HW, x_HW = _grid(side)
    down_HW1 = (y_HW[..., None] + 1) / 2
    paper_HWC = (1 - down_HW1) * np.asarray(look.paper_top) + down_HW1 * np.asarray(look.paper_bottom)
    is_line_HW = (np.mod(x_HW, 0.25) < 0.04) | (np.mod(y_HW, 0.25) < 0.04)
    paper_HWC *= (1 - look.grid * is_line_HW - look.vignette * (x_HW**2 + y_HW**2) / 2)[..., None]
    reach_HW = np.maximum(np.abs(x_HW), np.abs(y_HW))
    is_frame_HW = (reach_HW >= look.frame_from) & (reach_HW <= look.frame_to)
    return np.where(is_frame_HW[..., None], np.asarray(look.frame), paper_HWC).astype(np.float32)


def _glyph(
    topic_N: NDArray[np.int64], centre_N2: Array, size_N: Array, turn_N: Array, side: int
) -> tuple[Array, Array]:
    """The share of each pixel that the glyph covers, and the share of that which is ink, both `(N, H, W)` in 0..1."""
    y_HW, x_HW = _grid(side)
    x_NHW = (x_HW - centre_N2[:, 0, None, None]) / size_N[:, None, None]
    y_NHW = (y_HW - centre_N2[:, 1, None, None]) / size_N[:, None, None]
    cos_N11, sin_N11 = np.cos(turn_N)[:, None, None], np.sin(turn_N)[:, None, None]
    u_NHW = (cos_N11 * x_NHW + sin_N11 * y_NHW).astype(np.float32)
    v_NHW = (cos_N11 * y_NHW - sin_N11 * x_NHW).astype(np.float32)
    cover_NHW, pattern_NHW = np.zeros_like(u_NHW), np.zeros_like(u_NHW)
    edge = side / 2 * size_N[:, None, None]  # 1 / size of a pixel, in units of the glyph
    for shape, depth in enumerate(_SHAPES):
        of_shape = np.flatnonzero(topic_N // NUM_PATTERNS == shape)
        cover_NHW[of_shape] = (depth(u_NHW[of_shape], v_NHW[of_shape]) * edge[of_shape] + 0.5).clip(0, 1)
    for pattern, wave in enumerate(_PATTERNS):
        of_pattern = np.flatnonzero(topic_N % NUM_PATTERNS == pattern)
        pattern_NHW[of_pattern] = (3 * wave(u_NHW[of_pattern], v_NHW[of_pattern]) + 0.5).clip(0, 1)
    return cover_NHW, pattern_NHW


def _grid(side: int) -> tuple[Array, Array]:
    places = ((np.arange(side) + 0.5) * 2 / side - 1).astype(np.float32)
    return places[:, None] + 0 * places, places + 0 * places[:, None]


def _rgb(hue_N: Array, saturation_N: Array, value_N: Array) -> Array:
    """`(N, 3)` red, green, blue of hue (in turns), saturation and value."""
    sector_N3 = np.mod(np.array([5, 3, 1]) + 6 * hue_N[:, None], 6)
    fall_N3 = np.minimum(sector_N3, 4 - sector_N3).clip(0, 1)
    colour_N3: Array = (value_N[:, None] * (1 - saturation_N[:, None] * fall_N3)).clip(0, 1)
    return colour_N3


def _triangle(u: Array, v: Array) -> Array:
    third = 2 * np.pi / 3
    from_corner = np.abs(np.mod(np.arctan2(u, -v) + third / 2, third) - third / 2)
    depth: Array = 0.5 - np.hypot(u, v) * np.cos(third / 2 - from_corner)
    return depth


def _star(u: Array, v: Array) -> Array:
    depth: Array = 0.72 + 0.28 * np.cos(5 * np.arctan2(u, -v)) - np.hypot(u, v)
    return depth


def _cross(u: Array, v: Array) -> Array:
    across, along = np.minimum(0.34 - np.abs(u), 0.95 - np.abs(v)), np.minimum(0.34 - np.abs(v), 0.95 - np.abs(u))
    return np.maximum(across, along)


# Each gives the depth of a point inside the shape (negative: outside); shapes fill about the unit circle.
_SHAPES: tuple[Callable[[Array, Array], Array], ...] = (
    _triangle,
    lambda u, v: 0.8 - np.maximum(np.abs(u), np.abs(v)),
    lambda u, v: 0.9 - np.hypot(u, v),
    lambda u, v: 0.26 - np.abs(np.hypot(u, v) - 0.68),
    _star,
    _cross,
)
# Each is a wave over the glyph that is positive where there is ink.
_PATTERNS: tuple[Callable[[Array, Array], Array], ...] = (
    lambda u, v: np.sin(9 * v) + 0 * u,
    lambda u, v: np.sin(13 * (u + v)),
    lambda u, v: np.sin(9 * u) * np.sin(9 * v),
    lambda u, v: 0.6 - np.cos(14 * u) * np.cos(14 * v),
)
