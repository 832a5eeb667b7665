"""Cloth-agnostic persons: where a person is repainted for new clothes, and the person without it.

One function for training, try-on and evaluation, so that a model sees in use what it saw in training. A mask follows
from a parse map, with keypoints for sleeves that the person does not wear, or from a DensePose map, or from both: arms
as strokes between shoulders, elbows and wrists, the garments' own region and the skin that other garments may cover,
widened, without holes, its largest piece; then head, hands and the other half of the body are given back.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFilter

from fcjax.data.sources.sample import Part

Category = Literal["upper", "lower", "dress", "outfit"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
MARGIN = 0.02
"""How far a mask reaches beyond what it must cover, as a share of the picture's height."""
LOOSE = 2.0
"""So many times the margin where only the body is known: garments stand off from it."""
STROKE = 0.5  # width of an arm's stroke over the distance of the shoulders
LEAST_CONFIDENCE = 0.1
NECK, SHOULDERS, ELBOWS, WRISTS = 1, (2, 5), (3, 6), (4, 7)  # of OpenPose's 18

_UPPER = (Part.UPPER, Part.COAT, Part.DRESS, Part.JUMPSUIT, Part.SCARF, Part.NECK)
_LOWER = (Part.PANTS, Part.SKIRT, Part.BELT, Part.DRESS, Part.JUMPSUIT)
_ARMS = (Part.LEFT_ARM, Part.RIGHT_ARM, Part.SKIN)
_LEGS = (Part.LEFT_LEG, Part.RIGHT_LEG, Part.SOCKS)
_SHOES = (Part.LEFT_SHOE, Part.RIGHT_SHOE)
_HEAD = (Part.FACE, Part.HAIR, Part.SUNGLASSES)
_COVERED = {
    "upper": (*_UPPER, *_ARMS),
    "lower": (*_LOWER, *_LEGS),
    "dress": (*_UPPER, *_LOWER, *_ARMS, *_LEGS),
    "outfit": (*_UPPER, *_LOWER, *_ARMS, *_LEGS),
}
_KEPT = {
    "upper": (*_HEAD, *_LEGS, Part.PANTS, Part.SKIRT, Part.BAG, Part.GLOVE),
    "lower": (*_HEAD, Part.UPPER, Part.COAT, Part.NECK, Part.LEFT_ARM, Part.RIGHT_ARM, Part.BAG, Part.GLOVE),
    "dress": (*_HEAD, Part.BAG, Part.GLOVE),
    "outfit": (*_HEAD, Part.BAG, Part.GLOVE),
}
# DensePose's charts.
_TORSO, _HANDS, _FEET, _HEAD_CHARTS = (1, 2), (3, 4), (5, 6), (23, 24)
_LEG_CHARTS, _ARM_CHARTS = tuple(range(7, 15)), tuple(range(15, 23))
_COVERED_CHARTS = {
    "upper": (_TORSO, _ARM_CHARTS),
    "lower": (_LEG_CHARTS,),
    "dress": (_TORSO, _ARM_CHARTS, _LEG_CHARTS),
    "outfit": (_TORSO, _ARM_CHARTS, _LEG_CHARTS),
}


def agnostic_mask(
    parse: UInt8[ndarray, "h w"] | None = None,
    keypoints: Float[ndarray, "18 3"] | None = None,
    iuv: UInt8[ndarray, "h w 3"] | None = None,
    category: str = "upper",
    *,
    margin: float = MARGIN,
    shoes: bool = False,
    hat: bool = False,
) -> Bool[ndarray, "h w"]:
    """True where the person is repainted.

    Args:
        parse: `Part` numbers. keypoints: OpenPose's 18, pixels and confidence. iuv: DensePose's map. At least a parse
            map or a DensePose map must be there; what both know the parse map decides.
        category: what is taken off: "upper", "lower", "dress" or "outfit".
        margin: a share of the picture's height.
        shoes, hat: taken off as well.

    ValueError where nothing of the kind is seen, for an unknown category, and for maps of different sizes.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category is {category!r}; expected one of {', '.join(CATEGORIES)}")
    if not 0 <= margin <= 0.5:
        raise ValueError(f"margin is a share of the picture's height: it must lie in [0, 0.5], got {margin}")
    if parse is None and iuv is None:
        raise ValueError("a mask needs a parse map or a DensePose map of the person")
    if parse is not None and iuv is not None and parse.shape != iuv.shape[:2]:
        raise ValueError(f"the parse map is {parse.shape}, the DensePose map {iuv.shape[:2]} (height, width)")
    chart = None if iuv is None else iuv[..., 0]
    covered = _covered(parse, keypoints, chart, category)
    if not covered.any():
        raise ValueError(f"the maps show nothing of a person to be repainted for category {category!r}")
    pixels = round(margin * len(covered) * (1.0 if parse is not None else LOOSE))
    if parse is None:
        covered = _around(covered, chart, category, pixels)
    mask = _largest(_filled(_widened(covered, pixels)))
    mask &= ~_kept(parse, keypoints, chart, category, pixels)
    for worn, parts, charts in ((shoes, _SHOES, _FEET), (hat, (Part.HAT,), ())):
        shown = np.zeros_like(mask)
        if parse is not None:
            shown |= np.isin(parse, parts)
        if chart is not None:
            shown |= np.isin(chart, charts)
        # A hat's brim and a sole's edge belong to what is taken off.
        mask = mask | _widened(shown, pixels) & ~_face(parse, chart) if worn else mask & ~shown
    return mask


def agnostic_image(image: UInt8[ndarray, "h w 3"], mask: Bool[ndarray, "h w"]) -> UInt8[ndarray, "h w 3"]:
    """The picture with middle grey where it is repainted."""
    return np.where(mask[..., None], np.uint8(128), image)


# ---------------------------------------------------------------------------------------------------------------------
# What is covered, and what is given back


def _covered(parse: ndarray | None, keypoints: ndarray | None, chart: ndarray | None, category: str) -> ndarray:
    covered = np.zeros((parse if parse is not None else chart).shape, bool)  # type: ignore[union-attr]
    if parse is not None:
        covered |= np.isin(parse, _COVERED[category])
    if chart is not None:
        covered |= np.isin(chart, [number for charts in _COVERED_CHARTS[category] for number in charts])
    if keypoints is not None and category != "lower":
        covered |= _strokes(keypoints, covered.shape)
    return covered


def _kept(
    parse: ndarray | None, keypoints: ndarray | None, chart: ndarray | None, category: str, pixels: int
) -> ndarray:
    kept = _face(parse, chart)
    if parse is not None:
        kept |= np.isin(parse, _KEPT[category])
        if keypoints is not None:
            kept |= _behind_wrists(keypoints, parse.shape) & np.isin(parse, _ARMS)
    if chart is not None:
        kept |= np.isin(chart, _HANDS)
        if parse is None and category in ("upper", "lower"):
            kept |= np.isin(chart, _LEG_CHARTS if category == "upper" else (*_TORSO, *_ARM_CHARTS))
            kept &= ~_hem(chart, category, pixels)
    return kept


def _face(parse: ndarray | None, chart: ndarray | None) -> ndarray:
    face = np.zeros((parse if parse is not None else chart).shape, bool)  # type: ignore[union-attr]
    if parse is not None:
        face |= np.isin(parse, _HEAD)
    # The head's charts hold the neck, which a parse map tells from the face.
    elif chart is not None:
        face |= np.isin(chart, _HEAD_CHARTS)
    return face


def _strokes(keypoints: Float[ndarray, "18 3"], shape: tuple[int, ...]) -> Bool[ndarray, "h w"]:
    """Both arms as thick lines."""
    picture = Image.new("1", (shape[1], shape[0]))
    draw = ImageDraw.Draw(picture)
    right, left = keypoints[list(SHOULDERS)]
    if min(right[2], left[2]) < LEAST_CONFIDENCE:
        return np.asarray(picture)
    width = max(1, round(STROKE * float(np.linalg.norm(right[:2] - left[:2]))))
    for joints in zip(SHOULDERS, ELBOWS, WRISTS, strict=True):
        seen = [tuple(map(float, keypoints[joint, :2])) for joint in joints if keypoints[joint, 2] >= LEAST_CONFIDENCE]
        if len(seen) > 1:
            draw.line(seen, fill=1, width=width, joint="curve")
        for x, y in seen:
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=1)
    return np.asarray(picture)


def _behind_wrists(keypoints: Float[ndarray, "18 3"], shape: tuple[int, ...]) -> Bool[ndarray, "h w"]:
    """Pixels near a wrist and farther from the elbow than it: the hand, where they show an arm."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    found = np.zeros(shape, bool)
    for elbow, wrist in zip(ELBOWS, WRISTS, strict=True):
        if min(keypoints[elbow, 2], keypoints[wrist, 2]) < LEAST_CONFIDENCE:
            continue
        way = keypoints[wrist, :2] - keypoints[elbow, :2]
        length = float(np.linalg.norm(way))
        across, down = columns - keypoints[wrist, 0], rows - keypoints[wrist, 1]
        found |= (across * way[0] + down * way[1] > 0) & (np.hypot(across, down) < 0.8 * length)
    return found


def _around(covered: ndarray, chart: ndarray | None, category: str, pixels: int) -> ndarray:
    """Where only the body is known: the hull of the legs too, between which a skirt hangs, or the hips under a hem."""
    if chart is None:
        return covered
    return covered | (_hem(chart, category, pixels) if category == "upper" else _hull(np.isin(chart, _LEG_CHARTS)))


def _hem(chart: ndarray, category: str, pixels: int) -> Bool[ndarray, "h w"]:
    """The strip of the body's other half that the garment may reach: a top's hem lies on the hips."""
    if category == "upper":
        return np.isin(chart, _LEG_CHARTS) & _widened(np.isin(chart, _TORSO), pixels + pixels // 2)
    return np.isin(chart, _TORSO) & _widened(np.isin(chart, _LEG_CHARTS), pixels // 2)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes


def _widened(mask: Bool[ndarray, "h w"], pixels: int) -> Bool[ndarray, "h w"]:
    """By so many pixels in all directions."""
    picture = Image.fromarray(mask.astype(np.uint8))
    for _ in range(pixels):
        picture = picture.filter(ImageFilter.MaxFilter(3))
    return np.asarray(picture) > 0


def _filled(mask: Bool[ndarray, "h w"]) -> Bool[ndarray, "h w"]:
    """Without holes: what the border does not reach belongs to it."""
    outside = _pieces(np.pad(~mask, 1, constant_values=True)) == 0
    return ~outside[1:-1, 1:-1]


def _largest(mask: Bool[ndarray, "h w"]) -> Bool[ndarray, "h w"]:
    """Its largest connected piece, the first of equal ones."""
    pieces = _pieces(mask)
    return pieces == np.bincount(pieces[mask]).argmax() if mask.any() else mask


def _pieces(mask: Bool[ndarray, "h w"]) -> Int[ndarray, "h w"]:
    """Which connected piece each pixel belongs to (by its sides), counted from 0 in reading order; -1 outside."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    # Runs of pixels; a run's root is the first run of its piece.
    roots = list(range(len(rows)))

    def root(run: int) -> int:
        while roots[run] != run:
            roots[run] = roots[roots[run]]
            run = roots[run]
        return run

    first = np.searchsorted(rows, np.arange(mask.shape[0] + 1)).tolist()
    low, high = starts.tolist(), ends.tolist()
    for row in range(1, mask.shape[0]):
        above, here = first[row - 1], first[row]
        while above < first[row] and here < first[row + 1]:
            if low[above] < high[here] and low[here] < high[above]:
                one, other = sorted((root(above), root(here)))
                roots[other] = one
            if high[above] < high[here]:
                above += 1
            else:
                here += 1
    numbers = np.unique([root(run) for run in range(len(rows))], return_inverse=True)[1]
    pieces = np.full(mask.shape, -1)
    pieces[mask] = np.repeat(numbers, ends - starts)
    return pieces


def _hull(mask: Bool[ndarray, "h w"]) -> Bool[ndarray, "h w"]:
    """Its convex hull (Andrew's monotone chain)."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return mask
    first, last = mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    points = sorted({*zip(first.tolist(), rows.tolist(), strict=True), *zip(last.tolist(), rows.tolist(), strict=True)})
    half = [_chain(points), _chain(points[::-1])]
    corners = [*half[0][:-1], *half[1][:-1]]
    picture = Image.new("1", (mask.shape[1], mask.shape[0]))
    if len(corners) > 2:
        ImageDraw.Draw(picture).polygon(corners, fill=1, outline=1)
    return np.asarray(picture) | mask


def _chain(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for point in points:
        while len(found) > 1 and _turn(found[-2], found[-1], point) <= 0:
            found.pop()
        found.append(point)
    return found


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
