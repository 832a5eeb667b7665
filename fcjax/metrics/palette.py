"""Palettes: the few colours a region shows, how far two palettes are apart, and whose colours a garment shows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from numpy import ndarray

from fcjax.metrics.color import ciede2000, lab

PALETTE_SIZE = 5
LIGHTNESS_SCALE = 2.0
"""CIEDE2000's k_L for cloth: a worn garment is shaded, its flat picture is not."""
LEAST_PIXELS = 16
"""A region of fewer pixels has no palette."""
OPAQUE = 250
_MOST_PIXELS, _ROUNDS = 4096, 8


class Palette(NamedTuple):
    """Colours in L*a*b* and the share of the region that each stands for (sum 1), the largest first."""

    colors: Float[ndarray, "k 3"]
    shares: Float[ndarray, "k"]


def extract_palette(pixels: UInt8[ndarray, "n 3"], size: int = PALETTE_SIZE) -> Palette:
    """At most `size` colours of RGB pixels: a median cut in L*a*b*, refined by k-means. Nothing in it is random.

    Of more than 4096 pixels, evenly spaced ones are read. ValueError for fewer than LEAST_PIXELS.
    """
    if len(pixels) < LEAST_PIXELS:
        raise ValueError(f"a palette needs at least {LEAST_PIXELS} pixels, got {len(pixels)}")
    if len(pixels) > _MOST_PIXELS:
        pixels = pixels[np.linspace(0, len(pixels) - 1, _MOST_PIXELS).astype(int)]
    colors = lab(pixels)
    boxes = [colors]
    while len(boxes) < size:
        # The box with the greatest scatter along an axis (times its pixels) is cut at that axis' mean.
        scatters = [box.var(axis=0) * len(box) for box in boxes]
        widest = int(np.argmax([scatter.max() for scatter in scatters]))
        axis = int(np.argmax(scatters[widest]))
        box = boxes[widest]
        low = box[:, axis] <= box[:, axis].mean()
        if low.all() or scatters[widest][axis] < 1e-9:
            break
        boxes[widest : widest + 1] = [box[low], box[~low]]
    centers = np.stack([box.mean(axis=0) for box in boxes])
    counts = np.zeros(len(centers))
    for _ in range(_ROUNDS):
        distance = ((colors[:, None] - centers) ** 2).sum(axis=-1)
        nearest = distance.argmin(axis=1)
        counts = np.bincount(nearest, minlength=len(centers)).astype(float)
        sums = np.stack([np.bincount(nearest, colors[:, axis], len(centers)) for axis in range(3)], axis=1)
        centers = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centers)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    return Palette(centers[order], counts[order] / counts.sum())


def region_palette(image: UInt8[ndarray, "h w 3"], region: Bool[ndarray, "h w"]) -> Palette | None:
    """The palette of a region without its outermost pixels, which mix with what is beside; None if it is too small."""
    inner = region.copy()
    inner[1:] &= region[:-1]
    inner[:-1] &= region[1:]
    inner[:, 1:] &= region[:, :-1]
    inner[:, :-1] &= region[:, 1:]
    for chosen in (inner, region):
        if np.count_nonzero(chosen) >= LEAST_PIXELS:
            return extract_palette(image[chosen])
    return None


def asset_palette(image: UInt8[ndarray, "h w 4"]) -> Palette:
    """The palette of an asset's opaque pixels. ValueError where there are next to none."""
    return extract_palette(image[image[..., 3] >= OPAQUE][:, :3])


def face_palette(image: UInt8[ndarray, "h w 4"]) -> Palette:
    """The palette of the middle of a face asset, an ellipse in which hair, neck and background hardly are."""
    height, width = image.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    inside = ((y - 0.1) / 0.4) ** 2 + (x / 0.3) ** 2 < 1
    return extract_palette(image[inside & (image[..., 3] >= OPAQUE)][:, :3])


def palette_distance(first: Palette, second: Palette, lightness_scale: float = LIGHTNESS_SCALE) -> float:
    """The earth mover's distance: the mean CIEDE2000 by which colours must be changed to turn one into the other."""
    cost = ciede2000(first.colors[:, None], second.colors[None], lightness_scale)
    return transport_cost(cost, first.shares, second.shares)


def transport_cost(cost: Float[ndarray, "m n"], supply: Float[ndarray, "m"], demand: Float[ndarray, "n"]) -> float:
    """The least cost of moving `supply` to `demand` (equal sums), exactly: successive shortest paths (Ford, Fulkerson).

    Meant for a handful of rows and columns.
    """
    rows, columns = cost.shape
    flow, left, wanted = np.zeros_like(cost), np.array(supply, float), np.array(demand, float)
    epsilon = 1e-12 * max(left.sum(), 1.0)
    while left.max() > epsilon and wanted.max() > epsilon:
        # Bellman and Ford from every row with something left: forward along costs, backward along what already flows.
        # Only what is strictly shorter replaces a way, so that the ways stay a tree where costs are equal.
        row_way, from_column = np.where(left > epsilon, 0.0, np.inf), np.full(rows, -1)
        column_way, from_row = np.full(columns, np.inf), np.zeros(columns, int)
        while True:
            ways = row_way[:, None] + cost
            nearer = ways.min(axis=0) < column_way - 1e-9
            column_way = np.where(nearer, ways.min(axis=0), column_way)
            from_row = np.where(nearer, ways.argmin(axis=0), from_row)
            back = np.where(flow > epsilon, column_way[None] - cost, np.inf)
            shorter = back.min(axis=1) < row_way - 1e-9
            if not shorter.any():
                break
            row_way = np.where(shorter, back.min(axis=1), row_way)
            from_column = np.where(shorter, back.argmin(axis=1), from_column)
        column = int(np.where(wanted > epsilon, column_way, np.inf).argmin())
        path, amount = [], wanted[column]
        end = column
        while True:
            row = int(from_row[end])
            path.append((row, end, 1.0))
            end = int(from_column[row])
            if end < 0:
                break
            path.append((row, end, -1.0))
            amount = min(amount, flow[row, end])
        amount = min(amount, left[row])
        for r, c, sign in path:
            flow[r, c] += sign * amount
        left[row] -= amount
        wanted[column] -= amount
    return float((flow * cost).sum())


def nearest_palette(palette: Palette, candidates: list[Palette]) -> tuple[int, Shaped[ndarray, "n"]]:
    """Which candidate is nearest, and the distances to all."""
    distances = np.array([palette_distance(palette, candidate) for candidate in candidates])
    return int(distances.argmin()), distances
