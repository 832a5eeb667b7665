"""Structural similarity (Wang et al. 2004) as the field's scripts compute it; they differ in borders and colours."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from fcjax.metrics.pictures import check_bytes

SIGMA, RADIUS = 1.5, 5
K1, K2 = 0.01, 0.03

Border = Literal["reflect", "crop"]


def ssim(first: UInt8[ndarray, "h w *c"], second: UInt8[ndarray, "h w *c"], border: Border = "reflect") -> float:
    """The mean SSIM of 8-bit pictures over pixels and channels, by a Gaussian window of 11x11 and population variances.

    border: "reflect" takes windows that reach beyond the picture into its mirror image (torchmetrics since 1.4.2,
    range 1); "crop" leaves those windows out (torchmetrics before, and scikit-image, which HR-VITON's script calls for
    pictures in grey: `grey`). ValueError for pictures of different sizes, or smaller than a window.
    """
    similarity = ssim_map(first, second)
    if border == "crop":
        similarity = similarity[RADIUS:-RADIUS, RADIUS:-RADIUS]
    return float(similarity.mean())


def ssim_map(first: UInt8[ndarray, "h w *c"], second: UInt8[ndarray, "h w *c"]) -> Float[ndarray, "h w *c"]:
    """SSIM at every pixel and channel, windows mirrored at the border. ValueError as `ssim`."""
    if first.shape != second.shape:
        raise ValueError(f"SSIM compares pictures of one size, got {first.shape} and {second.shape}")
    if min(first.shape[:2]) <= 2 * RADIUS:
        raise ValueError(f"SSIM's window is {2 * RADIUS + 1} pixels wide, the pictures are {first.shape[:2]}")
    check_bytes("SSIM", first, second)
    a, b = first.astype(np.float64) / 255, second.astype(np.float64) / 255
    mean_a, mean_b = _blurred(a), _blurred(b)
    # Differences of equal numbers may come out a little below 0.
    variance_a = np.maximum(_blurred(a * a) - mean_a**2, 0)
    variance_b = np.maximum(_blurred(b * b) - mean_b**2, 0)
    covariance = _blurred(a * b) - mean_a * mean_b
    return similarity(mean_a, mean_b, variance_a, variance_b, covariance)


def similarity(
    mean_a: ndarray, mean_b: ndarray, variance_a: ndarray, variance_b: ndarray, covariance: ndarray
) -> ndarray:
    """SSIM of windows by their moments, of levels in [0, 1]."""
    c1, c2 = K1**2, K2**2
    return ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )


def ssim_outside(
    first: UInt8[ndarray, "h w 3"], second: UInt8[ndarray, "h w 3"], mask: Bool[ndarray, "h w"]
) -> float | None:
    """The mean SSIM over windows that do not touch the mask; None where there is none."""
    touched = _blurred(mask.astype(np.float64)) > 1e-12
    return None if touched.all() else float(ssim_map(first, second)[~touched].mean())


def grey(image: UInt8[ndarray, "h w 3"]) -> UInt8[ndarray, "h w"]:
    """Pillow's mode L (ITU-R 601-2), in which HR-VITON's script compares."""
    red, green, blue = np.moveaxis(image.astype(np.uint32), -1, 0)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)


def _blurred(values: Float[ndarray, "h w *c"]) -> Float[ndarray, "h w *c"]:
    """Under the Gaussian window, mirrored without its edge."""
    offsets = np.arange(-RADIUS, RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        padding = [(RADIUS, RADIUS) if number == axis else (0, 0) for number in range(values.ndim)]
        padded, length = np.moveaxis(np.pad(values, padding, mode="reflect"), axis, 0), values.shape[axis]
        blurred = sum(weight * padded[start : start + length] for start, weight in enumerate(weights))
        values = np.moveaxis(np.asarray(blurred), 0, axis)
    return values
