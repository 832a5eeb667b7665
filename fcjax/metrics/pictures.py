"""Pictures against pictures: PSNR, and the correlation of textures inside a region."""

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from numpy import ndarray

TEXTURE_SIZE = (64, 48)
"""Height and width at which textures are compared: what a small picture still shows."""
LEAST_CELLS = 12
"""A region of fewer cells at that size has no texture."""


def check_bytes(what: str, *images: ndarray) -> None:
    """ValueError for pictures that are not of 8 bits, NaN among them."""
    for image in images:
        if image.dtype != np.uint8:
            nan = " with NaN" if np.issubdtype(image.dtype, np.floating) and np.isnan(image).any() else ""
            raise ValueError(
                f"{what} takes pictures uint8 of 0 to 255, got {image.dtype}{nan}: clip and round them to bytes first"
            )


def psnr(first: UInt8[ndarray, "*n"], second: UInt8[ndarray, "*n"]) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in decibels; infinite for equal ones."""
    if first.shape != second.shape:
        raise ValueError(f"PSNR compares pictures of one size, got {first.shape} and {second.shape}")
    check_bytes("PSNR", first, second)
    return decibels(first.astype(np.float64) - second.astype(np.float64))


def decibels(difference: Float[ndarray, "*n"]) -> float:
    """PSNR of a difference of levels in [0, 255]; infinite for none."""
    error = np.mean(difference**2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def box_resize(image: Shaped[ndarray, "h w *c"], height: int, width: int) -> Float[ndarray, "h2 w2 *c"]:
    """Every new pixel is the mean of the area that it covers, pixels cut by its border counting in part."""
    values = np.asarray(image, np.float64)
    down, across = _box_weights(image.shape[0], height), _box_weights(image.shape[1], width)
    return np.einsum("ij,jk...->ik...", across, np.einsum("ij,jk...->ik...", down, values).swapaxes(0, 1)).swapaxes(
        0, 1
    )


def _box_weights(length: int, count: int) -> Float[ndarray, "count length"]:
    edges = np.linspace(0, length, count + 1)
    places = np.arange(length)
    overlap = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return np.clip(overlap, 0, None) * (count / length)


def texture_correlation(
    first: UInt8[ndarray, "h w 3"], truth: UInt8[ndarray, "h w 3"], region: Bool[ndarray, "h w"]
) -> float | None:
    """The correlation of two pictures inside a region, both reduced to TEXTURE_SIZE, each channel's mean removed.

    A reduced pixel belongs to the region if at least half of its area does. 0 where the first picture shows no
    variation at all; None where the region is too small or the truth shows none.
    """
    inside = box_resize(region, *TEXTURE_SIZE) >= 0.5
    if np.count_nonzero(inside) < LEAST_CELLS:
        return None
    shown, wanted = (box_resize(image, *TEXTURE_SIZE)[inside] for image in (first, truth))
    shown, wanted = shown - shown.mean(axis=0), wanted - wanted.mean(axis=0)
    shown_norm, wanted_norm = np.linalg.norm(shown), np.linalg.norm(wanted)
    if wanted_norm < 1e-6:
        return None
    return float((shown * wanted).sum() / (shown_norm * wanted_norm)) if shown_norm >= 1e-6 else 0.0
