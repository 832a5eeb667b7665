"""Shapes and noise that fabrics are drawn with: distance-like functions of local coordinates, bitmaps of letters,
value noise."""

import functools

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

Field = Float[ndarray, "..."]


def circle(x: Field, y: Field) -> Field:
    return np.hypot(x, y) - 0.9


def ring(x: Field, y: Field) -> Field:
    return np.abs(np.hypot(x, y) - 0.7) - 0.22


def square(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(x), np.abs(y)) - 0.75


def diamond(x: Field, y: Field) -> Field:
    return (np.abs(x) * 1.35 + np.abs(y) - 1.0) * 0.7


def cross(x: Field, y: Field) -> Field:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 0.95, np.minimum(x, y) - 0.3)


def heart(x: Field, y: Field) -> Field:
    x, y = np.abs(x), y + 0.12
    return np.hypot(x, y - 0.62 * np.sqrt(np.minimum(x, 1.5))) - 0.78


def star(x: Field, y: Field) -> Field:
    angle = np.arctan2(x, y)
    sector = np.abs((angle / (2 * np.pi / 5) + 0.5) % 1 - 0.5) * (2 * np.pi / 5)
    radius = np.hypot(x, y)
    # the edge from a tip at radius 1 to a notch at radius 0.45, as a line in the folded sector
    notch = np.array([0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)])
    normal = np.array([notch[1], 1 - notch[0]]) / np.hypot(notch[1], 1 - notch[0])
    return (radius * np.cos(sector) - 1) * normal[0] + radius * np.sin(sector) * normal[1]


def moon(x: Field, y: Field) -> Field:
    return np.maximum(np.hypot(x, y) - 0.9, 0.72 - np.hypot(x - 0.42, y - 0.1))


def sun(x: Field, y: Field) -> Field:
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    return radius - 0.62 - 0.3 * np.maximum(np.cos(8 * angle), 0)


def flower(x: Field, y: Field, petals: int = 5) -> Field:
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    return radius - (0.66 + 0.3 * np.cos(petals * angle))


def triangle(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(x) * 0.87 + y * 0.5, -y) - 0.48


def leaf(x: Field, y: Field) -> Field:
    return np.maximum(np.hypot(x - 0.55, y), np.hypot(x + 0.55, y)) - 1.05


SHAPES = {
    function.__name__: function
    for function in (circle, ring, square, diamond, cross, heart, star, moon, sun, flower, triangle, leaf)
}
"""Negative inside; the unit circle just about holds each shape; near the edge the value is a distance."""


@functools.lru_cache(maxsize=64)
def lettering(text: str, pixels: int) -> Float[ndarray, "h w"]:
    """Bold letters `pixels` high as coverage in [0, 1], cropped to the ink."""
    font = ImageFont.load_default(size=2 * pixels)
    left, top, right, bottom = font.getbbox(text, stroke_width=max(pixels // 14, 1))
    image = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), text, fill=255, font=font, stroke_width=max(pixels // 14, 1))
    image = image.crop(image.getbbox())
    size = max(round(image.width * pixels / image.height), 1), pixels
    return np.asarray(image.resize(size, Image.Resampling.BOX), np.float32) / 255


TILE = 512


@functools.lru_cache(maxsize=1)
def _tile() -> Float[ndarray, "512 512"]:
    """Smooth periodic noise with eight samples a cell, in [0, 1]."""
    rng = np.random.default_rng(20)
    cells = TILE // 8
    place = np.arange(TILE) / 8
    index, fraction = place.astype(int), place % 1
    fraction = fraction * fraction * (3 - 2 * fraction)
    blend = np.zeros((TILE, cells), np.float32)
    rows = np.arange(TILE)
    blend[rows, index] = 1 - fraction
    blend[rows, (index + 1) % cells] = fraction
    return blend @ rng.random((cells, cells), np.float32) @ blend.T


def noise(
    x: Float[ndarray, "w"], y: Float[ndarray, "h"], cell: float | tuple[float, float], rng: np.random.Generator
) -> Float[ndarray, "h w"]:
    """Smooth value noise in [0, 1] with grid cells of `cell` metres (or across and along).

    The values are fixed in the plane, so that any window and any resolution see the same cloth; they repeat after 64
    cells.
    """
    across, along = cell if isinstance(cell, tuple) else (cell, cell)
    shift = rng.integers(0, TILE, 2)
    columns = (np.floor(x * (8 / across)).astype(int) + shift[0]) % TILE
    rows = (np.floor(y * (8 / along)).astype(int) + shift[1]) % TILE
    return _tile()[rows[:, None], columns]
