"""Pictures compared where they show the same place of the body: textures in UV space, and what lies outside a mask."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from fcjax.metrics.pictures import decibels, psnr
from fcjax.metrics.ssim import similarity

PARTS = 24
TEXELS = 16
"""Texels of a chart along u and along v."""
LEAST_TEXELS = 8
"""Fewer texels in common say nothing."""


def unwrap(
    image: UInt8[ndarray, "h w 3"], iuv: UInt8[ndarray, "h w 3"]
) -> tuple[Float[ndarray, "24 v u 3"], Bool[ndarray, "24 v u"]]:
    """The picture's mean colour at every texel of the 24 charts, in [0, 255], and which texels it shows.

    ValueError where picture and body map differ in size.
    """
    if image.shape[:2] != iuv.shape[:2]:
        raise ValueError(f"the picture is {image.shape[:2]}, its body map {iuv.shape[:2]} (height, width)")
    body = iuv[..., 0] > 0
    part, u, v = np.moveaxis(iuv[body].astype(np.int64), -1, 0)
    texel = ((part - 1) * TEXELS + v * TEXELS // 256) * TEXELS + u * TEXELS // 256
    count = np.bincount(texel, minlength=PARTS * TEXELS**2)
    sums = [np.bincount(texel, channel, PARTS * TEXELS**2) for channel in image[body].astype(np.float64).T]
    colours = np.stack(sums, axis=-1) / np.maximum(count, 1)[:, None]
    return colours.reshape(PARTS, TEXELS, TEXELS, 3), (count > 0).reshape(PARTS, TEXELS, TEXELS)


def texel_psnr(
    first: UInt8[ndarray, "h w 3"],
    first_iuv: UInt8[ndarray, "h w 3"],
    second: UInt8[ndarray, "h2 w2 3"],
    second_iuv: UInt8[ndarray, "h2 w2 3"],
    parts: tuple[int, ...] = tuple(range(1, PARTS + 1)),
) -> float | None:
    """PSNR (dB) over the texels that both pictures show, whatever their poses; None where they are too few.

    parts: charts that count, DensePose's numbers.
    """
    (a, seen_a), (b, seen_b) = unwrap(first, first_iuv), unwrap(second, second_iuv)
    common = seen_a & seen_b & np.isin(np.arange(1, PARTS + 1), parts)[:, None, None]
    if np.count_nonzero(common) < LEAST_TEXELS:
        return None
    return decibels(a[common] - b[common])


def texel_ssim(
    first: UInt8[ndarray, "h w 3"],
    first_iuv: UInt8[ndarray, "h w 3"],
    second: UInt8[ndarray, "h2 w2 3"],
    second_iuv: UInt8[ndarray, "h2 w2 3"],
    parts: tuple[int, ...] = tuple(range(1, PARTS + 1)),
) -> float | None:
    """SSIM over the texels that both pictures show, one window a chart and channel, charts weighted by their texels.

    None where no chart has LEAST_TEXELS of them.
    """
    (a, seen_a), (b, seen_b) = unwrap(first, first_iuv), unwrap(second, second_iuv)
    values, weights = [], []
    for part in parts:
        common = seen_a[part - 1] & seen_b[part - 1]
        if np.count_nonzero(common) < LEAST_TEXELS:
            continue
        x, y = a[part - 1][common] / 255, b[part - 1][common] / 255
        means = x.mean(axis=0), y.mean(axis=0)
        covariance = ((x - means[0]) * (y - means[1])).mean(axis=0)
        values.append(similarity(*means, x.var(axis=0), y.var(axis=0), covariance).mean())
        weights.append(np.count_nonzero(common))
    return float(np.average(values, weights=weights)) if values else None


def psnr_outside(
    first: UInt8[ndarray, "h w 3"], second: UInt8[ndarray, "h w 3"], mask: Bool[ndarray, "h w"]
) -> float | None:
    """PSNR (dB) over the pixels outside the mask: infinite where try-on kept them exactly; None where there is none."""
    if first.shape != second.shape or mask.shape != first.shape[:2]:
        raise ValueError(f"pictures of {first.shape[:2]} and {second.shape[:2]} and a mask of {mask.shape} do not fit")
    return None if mask.all() else psnr(first[~mask], second[~mask])


def part_iou(first: UInt8[ndarray, "h w"], second: UInt8[ndarray, "h w"]) -> dict[int, float]:
    """Intersection over union of every part id (above 0) that either map of part ids shows.

    For maps that the user has: nothing here finds the parts of a made picture, so that no program reports it, and
    `silhouette` tells of the pose.
    """
    if first.shape != second.shape:
        raise ValueError(f"part ids of {first.shape} and {second.shape} (height, width) do not fit")
    found = {}
    for part in np.union1d(first, second):
        if part:
            a, b = first == part, second == part
            found[int(part)] = float(np.count_nonzero(a & b) / np.count_nonzero(a | b))
    return found
