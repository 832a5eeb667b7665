"""Cutting a picture of an asset from its background: any Pillow mode in, RGBA out.

Transparency is used where a share of the picture has it. Any other picture must stand on near-white, which is flooded
from the border and cut away with soft edges. What a flood cannot know: holes that the border does not reach (between
the handles of a bag) stay, white and opaque, and so do cast shadows darker than a twentieth, which pale cloth looks
like.
"""

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFilter

from fcjax.pictures import upright

MAX_SIDE = 1024
"""Pictures are reduced to this many pixels along their longer side."""

# A background counts as near-white where all channels are at least this bright and differ by at most this much.
_NEAR_WHITE_LEVEL, _NEAR_WHITE_TINT = 224, 20
# A picture of which less is transparent is no cut-out: a few clear pixels are an editor's leavings.
_CLEAR_SHARE = 0.01
# Background pixels may differ from the background's own colour by this much in any channel (JPEG noise, soft shadows).
_BACKGROUND_TOLERANCE = 14


def cut_out(image: Image.Image, name: str, whole: bool) -> UInt8[np.ndarray, "h w 4"]:
    """RGBA (straight alpha) of a picture in any mode: upright, reduced to MAX_SIDE, cut from its background.

    `name` stands in error messages; `whole` leaves an opaque picture as it is. ValueError for a real background.
    """
    image = upright(image, f"the asset {name!r}")
    if max(image.size) > MAX_SIDE:
        ratio = MAX_SIDE / max(image.size)
        size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    pixels = np.asarray(image)
    if pixels.shape[2] == 4:
        if (pixels[..., 3] < 128).mean() >= _CLEAR_SHARE:
            return pixels
        pixels = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    pixels = pixels[..., :3]
    if not whole:
        pixels, alpha = _cut_near_white(pixels, name)
    return np.dstack([pixels, alpha])


def _cut_near_white(
    pixels: UInt8[np.ndarray, "h w 3"], name: str
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Colour without the background's share, and alpha, of an opaque picture on near-white."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    near_white = (border.min(1) >= _NEAR_WHITE_LEVEL) & (np.ptp(border, axis=1) <= _NEAR_WHITE_TINT)
    # Choice: garments may run out of the frame, so half of the border is enough to know the background by.
    if near_white.mean() < 0.5:
        raise ValueError(
            f"the asset {name!r} has a real background: give a cut-out with a transparent or near-white background "
            "(or, if the picture is the asset from edge to edge, as fabric swatches are, say so: whole=True, --swatch)"
        )
    background = np.median(border[near_white], axis=0).astype(np.float32)
    # The greatest difference from the background over the channels, freed of specks.
    difference = Image.fromarray(np.abs(pixels - background).max(2).round().astype(np.uint8))
    smooth = np.asarray(difference.filter(ImageFilter.MedianFilter(3)))
    outside = reached_from_border(smooth <= _BACKGROUND_TOLERANCE)

    # A pixel at the edge mixes the background with its inner neighbour, whose difference is the greatest around it: the
    # ratio of the two differences is the asset's share. Flooded pixels have a share only beside a marked edge.
    inner = np.asarray(difference.filter(ImageFilter.MaxFilter(5)), np.float32)
    distance = np.asarray(difference, np.float32)
    ratio = np.clip((distance - 2.0) / np.maximum(inner - 2.0, 1.0), 0.0, 1.0)
    near_outside = np.asarray(Image.fromarray(outside.astype(np.uint8)).filter(ImageFilter.MaxFilter(5)), bool)
    cut = outside & ((distance <= _BACKGROUND_TOLERANCE) | (inner <= 3 * _BACKGROUND_TOLERANCE))
    share = np.where(cut, 0.0, np.where(near_outside, ratio, 1.0)).astype(np.float32)[..., None]
    colour = (pixels - (1.0 - share) * background) / np.maximum(share, 1e-3)
    colour = np.where(share > 0.0, np.clip(colour, 0.0, 255.0), 255.0)
    return colour.round().astype(np.uint8), (share[..., 0] * 255.0).round().astype(np.uint8)


def reached_from_border(passable: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The passable pixels that are connected to the border.

    Whole runs of a row or a column are filled at once, rows and columns in turn, so the number of rounds is that of the
    turns in the most winding way, not of the pixels.
    """
    row_runs, column_runs = _run_labels(passable), _run_labels(passable.T)
    reached = np.zeros_like(passable)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        reached[edge] = passable[edge]
    count = -1
    while count != (count := int(reached.sum())):
        for runs, view in ((row_runs, reached), (column_runs, reached.T)):
            hit = np.zeros(runs.max(initial=0) + 1, bool)
            hit[runs[view]] = True
            hit[0] = False
            view |= hit[runs]
    return reached


def _run_labels(passable: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """A number for each unbroken run of a row, 0 where nothing is passable."""
    starts = passable.copy()
    starts[:, 1:] &= ~passable[:, :-1]
    return np.where(passable, np.cumsum(starts).reshape(passable.shape), 0)
