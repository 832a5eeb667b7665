"""Where the person is, told from a picture alone: foreground by distance from the background's colour.

The rule, for pictures whose background is plain or changes smoothly:

1. Colours are L*a*b* with L* counted half, so that soft shadows on the floor differ little from the floor.
2. The background is a cubic surface in the pixel's place, per channel, fitted by least squares to the border (a
   twentyfourth of the width along the left, right and upper side; people touch the lower one), then thrice more to
   what lies within THRESHOLD of the surface (and to border pixels within three times that).
3. Background is what lies within THRESHOLD of the surface and is connected to the picture's border. The rest is
   foreground: clothes of the background's colour count if something of another colour surrounds them.
4. Of the foreground's outermost pixels, those that differ from the background by less than half as much as their most
   different neighbour are background: less than half of such a pixel is person.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from fcjax.cutout import _reached_from_border
from fcjax.metrics.color import lab

THRESHOLD = 6.0
LIGHTNESS_WEIGHT = 0.5
MOST_STRAY = 0.01
"""An empty background that shows more foreground than this share is not one that the rule is made for."""
_FITS = 4


def silhouette(image: UInt8[ndarray, "h w 3"]) -> Bool[ndarray, "h w"]:
    """The foreground of a picture by the rule above."""
    colors = lab(image) * np.array([LIGHTNESS_WEIGHT, 1.0, 1.0])
    distance = np.linalg.norm(colors - _background(colors), axis=-1)
    outside = _reached_from_border(distance < THRESHOLD)
    beside_outside = _greatest_around(outside.astype(np.float64)) > 0
    mostly_background = distance < 0.5 * _greatest_around(distance)
    return ~outside & ~(beside_outside & mostly_background)


def is_plain(backdrop: UInt8[ndarray, "h w 3"]) -> bool:
    """Whether the rule holds before this background: it finds next to nothing in the empty picture."""
    return bool(silhouette(backdrop).mean() <= MOST_STRAY)


def iou(first: Bool[ndarray, "h w"], second: Bool[ndarray, "h w"]) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    if first.shape != second.shape:
        raise ValueError(f"IoU compares masks of one size, got {first.shape} and {second.shape}")
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0


def _background(colors: Float[ndarray, "h w 3"]) -> Float[ndarray, "h w 3"]:
    """The cubic surface of step 2."""
    height, width, _ = colors.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], axis=-1)
    margin = max(2, width // 24)
    border = np.zeros((height, width), bool)
    border[:margin] = border[:, :margin] = border[:, -margin:] = True
    chosen, surface = border, colors
    for fit in range(_FITS):
        # The normal equations: ten well-scaled terms need no better, and they are several times as fast.
        rows = terms[chosen]
        coefficients = np.linalg.lstsq(rows.T @ rows, rows.T @ colors[chosen], rcond=None)[0]
        surface = terms @ coefficients
        distance = np.linalg.norm(colors - surface, axis=-1)
        if fit == 0:
            # Hands may reach into the border: its most different fifth waits.
            chosen = border & (distance <= np.percentile(distance[border], 80))
        else:
            chosen = (border & (distance < 3 * THRESHOLD)) | (distance < THRESHOLD)
    return surface


def _greatest_around(values: Float[ndarray, "h w"]) -> Float[ndarray, "h w"]:
    """The greatest value among a pixel and its eight neighbours."""
    for axis in (0, 1):
        padded = np.pad(values, [(1, 1) if axis == side else (0, 0) for side in (0, 1)], mode="edge")
        count = values.shape[axis]
        values = np.max([np.take(padded, range(start, start + count), axis=axis) for start in range(3)], axis=0)
    return values
