"""What a person wears, cut out by the parse map, and the face: assets where a data set has no pictures of them."""

from collections.abc import Container, Iterable, Mapping

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray

from fcjax.data.sources.sample import Part, RawAsset

WORN: Mapping[str, tuple[Part, ...]] = {
    "top": (Part.UPPER,),
    "coat": (Part.COAT,),
    "dress": (Part.DRESS,),
    "jumpsuit": (Part.JUMPSUIT,),
    "pants": (Part.PANTS,),
    "skirt": (Part.SKIRT,),
    "shoes": (Part.LEFT_SHOE, Part.RIGHT_SHOE),
    "bag": (Part.BAG,),
    "hat": (Part.HAT,),
    "scarf": (Part.SCARF,),
}
LEAST = 0.002
"""The share of the picture below which a thing is too small to be an asset."""
_ROUND_FACE = (0.6, 0.15, 0.35)  # above, below and beside it, as shares of its height and width: hair belongs to a face
_MARGIN = 4


def worn_assets(
    image: UInt8[ndarray, "h w 3"], parse: UInt8[ndarray, "h w"], shown: Container[str] = ()
) -> list[RawAsset]:
    """What is worn and large enough, cut out, and the face last; kinds in `shown` have pictures already."""
    found = []
    for kind, parts in WORN.items():
        region = region_of(parse, parts)
        if kind not in shown and region.mean() >= LEAST:
            found.append(RawAsset(cut(image, region), kind, region=region))
    face = None if "face" in shown else face_asset(image, parse)
    return found if face is None else [*found, face]


def region_of(parse: UInt8[ndarray, "h w"], parts: Iterable[Part]) -> Bool[ndarray, "h w"]:
    """Where the parts are."""
    return np.isin(parse, list(parts))


def cut(image: UInt8[ndarray, "h w 3"], region: Bool[ndarray, "h w"]) -> UInt8[ndarray, "h2 w2 4"]:
    """The region of a picture, transparent around it."""
    box = _box(region, _MARGIN)
    alpha = np.where(region[box], np.uint8(255), np.uint8(0))
    return np.dstack([image[box], alpha])


def face_asset(image: UInt8[ndarray, "h w 3"], parse: UInt8[ndarray, "h w"]) -> RawAsset | None:
    """The face with the hair around it, edge to edge; None where it is too small or not seen."""
    face = parse == Part.FACE
    if face.mean() < LEAST:
        return None
    (top, bottom), (left, right) = ((int(n.min()), int(n.max()) + 1) for n in np.nonzero(face))
    above, below, beside = _ROUND_FACE
    height, width = bottom - top, right - left
    box = np.s_[
        max(0, top - round(above * height)) : bottom + round(below * height),
        max(0, left - round(beside * width)) : right + round(beside * width),
    ]
    region = np.zeros_like(face)
    region[box] = region_of(parse[box], (Part.FACE, Part.HAIR, Part.SUNGLASSES))
    return RawAsset(image[box], "face", region=region)


def _box(region: Bool[ndarray, "h w"], margin: int) -> tuple[slice, slice]:
    rows, columns = np.nonzero(region)
    return (
        slice(max(0, int(rows.min()) - margin), int(rows.max()) + 1 + margin),
        slice(max(0, int(columns.min()) - margin), int(columns.max()) + 1 + margin),
    )
