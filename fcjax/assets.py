"""The asset library: pictures with their phrases in, one white canvas with a mask for each out.

An asset is whatever the person should wear or look like: a garment, a face, shoes, a hat, a bag, a swatch of fabric.
Each comes with the phrase of the prompt that describes it. All are placed on one white canvas without overlap, which
the reference UNet then reads in a single pass. Boxes are (top, left, bottom, right) in pixels, sizes (height, width).
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from fcjax.cutout import MAX_SIDE, cut_out
from fcjax.pictures import read

MAX_ASSETS = 8
"""Default bound on the assets of one canvas: the number that its masks are padded to."""
MAX_ENLARGEMENT = 3.0
"""No asset is drawn at more than this many times its own size: a blurred postage stamp would waste the canvas."""
SMALLEST_COVERAGE = 0.5
"""What `token_masks` raises an asset's best token to, where no token is covered by more than that."""

# How many divisions of the canvas are compared.
_CANDIDATES = 48


class Box(NamedTuple):
    """Pixels [top, bottom) x [left, right)."""

    top: int
    left: int
    bottom: int
    right: int


@runtime_checkable
class Placeable(Protocol):
    """What `lay_out` needs of an asset; Wardrobe's assets fit as they are."""

    @property
    def image(self) -> np.ndarray: ...
    @property
    def phrase(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Asset:
    """A picture cut from its background and the phrase that describes it.

    `image` is uint8 RGBA (h, w, 4) with straight alpha; its transparent margins do not matter.
    """

    image: np.ndarray
    phrase: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrase", _checked_phrase(self.phrase))
        image = self.image
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 4:
            raise ValueError(
                f"an asset's image must be uint8 RGBA (height, width, 4), got {_in_short(image)}; Asset.from_image "
                "accepts other pictures"
            )
        _visible_box(self.image[..., 3], self.phrase)

    @classmethod
    def open(cls, path: str | Path, phrase: str, whole: bool = False) -> "Asset":
        """Reads a picture of any common format and size and cuts it from its background.

        Transparency is used where a hundredth of the picture or more has it. Any other must stand on near-white: what
        is connected to its border and near that white is cut away with soft edges, so white details inside a garment
        stay. `whole` takes
        the picture edge to edge instead (a fabric swatch, a face crop). ValueError for a missing or broken file, an
        empty phrase, a picture with nothing to see, and one with a real background.
        """
        phrase = _checked_phrase(phrase)
        return cls(cut_out(read(path, MAX_SIDE, "asset"), str(path), whole), phrase)

    @classmethod
    def from_image(cls, image: Image.Image | UInt8[np.ndarray, "h w c"], phrase: str, whole: bool = False) -> "Asset":
        """As `open`, from a Pillow image or an array (RGB, RGBA or grey)."""
        phrase = _checked_phrase(phrase)
        return cls(cut_out(_pillow(image), phrase, whole), phrase)


@dataclass(frozen=True, eq=False)
class AssetCanvas:
    """All assets of a picture on white, with the coverage (alpha) of each.

    `masks` is padded with zeros to the canvas's bound on assets, so that their number is data; `boxes`, `crops` (the
    part of its own picture that an asset shows there) and `phrases` have one entry an asset, in the order given.
    """

    image: UInt8[np.ndarray, "h w 3"]
    masks: Float32[np.ndarray, "a h w"]
    boxes: tuple[Box, ...]
    crops: tuple[Box, ...]
    phrases: tuple[str, ...]

    @property
    def owners(self) -> UInt8[np.ndarray, "h w"]:
        """Which asset covers each pixel by half or more: 0 none, i + 1 asset i. Assets do not overlap."""
        numbers = np.arange(1, len(self.masks) + 1, dtype=np.uint8)
        return ((self.masks >= 0.5) * numbers[:, None, None]).max(0, initial=0)


def _checked_phrase(phrase: str) -> str:
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(f"an asset needs the phrase that describes it ('a red striped shirt'), got {phrase!r}")
    return " ".join(phrase.split())


def _pillow(image: Any) -> Image.Image:
    """A Pillow image, or an array as one."""
    if isinstance(image, np.ndarray):
        try:
            return Image.fromarray(image)
        # Pillow's words for arrays that it cannot take, of floats for one, do not say which it can.
        except (TypeError, ValueError):
            pass
    if not isinstance(image, Image.Image):
        raise ValueError(
            "an asset's picture must be a Pillow image or a uint8 array of 0 to 255 (height, width, 3 or 4), got "
            f"{_in_short(image)}; Asset.open reads files"
        )
    return image


def _in_short(value: Any) -> str:
    """A value for a message of one line."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    said = repr(value)
    return said if len(said) <= 80 and "\n" not in said else type(value).__name__


def _visible_box(alpha: UInt8[np.ndarray, "h w"], name: str) -> Box:
    """The bounds of what is not transparent."""
    rows, columns = np.flatnonzero(alpha.max(1) >= 8), np.flatnonzero(alpha.max(0) >= 8)
    if alpha.max(initial=0) < 128:
        raise ValueError(
            f"there is nothing to see in the asset {name!r}: it is all transparent or all white "
            "(a white thing on white needs a transparent background)"
        )
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


# ---------------------------------------------------------------------------------------------------------------------
# Layout


def lay_out(
    assets: Sequence[Placeable],
    height: int,
    width: int,
    seed: int = 0,
    boxes: Sequence[Sequence[int]] | None = None,
    max_assets: int = MAX_ASSETS,
    varied: bool = False,
) -> AssetCanvas:
    """Places assets on a white canvas: no overlap, aspect kept, the same for the same seed.

    By default they are packed large: the best of several random ways to divide the canvas. `varied` (for training)
    takes a less chosen way, shrinks each asset at random and puts it anywhere in its share. `boxes` (top, left,
    bottom, right, one an asset) fixes the places instead; each asset is fitted into the middle of its box. No asset
    is enlarged more than MAX_ENLARGEMENT times. An empty list makes a white canvas. ValueError for too many assets,
    sizes that are not multiples of 8, and boxes that overlap or leave the canvas.
    """
    for name, size in (("height", height), ("width", width)):
        if size <= 0 or size % 8:
            raise ValueError(
                f"{name} must be a positive multiple of 8, got {size}; {max(8, round(size / 8) * 8)} would do"
            )
    if not isinstance(assets, Sequence) or isinstance(assets, str):
        raise ValueError(f"assets must be a list of fcjax.Asset (Asset.open(path, phrase)), got {_in_short(assets)}")
    for asset in assets:
        if not isinstance(asset, Placeable):
            raise ValueError(f"assets must be fcjax.Asset (Asset.open(path, phrase)), got {_in_short(asset)}")
    if len(assets) > max_assets:
        raise ValueError(f"at most {max_assets} assets fit this model's canvas, got {len(assets)}")
    phrases = tuple(_checked_phrase(asset.phrase) for asset in assets)
    crops = [_visible_box(asset.image[..., 3], phrase) for asset, phrase in zip(assets, phrases, strict=True)]
    pictures = [
        asset.image[crop.top : crop.bottom, crop.left : crop.right] for asset, crop in zip(assets, crops, strict=True)
    ]
    sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]

    if boxes is not None:
        places = [
            _fit(size, box) for size, box in zip(sizes, _checked_boxes(boxes, phrases, height, width), strict=True)
        ]
    else:
        places = _random_places(sizes, height, width, np.random.default_rng(seed), varied)

    canvas = np.full((height, width, 3), 255, np.uint8)
    masks = np.zeros((max_assets, height, width), np.float32)
    for index, (picture, box) in enumerate(zip(pictures, places, strict=True)):
        colour, alpha = _resized(picture, box.bottom - box.top, box.right - box.left)
        area = np.s_[box.top : box.bottom, box.left : box.right]
        canvas[area] = colour
        masks[index][area] = alpha
        if alpha.max() < 0.5:
            raise ValueError(
                f"the asset {phrases[index]!r} is so thin or faint that nothing of it is left at "
                f"{box.bottom - box.top}x{box.right - box.left} pixels: give it a larger box or a bolder picture"
            )
    return AssetCanvas(canvas, masks, tuple(places), tuple(crops), phrases)


def _resized(
    picture: UInt8[np.ndarray, "h w 4"], height: int, width: int
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], Float32[np.ndarray, "h2 w2"]]:
    """The picture on white at another size, and its coverage; colours are weighted by alpha while they are averaged."""
    premultiplied = Image.fromarray(picture).convert("RGBa")
    if premultiplied.size != (width, height):
        premultiplied = premultiplied.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    pixels = np.asarray(premultiplied)
    alpha = pixels[..., 3]
    # LANCZOS may overshoot, and then colour plus white exceeds 255.
    on_white = np.minimum(pixels[..., :3].astype(np.uint16) + (255 - alpha)[..., None], 255)
    return on_white.astype(np.uint8), alpha.astype(np.float32) / 255.0


def _fit(size: tuple[int, int], box: Box, shrink: float = 1.0, at: tuple[float, float] = (0.5, 0.5)) -> Box:
    """The largest box of the size's aspect inside `box` (then shrunk), `at` saying where the free space goes."""
    free_height, free_width = box.bottom - box.top, box.right - box.left
    scale = shrink * min(free_height / size[0], free_width / size[1], MAX_ENLARGEMENT)
    height, width = (
        min(free, max(1, round(side * scale))) for side, free in zip(size, (free_height, free_width), strict=True)
    )
    top = box.top + round(at[0] * (free_height - height))
    left = box.left + round(at[1] * (free_width - width))
    return Box(top, left, top + height, left + width)


def _random_places(
    sizes: list[tuple[int, int]], height: int, width: int, rng: np.random.Generator, varied: bool
) -> list[Box]:
    """A place for each size, from the best of several random divisions of the canvas.

    Two boxes side by side behave as one whose aspect is the sum of theirs, two stacked as one whose inverse aspect is
    the sum, so a random tree of such pairs divides the canvas into shares of nearly the right shapes. Best is the
    greatest product of areas: large and even.
    """
    if not sizes:
        return []
    gap = max(2, round(0.02 * min(height, width)))
    canvas = (gap / 2, gap / 2, height - gap / 2, width - gap / 2)
    aspects = [size[1] / size[0] for size in sizes]
    best_score, best_shares, possible = -math.inf, None, 0
    for draws in rng.random((_CANDIDATES if len(sizes) > 1 else 1, len(sizes) - 1, 3)).tolist():
        shares = _divide(aspects, draws, canvas, gap)
        score = 0.0
        for size, share in zip(sizes, shares, strict=True):
            scale = min((share.bottom - share.top) / size[0], (share.right - share.left) / size[1], MAX_ENLARGEMENT)
            score = -math.inf if scale <= 0.0 else score + math.log(scale)
        if score > best_score:
            best_score, best_shares = score, shares
        possible += score > -math.inf
        # Fewer to choose from make more variety; many assets need more, lest some become specks.
        if varied and possible == 6 * len(sizes) - 1:
            break
    if best_shares is None:
        raise ValueError(f"a canvas of {height}x{width} pixels has no room for {len(sizes)} assets: use a larger one")
    if not varied:
        return [_fit(size, share) for size, share in zip(sizes, best_shares, strict=True)]
    variety = rng.random((len(sizes), 3)).tolist()
    return [
        _fit(size, share, 0.75 + 0.25 * shrink, (down, along))
        for size, share, (shrink, down, along) in zip(sizes, best_shares, variety, strict=True)
    ]


def _divide(
    aspects: list[float], draws: list[list[float]], canvas: tuple[float, float, float, float], gap: int
) -> list[Box]:
    """Shares of the canvas by a random tree over the assets: each draw picks two subtrees and how to join them."""
    nodes: list[tuple] = [(aspect, index) for index, aspect in enumerate(aspects)]
    for first_draw, second_draw, kind in draws:
        first = nodes.pop(int(first_draw * len(nodes)))
        second = nodes.pop(int(second_draw * len(nodes)))
        side_by_side = kind < 0.5
        aspect = first[0] + second[0] if side_by_side else 1.0 / (1.0 / first[0] + 1.0 / second[0])
        nodes.append((aspect, first, second, side_by_side))

    shares: list[Box | None] = [None] * len(aspects)
    waiting = [(nodes[0], canvas)]
    while waiting:
        node, (top, left, bottom, right) = waiting.pop()
        if len(node) == 2:
            shares[node[1]] = Box(
                *(math.ceil(edge + gap / 2) for edge in (top, left)),
                *(math.floor(edge - gap / 2) for edge in (bottom, right)),
            )
            continue
        _, first, second, side_by_side = node
        if side_by_side:
            middle = left + (right - left) * first[0] / (first[0] + second[0])
            waiting += [(first, (top, left, bottom, middle)), (second, (top, middle, bottom, right))]
        else:
            middle = top + (bottom - top) * second[0] / (first[0] + second[0])
            waiting += [(first, (top, left, middle, right)), (second, (middle, left, bottom, right))]
    return [share for share in shares if share is not None]


def _checked_boxes(boxes: Sequence[Sequence[int]], phrases: tuple[str, ...], height: int, width: int) -> list[Box]:
    if not isinstance(boxes, Sequence | np.ndarray) or isinstance(boxes, str):
        raise ValueError(f"boxes must be a list of (top, left, bottom, right), one an asset, got {_in_short(boxes)}")
    if len(boxes) != len(phrases):
        raise ValueError(f"expected one box an asset, got {len(boxes)} boxes for {len(phrases)} assets")
    checked: list[Box] = []
    for given, phrase in zip(boxes, phrases, strict=True):
        edges = tuple(given) if isinstance(given, Sequence | np.ndarray) else ()
        if len(edges) != 4 or not all(isinstance(edge, numbers.Real) and float(edge).is_integer() for edge in edges):
            got = edges or _in_short(given)
            raise ValueError(f"a box is four whole numbers (top, left, bottom, right), got {got} for {phrase!r}")
        box = Box(*(int(edge) for edge in edges))
        if not (0 <= box.top < box.bottom <= height and 0 <= box.left < box.right <= width):
            raise ValueError(
                f"the box {tuple(box)} of {phrase!r} (top, left, bottom, right) is empty or leaves the canvas of "
                f"{height}x{width} pixels"
            )
        for other, other_phrase in zip(checked, phrases, strict=False):
            if box.top < other.bottom and other.top < box.bottom and box.left < other.right and other.left < box.right:
                raise ValueError(f"the boxes of {phrase!r} and {other_phrase!r} overlap: {tuple(box)}, {tuple(other)}")
        checked.append(box)
    return checked


# ---------------------------------------------------------------------------------------------------------------------
# Masks for tokens


def owned_tokens(
    owners: UInt8[np.ndarray, "h w"], max_assets: int, height: int, width: int
) -> Float32[np.ndarray, "a h2 w2"]:
    """`token_masks` of a map of owners: what training and sampling both give the models."""
    numbers = np.arange(1, max_assets + 1, dtype=np.uint8)
    return token_masks((owners == numbers[:, None, None]).astype(np.float32), height, width)


def token_masks(masks: Float[np.ndarray, "*b a h w"], height: int, width: int) -> Float32[np.ndarray, "*b a h2 w2"]:
    """Each asset's share of each token of a `height` x `width` grid: the mean of its mask over the token's pixels.

    An asset never loses all its tokens: where none of them is covered by SMALLEST_COVERAGE or more, the most covered
    one (the first, if equal) is kept with its coverage raised to that. Two small assets may meet in one token that way.
    An empty mask (padding) stays empty. The models are given the grid of their latents; at coarser levels an asset
    keeps every token that it touches, with its share of it (`fcjax.models.composer.level_masks`).
    """
    *leading, rows, columns = masks.shape
    if height <= 0 or width <= 0 or rows % height or columns % width:
        raise ValueError(f"masks of {rows}x{columns} pixels do not divide into {height}x{width} tokens")
    blocks = masks.reshape(*leading, height, rows // height, width, columns // width)
    shares = blocks.mean((-3, -1), dtype=np.float32).reshape(*leading, height * width)
    best = shares.argmax(-1)[..., None]
    coverage = np.take_along_axis(shares, best, -1)
    raised = np.where(coverage > 0.0, np.maximum(coverage, np.float32(SMALLEST_COVERAGE)), np.float32(0.0))
    np.put_along_axis(shares, best, raised, -1)
    return shares.reshape(*leading, height, width)
