"""The sets that `infer.evaluate` composes: assets with their prompt and pose, and what the picture is held against."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fcjax.assets import Asset, Box, Placeable
from fcjax.body import Body, BodyMaps
from fcjax.data.captioner import listed
from fcjax.metrics import Palette, Target, asset_palette, face_palette, is_plain, palette_distance
from fcjax.metrics.scores import FACE
from fcjax.person import Person
from fcjax.wardrobe import POSES_PER_OUTFIT, Alike, Wardrobe
from fcjax.wardrobe.alike import TOGETHER

LEAST_CONTRAST = 8.0
"""Two swatches whose palettes are less far apart do not serve the swap test: their exchange could not be told."""
SCAN_SIZE = (64, 48)


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """One picture to compose."""

    prompt: str
    assets: tuple[Placeable, ...]
    maps: BodyMaps
    target: Target
    pose: str
    boxes: tuple[Box, ...] | None = None
    """Where the assets stand on their canvas, if that is given."""
    person: Person | None = None
    """Whom a try-on model dresses."""
    seed: int | None = None
    """Of its picture, if the set has one of its own."""
    group: int | None = None
    """Sets of one number show one person, and their figures depend on each other; None: no other set does."""
    samples: Mapping[str, Any] = field(default_factory=dict)
    """Of a data set: which sample is the person, and whose the garments are, for JSON."""

    @property
    def swatches(self) -> tuple[int, int] | None:
        """Two swatches of this set that look different, for the swap test; such captions name no colours of assets."""
        found = [index for index, kind in enumerate(self.target.kinds) if kind == "swatch"]
        if len(found) != 2:
            return None
        first, second = (self.target.palettes[index] for index in found)
        return (found[0], found[1]) if palette_distance(first, second) >= LEAST_CONTRAST else None

    def exchanged(self, pair: tuple[int, int]) -> tuple[Asset, ...]:
        """The assets with two phrases exchanged: pictures, their order and so their places on the canvas stay."""
        phrases = [asset.phrase for asset in self.assets]
        first, second = pair
        phrases[first], phrases[second] = phrases[second], phrases[first]
        return tuple(Asset(asset.image, phrase) for asset, phrase in zip(self.assets, phrases, strict=True))


def worn_by(subject: str, phrases: Sequence[str]) -> str:
    """A prompt: the subject in what the phrases say."""
    return f"{subject} wearing {listed(phrases)}"


def palettes_of(assets: Sequence[Placeable], kinds: Sequence[str]) -> tuple[Palette, ...]:
    """The assets' own palettes, of faces that of their middle."""
    return tuple(
        face_palette(asset.image) if kind == FACE else asset_palette(asset.image)
        for asset, kind in zip(assets, kinds, strict=True)
    )


class WardrobeSets:
    """Sets of Wardrobe: `sets[index]`, the same for the same seed, split and size.

    split: of Wardrobe, or "alike", held-out sets of garments that binding alone tells apart (`wardrobe.Alike`).
    """

    def __init__(self, split: str, seed: int, height: int, width: int):
        self.split = split
        self.wardrobe = self._drawn(height, width, seed)
        self.together = TOGETHER if split == "alike" else POSES_PER_OUTFIT[self.wardrobe.split]

    def _drawn(self, height: int, width: int, seed: int) -> Wardrobe:
        return (
            Alike("heldout", seed, height, width)
            if self.split == "alike"
            else Wardrobe(self.split, seed, height, width)
        )

    def __getitem__(self, index: int) -> EvaluationSet:
        sample = self.wardrobe[index]
        kinds = tuple(asset.kind for asset in sample.assets)
        target = Target(
            kinds=kinds,
            palettes=palettes_of(sample.assets, kinds),
            regions=sample.regions,
            patterns=tuple(asset.pattern for asset in sample.assets),
            truth=sample.image,
            iuv=sample.maps.iuv,
            foreground=sample.foreground if is_plain(sample.backdrop) else None,
        )
        group = index // self.together
        return EvaluationSet(sample.caption, sample.assets, sample.maps, target, sample.pose, group=group)

    @functools.cached_property
    def _small(self) -> Wardrobe:
        return self._drawn(*SCAN_SIZE, self.wardrobe.seed)

    def may_have_swatches(self, index: int) -> bool:
        """A quick look at a small picture of the set: whether it holds two swatches."""
        return [asset.kind for asset in self._small[index].assets].count("swatch") == 2


# ---------------------------------------------------------------------------------------------------------------------
# Garments that another hand drew

COLORS = {
    "red": (205, 38, 44),
    "blue": (38, 84, 190),
    "green": (40, 140, 70),
    "yellow": (240, 200, 40),
    "purple": (120, 60, 150),
    "orange": (240, 130, 30),
    "pink": (240, 150, 180),
    "black": (28, 28, 32),
    "grey": (130, 132, 136),
    "brown": (110, 70, 42),
}
POSES = ("standing", "walking", "hands on hips", "waving")
TORSO, UPPER_ARMS, LEGS = (1, 2), (15, 16, 17, 18), (7, 8, 9, 10, 11, 12, 13, 14)
"""DensePose's parts."""
_LINE, _SCALE = 2, 4

# Outlines in a unit square, x to the right, y downwards; the left half is mirrored.
_T_SHIRT = ((0.50, 0.10), (0.42, 0.08), (0.36, 0.03), (0.26, 0.06), (0.16, 0.12), (0.01, 0.36), (0.14, 0.45),
            (0.24, 0.33), (0.25, 0.60), (0.23, 0.97), (0.50, 0.98))  # fmt: skip
_TROUSERS = ((0.50, 0.02), (0.31, 0.02), (0.26, 0.25), (0.25, 0.60), (0.27, 0.98), (0.43, 0.98), (0.47, 0.60),
             (0.50, 0.32))  # fmt: skip


class DrawnSets:
    """Flat-coloured t-shirts and trousers, drawn as polygons on white, unlike anything that Wardrobe draws.

    Regions are body parts: trunk and upper arms for the t-shirt, legs for the trousers. Every second prompt names no
    colours.
    """

    def __init__(self, seed: int, height: int, width: int):
        self.seed, self.height, self.width = seed, height, width

    def __getitem__(self, index: int) -> EvaluationSet:
        rng = np.random.default_rng([self.seed, index])
        above, below = rng.choice(list(COLORS), 2, replace=False)
        pose = POSES[index % len(POSES)]
        phrases = (f"a {above} t-shirt", f"{below} trousers") if index % 2 == 0 else ("a t-shirt", "trousers")
        person = str(rng.choice(("woman", "man")))
        pictures = (_draw(_T_SHIRT, COLORS[above], 200, 200), _draw(_TROUSERS, COLORS[below], 260, 200))
        assets = tuple(Asset.from_image(picture, phrase) for picture, phrase in zip(pictures, phrases, strict=True))
        maps = Body(pose=pose, gender=float(person == "man")).render(self.height, self.width)
        regions = np.zeros(maps.part.shape, np.int8)
        regions[np.isin(maps.part, (*TORSO, *UPPER_ARMS))] = 1
        regions[np.isin(maps.part, LEGS)] = 2
        target = Target(("top", "trousers"), tuple(asset_palette(asset.image) for asset in assets), regions)
        prompt = f"a {person} wearing {phrases[0]} and {phrases[1]} on a plain grey background"
        return EvaluationSet(prompt, assets, maps, target, pose)

    def may_have_swatches(self, index: int) -> bool:
        """Never: these are garments."""
        return False


def _draw(
    outline: tuple[tuple[float, float], ...], color: tuple[int, int, int], height: int, width: int
) -> Image.Image:
    """One garment in a flat colour with a darker outline, on white."""
    size = (width * _SCALE, height * _SCALE)
    image = Image.new("RGB", size, "white")
    # A margin of a twentieth on every side.
    half = [((0.05 + 0.9 * x) * size[0], (0.05 + 0.9 * y) * size[1]) for x, y in outline]
    points = [*half, *((size[0] - x, y) for x, y in reversed(half))]
    draw = ImageDraw.Draw(image)
    draw.polygon(points, fill=color)
    dark = tuple(round(0.6 * channel) for channel in color)
    draw.line([*points, points[0]], fill=dark, width=_LINE * _SCALE, joint="curve")
    return image.resize((width, height), Image.Resampling.BOX)
