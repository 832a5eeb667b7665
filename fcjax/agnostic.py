"""Cloth-agnostic persons: where a person is repainted for new clothes, and the person without it.

One function for training, try-on and evaluation, so that a model sees in use what it saw in training. A mask follows
from a parse map, with keypoints for sleeves that the person does not wear, or from a DensePose map, or from both: arms
as strokes between shoulders, elbows and wrists, the garments' own region and the skin that other garments may cover,
widened, without holes, the largest piece of each half of the body; then head, hands (where keypoints or a DensePose map
tell them from arms) and the other half of the body are given back.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

from fcjax.data.sources.sample import Part

Category = Literal["upper", "lower", "dress", "outfit"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
MARGIN = 0.02
"""How far a mask reaches beyond what it must cover, as a share of the picture's height."""
LOOSE = 2.0
"""So many times the margin where only the body is known: garments stand off from it."""
STROKE = 0.5  # width of an arm's stroke over the distance of the shoulders
LEAST_CONFIDENCE = 0.1
SHOULDERS, ELBOWS, WRISTS, HIPS = (2, 5), (3, 6), (4, 7), (8, 11)  # of OpenPose's 18
_TRUNK = 0.75  # the shoulders' distance over that of shoulder and hip, where one shoulder is not seen
_HAND = 0.8  # a hand's length at most, over the forearm's
_HEM, _WAIST = 1.5, 0.5  # how far tops reach down the legs and trousers up the trunk, over the margin, by eye
_CROWN, _FOOT = 0.35, 0.06  # of the head's height, and of the person's: where hat and shoes come if none are seen

_UPPER = (Part.UPPER, Part.COAT, Part.DRESS, Part.JUMPSUIT, Part.SCARF, Part.NECK)
_LOWER = (Part.PANTS, Part.SKIRT, Part.BELT, Part.DRESS, Part.JUMPSUIT)
_ARMS = (Part.LEFT_ARM, Part.RIGHT_ARM, Part.SKIN)
_LEGS = (Part.LEFT_LEG, Part.RIGHT_LEG, Part.SOCKS)
_SHOES = (Part.LEFT_SHOE, Part.RIGHT_SHOE)
_FACE = (Part.FACE, Part.SUNGLASSES)
_HEAD = (*_FACE, Part.HAIR)
_GARMENTS = (*_UPPER[:4], *_LOWER[:2])
_HALVES = {"upper": ("upper",), "lower": ("lower",), "dress": ("upper", "lower"), "outfit": ("upper", "lower")}
_COVERED = {"upper": (*_UPPER, *_ARMS), "lower": (*_LOWER, *_LEGS)}
_KEPT = {
    "upper": (*_HEAD, *_LEGS, Part.PANTS, Part.SKIRT, Part.BAG, Part.GLOVE),
    "lower": (*_HEAD, Part.UPPER, Part.COAT, Part.NECK, *_ARMS, Part.BAG, Part.GLOVE),
    "dress": (*_HEAD, Part.BAG, Part.GLOVE),
    "outfit": (*_HEAD, Part.BAG, Part.GLOVE),
}
# DensePose's charts.
_TORSO, _HANDS, _FEET, _HEAD_CHARTS = (1, 2), (3, 4), (5, 6), (23, 24)
_LEG_CHARTS, _ARM_CHARTS = tuple(range(7, 15)), tuple(range(15, 23))
_COVERED_CHARTS = {"upper": (*_TORSO, *_ARM_CHARTS), "lower": _LEG_CHARTS}


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
        parse: `Part` numbers. keypoints: OpenPose's 18, pixels of this very picture and confidence. iuv: DensePose's
            map. At least a parse map or a DensePose map must be there; what both know the parse map decides.
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
        raise ValueError("a mask needs a parse map or a DensePose map of the person, and there is neither")
    if parse is not None and iuv is not None and parse.shape != iuv.shape[:2]:
        raise ValueError(f"the parse map is {parse.shape}, the DensePose map {iuv.shape[:2]} (height, width)")
    chart = None if iuv is None else iuv[..., 0]
    if parse is not None:
        parse = _limbs(parse, chart)
        if chart is not None:
            # Hands in pockets and feet below a long hem: the body's map knows them, but cloth is what one sees.
            chart = np.where(np.isin(chart, _HANDS + _FEET) & np.isin(parse, _GARMENTS), np.uint8(0), chart)
    halves = [_covered(parse, keypoints, chart, half) for half in _HALVES[category]]
    covered = np.logical_or.reduce(halves)
    if not covered.any():
        raise ValueError(f"the maps show nothing of a person to be repainted for category {category!r}")
    pixels = round(margin * len(covered) * (1.0 if parse is not None else LOOSE))
    hem = None
    if parse is None and chart is not None:
        hem = _hem(chart, category, pixels)
        covered |= hem if category == "upper" else _hull(np.isin(chart, _LEG_CHARTS))
    # Between a short top and a low skirt there may be skin.
    pieces = _pieces(_filled(_widened(covered, pixels)))
    mask = np.logical_or.reduce([_largest(pieces, half) for half in halves])
    kept = _kept(parse, keypoints, chart, category)
    mask &= ~(kept if hem is None else kept & ~hem)
    for name, worn, parts, charts, bare in (
        ("shoes", shoes, _SHOES, _FEET, _bare_feet),
        ("a hat", hat, (Part.HAT,), (), _bare_crown),
    ):
        shown = _seen(parse, parts, chart, charts)
        if worn and not shown.any():
            mask |= bare(parse, chart, name, pixels) & ~_seen(parse, _FACE, chart, ())
        elif worn:
            # A hat's brim and a sole's edge belong to what is taken off.
            mask |= _widened(shown, pixels) & ~_head(parse, chart)
        else:
            mask &= ~shown
    if not mask.any():
        raise ValueError(f"all that the maps show is kept for category {category!r}: nothing is left to repaint")
    return mask


def agnostic_image(image: UInt8[ndarray, "h w 3"], mask: Bool[ndarray, "h w"]) -> UInt8[ndarray, "h w 3"]:
    """The picture with middle grey where it is repainted."""
    return np.where(mask[..., None], np.uint8(128), image)


# ---------------------------------------------------------------------------------------------------------------------
# What is covered, and what is given back


def _limbs(parse: UInt8[ndarray, "h w"], chart: UInt8[ndarray, "h w"] | None) -> UInt8[ndarray, "h w"]:
    """Bare skin as arm or leg: by the body's charts, or else a piece below the garment of the legs is a leg."""
    skin = parse == Part.SKIN
    if not skin.any():
        return parse
    if chart is not None:
        legs, arms = (skin & np.isin(chart, charts) for charts in (_LEG_CHARTS + _FEET, _ARM_CHARTS + _HANDS))
        return np.select([legs, arms], [np.uint8(Part.LEFT_LEG), np.uint8(Part.LEFT_ARM)], parse)
    # A coat may hang open before bare legs.
    around = next((parts for parts in (_LOWER, _GARMENTS) if np.isin(parse, parts).any()), ())
    worn = np.flatnonzero(np.isin(parse, around).any(axis=1))
    pieces = _pieces(skin)
    middles = np.bincount(pieces[skin], np.nonzero(skin)[0]) / np.bincount(pieces[skin])
    below = middles > (worn[-1] if len(worn) else len(parse))
    return np.where(skin & below[pieces], np.uint8(Part.LEFT_LEG), parse)


def _seen(
    parse: ndarray | None, parts: tuple[int, ...], chart: ndarray | None, charts: tuple[int, ...]
) -> Bool[ndarray, "h w"]:
    """Where either map shows one of its own."""
    found = np.zeros((parse if parse is not None else chart).shape, bool)  # type: ignore[union-attr]
    if parse is not None:
        found |= np.isin(parse, parts)
    if chart is not None:
        found |= np.isin(chart, charts)
    return found


def _bare_crown(parse: ndarray | None, chart: ndarray | None, what: str, pixels: int) -> Bool[ndarray, "h w"]:
    """The top of a head without a hat, and around it, but not below. ValueError where no head is seen."""
    head = _head(parse, chart)
    rows = np.flatnonzero(head.any(axis=1))
    # Long hair hangs below the chin.
    chin = rows if parse is None else np.flatnonzero((parse == Part.FACE).any(axis=1))
    if not len(rows) or not len(chin):
        raise ValueError(f"{what} is to be put on, but the maps show no head")
    brow = rows[0] + max(1, round(_CROWN * (chin[-1] - rows[0])))
    crown = _widened(head & (np.arange(len(head)) < brow)[:, None], pixels)
    crown[brow:] = False
    return crown


def _bare_feet(parse: ndarray | None, chart: ndarray | None, what: str, pixels: int) -> Bool[ndarray, "h w"]:
    """The ends of bare legs, and around them. ValueError where no leg is seen."""
    legs = np.zeros((parse if parse is not None else chart).shape, bool)  # type: ignore[union-attr]
    person = np.flatnonzero(_person(parse, chart).any(axis=1))
    for part, charts in ((Part.LEFT_LEG, _LEG_CHARTS[::2]), (Part.RIGHT_LEG, _LEG_CHARTS[1::2])):
        leg = _seen(parse, (part,), chart, charts)
        rows = np.flatnonzero(leg.any(axis=1))
        if len(rows):
            leg[: rows[-1] + 1 - max(1, round(_FOOT * (person[-1] - person[0])))] = False
            legs |= leg
    if not legs.any():
        raise ValueError(f"{what} are to be put on, but the maps show neither feet nor legs")
    return _widened(legs, pixels)


def _person(parse: ndarray | None, chart: ndarray | None) -> Bool[ndarray, "h w"]:
    return (parse if parse is not None else chart) > 0  # type: ignore[operator]


def _covered(parse: ndarray | None, keypoints: ndarray | None, chart: ndarray | None, half: str) -> ndarray:
    covered = _seen(parse, _COVERED[half], chart, _COVERED_CHARTS[half])
    if keypoints is not None and half == "upper":
        covered |= _strokes(keypoints, covered.shape)
    return covered


def _kept(parse: ndarray | None, keypoints: ndarray | None, chart: ndarray | None, category: str) -> ndarray:
    kept = _head(parse, chart)
    if parse is not None:
        kept |= np.isin(parse, _KEPT[category])
        if keypoints is not None:
            kept |= _behind_wrists(keypoints, parse.shape) & np.isin(parse, _ARMS)
    if chart is not None:
        kept |= np.isin(chart, _HANDS)
        if parse is None and category in ("upper", "lower"):
            kept |= np.isin(chart, _LEG_CHARTS if category == "upper" else (*_TORSO, *_ARM_CHARTS))
    return kept


def _head(parse: ndarray | None, chart: ndarray | None) -> ndarray:
    # The head's charts hold the neck, which a parse map tells from the face.
    return _seen(parse, _HEAD, chart, () if parse is not None else _HEAD_CHARTS)


def _strokes(keypoints: Float[ndarray, "18 3"], shape: tuple[int, ...]) -> Bool[ndarray, "h w"]:
    """Both arms as thick lines."""
    picture = Image.new("1", (shape[1], shape[0]))
    draw = ImageDraw.Draw(picture)
    across = _shoulders(keypoints)
    if across is None:
        return np.asarray(picture)
    width = max(1, round(STROKE * across))
    for joints in zip(SHOULDERS, ELBOWS, WRISTS, strict=True):
        seen = [tuple(map(float, keypoints[joint, :2])) for joint in joints if keypoints[joint, 2] >= LEAST_CONFIDENCE]
        if len(seen) > 1:
            draw.line(seen, fill=1, width=width, joint="curve")
        for x, y in seen:
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=1)
    return np.asarray(picture)


def _shoulders(keypoints: Float[ndarray, "18 3"]) -> float | None:
    """Their distance, by the trunk's length where one alone is seen; None where that is not seen either."""
    seen = keypoints[:, 2] >= LEAST_CONFIDENCE

    def apart(one: int, other: int) -> float:
        return float(np.linalg.norm(keypoints[one, :2] - keypoints[other, :2]))

    if seen[list(SHOULDERS)].all():
        return apart(*SHOULDERS)
    sides = [(one, hip) for one, hip in zip(SHOULDERS, HIPS, strict=True) if seen[one] and seen[hip]]
    return _TRUNK * apart(*sides[0]) if sides else None


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
        found |= (across * way[0] + down * way[1] > 0) & (np.hypot(across, down) < _HAND * length)
    return found


def _hem(chart: ndarray, category: str, pixels: int) -> Bool[ndarray, "h w"]:
    """The strip of the body's other half that the garment may reach: a top's hem lies on the hips."""
    if category == "upper":
        return np.isin(chart, _LEG_CHARTS) & _widened(np.isin(chart, _TORSO), int(_HEM * pixels))
    return np.isin(chart, _TORSO) & _widened(np.isin(chart, _LEG_CHARTS), int(_WAIST * pixels))


# ---------------------------------------------------------------------------------------------------------------------
# Shapes


def chessboard(mask: Bool[ndarray, "h w"]) -> Int[ndarray, "h w"]:
    """How many pixels away the mask is, in steps to any of 8 neighbours: 0 inside; height + width where it is empty."""
    away = np.where(mask, np.int32(0), np.int32(sum(mask.shape)))
    column = np.arange(mask.shape[1], dtype=np.int32)
    # Downwards and to the right, then upwards and to the left.
    for side in (away, away[::-1, ::-1]):
        for row in range(len(side)):
            if row:
                above = np.pad(side[row - 1], 1, mode="edge") + 1
                np.minimum(side[row], np.minimum(np.minimum(above[:-2], above[2:]), above[1:-1]), out=side[row])
            side[row] = np.minimum.accumulate(side[row] - column) + column
    return away


def _widened(mask: Bool[ndarray, "h w"], pixels: int) -> Bool[ndarray, "h w"]:
    """By so many pixels in all directions."""
    return chessboard(mask) <= pixels if mask.any() else mask


def _filled(mask: Bool[ndarray, "h w"]) -> Bool[ndarray, "h w"]:
    """Without holes: what the border does not reach belongs to it."""
    outside = _pieces(np.pad(~mask, 1, constant_values=True)) == 0
    return ~outside[1:-1, 1:-1]


def _largest(pieces: Int[ndarray, "h w"], counted: Bool[ndarray, "h w"]) -> Bool[ndarray, "h w"]:
    """The piece (see `_pieces`) with most of what is counted, the first of equal ones; nothing where there is none."""
    places = pieces[counted & (pieces >= 0)]
    return pieces == np.bincount(places).argmax() if len(places) else np.zeros_like(counted)


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
