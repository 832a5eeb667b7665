"""Which tokens of two pictures show the same place of the body."""

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from fcjax.body.charts import atlas_uv, rest_places

FOOTPRINT = 1.0
"""Places match within so many times the distance from a token to its neighbours on the body."""


_WITHIN_CELL = 1e-5
"""The weight of (u, v), so little that it tells apart nothing but places of one cell."""


def token_places(
    iuv: UInt8[ndarray, "H W 3"], height: int, width: int
) -> tuple[UInt8[ndarray, "h w"], Float[ndarray, "h w 3"]]:
    """Chart (0: none) and place on a resting body at the centre of every token, to the nearest pixel.

    ValueError for a map that is smaller than the grid.
    """
    seen = _at_tokens(iuv, height, width)
    return seen[..., 0], rest_places(atlas_uv(seen))


def _at_tokens(iuv: UInt8[ndarray, "H W 3"], height: int, width: int) -> UInt8[ndarray, "h w 3"]:
    rows, columns = iuv.shape[:2]
    if rows < height or columns < width:
        raise ValueError(f"a body map of {rows}x{columns} pixels is smaller than its grid of {height}x{width} tokens")
    row = (np.arange(height) * 2 + 1) * rows // (2 * height)
    column = (np.arange(width) * 2 + 1) * columns // (2 * width)
    return iuv[row][:, column]


def match_tokens(
    iuv: UInt8[ndarray, "H W 3"], first: UInt8[ndarray, "H W 3"], height: int, width: int
) -> Int[ndarray, "t"]:
    """For each of height x width tokens of the picture `iuv` the token of `first` that shows the same place; -1: none.

    iuv: part ids 0..24, u and v in 255ths. Two tokens match where both lie in the same chart and their places on a
    resting body are no farther apart than FOOTPRINT times the token's own size there: the distance to the farthest of
    its neighbours in the same chart (of a token without such, the picture's median). The nearest is taken; places
    are known to 1/32 of a chart, and of those in one such cell it is the one with the nearest (u, v), then the first.
    """
    # Choice: places on the body at rest rather than (u, v), whose scale differs from chart to chart.
    part, place = token_places(iuv, height, width)
    first_part, first_place = token_places(first, height, width)
    size = _sizes(part, place).reshape(-1)
    part, first_part = part.reshape(-1), first_part.reshape(-1)
    place, first_place = place.reshape(-1, 3), first_place.reshape(-1, 3)
    uv, first_uv = (_at_tokens(maps, height, width)[..., 1:].reshape(-1, 2) / 255 for maps in (iuv, first))
    found = np.full(height * width, -1)
    for number in np.intersect1d(part[part > 0], first_part):
        here, there = np.flatnonzero(part == number), np.flatnonzero(first_part == number)
        distance, within = (
            np.linalg.norm(ours[here][:, None] - theirs[there][None], axis=-1)
            for ours, theirs in ((place, first_place), (uv, first_uv))
        )
        nearest = (distance + _WITHIN_CELL * within).argmin(axis=1)
        near = distance[np.arange(len(here)), nearest] <= FOOTPRINT * size[here]
        found[here[near]] = there[nearest[near]]
    return found


def _sizes(part: UInt8[ndarray, "h w"], place: Float[ndarray, "h w 3"]) -> Float[ndarray, "h w"]:
    """From every token the distance to the farthest neighbour of the same chart, on the body."""
    size = np.zeros(part.shape)
    for axis in (0, 1):
        a, b = (slice(None, -1), slice(1, None))
        a, b = ((a, slice(None)), (b, slice(None))) if axis == 0 else ((slice(None), a), (slice(None), b))
        step = np.where(part[a] == part[b], np.linalg.norm(place[a] - place[b], axis=-1), 0.0)
        # One after the other: the two overlap.
        size[a] = np.maximum(size[a], step)
        size[b] = np.maximum(size[b], step)
    known = size[(part > 0) & (size > 0)]
    return np.where(size > 0, size, np.median(known) if known.size else 0.0)
