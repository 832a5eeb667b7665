"""What every data set's samples become: pictures, maps with one set of labels, keypoints of one kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from numpy import ndarray

Labels = Literal["viton-hd", "lip", "atr", "deepfashion"]


class SampleError(ValueError):
    """A sample that cannot be used, and why."""


class Part(IntEnum):
    """Labels of our parse maps; the first twenty are VITON-HD's. Left and right are the person's own."""

    BACKGROUND = 0
    HAT = 1
    HAIR = 2
    GLOVE = 3
    SUNGLASSES = 4
    UPPER = 5
    DRESS = 6
    COAT = 7
    SOCKS = 8
    PANTS = 9
    NECK = 10
    SCARF = 11
    SKIRT = 12
    FACE = 13
    LEFT_ARM = 14
    RIGHT_ARM = 15
    LEFT_LEG = 16
    RIGHT_LEG = 17
    LEFT_SHOE = 18
    RIGHT_SHOE = 19
    BELT = 20
    BAG = 21
    JUMPSUIT = 22
    SKIN = 23  # bare, of what part is not known
    ACCESSORY = 24


_P = Part
LABELS: Mapping[str, tuple[Part, ...]] = {
    "viton-hd": tuple(Part)[:20],
    # As SCHP's model of that data set writes it.
    "lip": (*tuple(Part)[:10], _P.JUMPSUIT, *tuple(Part)[11:20]),
    # 18 is what some tools write for the neck.
    "atr": (
        _P.BACKGROUND, _P.HAT, _P.HAIR, _P.SUNGLASSES, _P.UPPER, _P.SKIRT, _P.PANTS, _P.DRESS, _P.BELT, _P.LEFT_SHOE,
        _P.RIGHT_SHOE, _P.FACE, _P.LEFT_LEG, _P.RIGHT_LEG, _P.LEFT_ARM, _P.RIGHT_ARM, _P.BAG, _P.SCARF, _P.NECK,
    ),
    "deepfashion": (
        _P.BACKGROUND, _P.UPPER, _P.COAT, _P.SKIRT, _P.DRESS, _P.PANTS, _P.PANTS, _P.HAT, _P.SUNGLASSES, _P.SCARF,
        _P.BELT, _P.LEFT_SHOE, _P.BAG, _P.HAIR, _P.FACE, _P.SKIN, _P.ACCESSORY, _P.ACCESSORY, _P.SOCKS, _P.GLOVE,
        _P.ACCESSORY, _P.JUMPSUIT, _P.ACCESSORY, _P.ACCESSORY,
    ),
}  # fmt: skip
"""Our part for every label of a data set's parse maps."""


def to_parts(labels: Integer[ndarray, "h w"], kind: str) -> UInt8[ndarray, "h w"]:
    """A data set's parse map with our labels. ValueError for numbers that the set does not have."""
    if kind not in LABELS:
        raise ValueError(f"labels are {kind!r}; expected one of {', '.join(LABELS)}")
    table = np.array(LABELS[kind], np.uint8)
    if labels.ndim != 2 or not labels.size or labels.min() < 0 or labels.max() >= len(table):
        seen = f" with {labels.min()} to {labels.max()}" if labels.size else ""
        raise ValueError(
            f"a parse map of {kind} is (height, width) with labels 0 to {len(table) - 1}; got {labels.shape}{seen}"
        )
    return table[labels]


@dataclass(frozen=True, eq=False)
class RawAsset:
    """A garment or a face, as the data set shows it.

    picture: uint8 (h, w, 3 or 4) on white or cut out. phrase: None where the data set has no words for it; color,
    adjectives and noun are what it tells nevertheless. region: where the person wears it, None where that is not known.
    """

    picture: UInt8[ndarray, "h w c"]
    kind: str
    phrase: str | None = None
    region: Bool[ndarray, "h w"] | None = None
    color: str | None = None
    adjectives: tuple[str, ...] = ()
    noun: str | None = None


@dataclass(frozen=True, eq=False)
class RawSample:
    """One person with assets; maps have the picture's size, None where the set has none.

    parse: `Part` numbers. parts: as iuv with u and v 0, where the set tells no more of the body; enough for masks.
    keypoints: OpenPose's 18 as (x, y, confidence) in pixels. person: what to call them.
    """

    image: UInt8[ndarray, "h w 3"]
    assets: tuple[RawAsset, ...]
    caption: str | None = None
    iuv: UInt8[ndarray, "h w 3"] | None = None
    parts: UInt8[ndarray, "h w 3"] | None = None
    parse: UInt8[ndarray, "h w"] | None = None
    keypoints: Float[ndarray, "18 3"] | None = None
    person: str = "person"
