"""Wardrobe's people without some of what they wear, for try-on: what is taken off, and where they are repainted."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from fcjax.agnostic import CATEGORIES, Category, agnostic_mask
from fcjax.data.sources.sample import Part
from fcjax.wardrobe.samples import Sample

# Parts of a bare body by DensePose's charts.
_BARE = np.zeros(25, np.uint8)
for _charts, _part in (
    ((1, 2), Part.SKIN), ((4, 15, 17, 19, 21), Part.LEFT_ARM), ((3, 16, 18, 20, 22), Part.RIGHT_ARM),
    ((5, 8, 10, 12, 14), Part.LEFT_LEG), ((6, 7, 9, 11, 13), Part.RIGHT_LEG), ((23, 24), Part.FACE),
):  # fmt: skip
    _BARE[list(_charts)] = _part
_WORN = {
    "upper": Part.UPPER,
    "lower": Part.PANTS,
    "dress": Part.DRESS,
    "shoes": Part.LEFT_SHOE,
    "hat": Part.HAT,
    "bag": Part.BAG,
}


def take_off(sample: Sample, category: Category, parsed: bool = True) -> tuple[Sample, Bool[np.ndarray, "h w"]]:
    """The sample with those of its assets alone that try-on is to put on, and where the person is repainted for them.

    category: the garment that is taken off, or "outfit" for all of them with shoes and hat.
    parsed: the mask follows from a parse map and the body's, or else from the body's alone, as `infer.tryon --iuv`
      makes it. ValueError where the body's alone shows nothing of what is taken off.
    """
    kinds = worn_kinds(sample)
    wanted = (*CATEGORIES, "shoes", "hat") if category == "outfit" else (category,)
    chosen = [index for index, kind in enumerate(kinds) if kind in wanted]
    shown = [kinds[index] for index in chosen]
    parse = parse_of(sample, kinds) if parsed else None
    mask = agnostic_mask(parse, iuv=sample.maps.iuv, category=category, shoes="shoes" in shown, hat="hat" in shown)
    regions, origins = np.zeros_like(sample.regions), sample.origins
    for number, index in enumerate(chosen, 1):
        regions[sample.regions == index + 1] = number
    origins = np.where((regions > 0)[..., None], origins, np.float32(-1))
    assets = tuple(sample.assets[index] for index in chosen)
    return dataclasses.replace(sample, assets=assets, regions=regions, origins=origins), mask


def worn_kinds(sample: Sample) -> list[str]:
    """What each asset's garment covers, swatches' too: upper, lower or dress; or the asset's own kind."""
    return [_kind(sample, index) for index in range(len(sample.assets))]


def parse_of(sample: Sample, kinds: Sequence[str]) -> UInt8[np.ndarray, "h w"]:
    """A parse map: bare parts by the body's charts, hair above them, garments where their assets are seen.

    kinds: of the assets, as `worn_kinds` says them.
    """
    parts = _BARE[sample.maps.iuv[..., 0]]
    head = np.flatnonzero((parts == Part.FACE).any(axis=1))
    hair = sample.foreground & (parts == 0)
    hair[head[-1] + 1 if len(head) else 0 :] = False
    parts = np.where(hair, np.uint8(Part.HAIR), parts)
    for number, kind in enumerate(kinds, 1):
        if kind in _WORN:
            parts = np.where(sample.regions == number, np.uint8(_WORN[kind]), parts)
    return parts


def _kind(sample: Sample, index: int) -> str:
    kind = sample.assets[index].kind
    if kind in ("face", "shoes", "hat", "bag"):
        return kind
    charts = sample.maps.iuv[..., 0][sample.regions == index + 1]
    legs, rest = np.isin(charts, range(7, 15)).sum(), np.isin(charts, (1, 2, *range(15, 23))).sum()
    share = legs / max(legs + rest, 1)
    return "upper" if share < 0.25 else "lower" if share > 0.75 else "dress"
