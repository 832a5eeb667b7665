"""Albums of a person of Wardrobe, and what their pages have in common.

Identity compares faces between pages: palettes, and textures where both pages show the same place of the face;
garments' figures do so with every garment between pages of one outfit.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray

from fcjax.body import BodyMaps
from fcjax.metrics import (
    Target,
    is_plain,
    palette_distance,
    region_palette,
    score,
    texel_psnr,
)
from fcjax.metrics.scores import FACE
from fcjax.wardrobe import Sample, Wardrobe, WardrobeAsset
from infer.sets import palettes_of, worn_by

FIGURES = {
    "face_palette": "identity: palette distance of faces between pages",
    "face_texture": "identity: PSNR of faces between pages (dB)",
    "garment_palette": "garments: palette distance between pages",
    "garment_texture": "garments: PSNR between pages (dB)",
    "binding_accuracy": "binding accuracy",
    "palette_distance": "palette distance to the own asset",
    "silhouette_iou": "silhouette IoU",
    "matched": "share of the body's tokens that use page 1's",
}
FIDELITY = ("binding_accuracy", "palette_distance", "silhouette_iou")
"""Garments and pose."""


@dataclass(frozen=True, eq=False)
class PageSet:
    """What to compose on one page, and what it is held against."""

    prompt: str
    assets: tuple[WardrobeAsset, ...]
    maps: BodyMaps
    target: Target
    truth: UInt8[ndarray, "h w 3"]
    outfit: int
    """Pages of one number have the same garments."""


def album_set(wardrobe: Wardrobe, number: int, pages: int, changed: int = 0) -> list[PageSet]:
    """An album of a person of Wardrobe, the last `changed` pages in another outfit."""
    samples, made = wardrobe.pages(number, pages, changed), []
    for outfit, (start, end) in enumerate(((0, pages - changed), (pages - changed, pages))):
        for page in samples[start:end]:
            prompt, assets = _asked(samples[0], samples[start])
            kinds = tuple(asset.kind for asset in assets)
            target = Target(
                kinds,
                palettes_of(assets, kinds),
                _regions(assets, page),
                foreground=page.foreground if is_plain(page.backdrop) else None,
            )
            made.append(PageSet(prompt, assets, page.maps, target, page.image, outfit))
    return made


def _asked(first: Sample, worn: Sample) -> tuple[str, tuple[WardrobeAsset, ...]]:
    """Prompt and assets of all pages of an outfit: the first page's face, subject and background, what `worn` wears."""
    if worn is first:
        return first.caption, first.assets
    faces = tuple(asset for asset in first.assets if asset.kind == FACE)
    garments = tuple(asset for asset in worn.assets if asset.kind != FACE)
    prompt = f"{worn_by(first.subject, [asset.phrase for asset in garments])} {first.background}"
    return prompt, (*faces, *garments)


def _regions(assets: Sequence[WardrobeAsset], page: Sample) -> ndarray:
    """Where a page shows these assets; a garment that is no asset of this page is nowhere."""
    places = {asset.garment or asset.kind: place for place, asset in enumerate(assets, 1)}
    regions = np.zeros_like(page.regions)
    for number, asset in enumerate(page.assets, 1):
        place = places.get(asset.garment or asset.kind)
        if place is not None:
            regions[page.regions == number] = place
    return regions


# ---------------------------------------------------------------------------------------------------------------------
# Scoring


def score_album(pictures: Sequence[UInt8[ndarray, "h w 3"]], given: Sequence[PageSet]) -> dict[str, list[float]]:
    """Lists of values under the names of FIGURES: one for a pair of pages, or for a page or its garments."""
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for (one, first), (other, second) in itertools.combinations(zip(pictures, given, strict=True), 2):
        faces = first.maps.face_mask, second.maps.face_mask
        _note(found["face_palette"], _distance(one, faces[0], other, faces[1]))
        _note(found["face_texture"], _texture(one, first, faces[0], other, second, faces[1]))
        if first.outfit == second.outfit:
            for place, kind in enumerate(first.target.kinds, 1):
                if kind != FACE:
                    worn = first.target.regions == place, second.target.regions == place
                    _note(found["garment_palette"], _distance(one, worn[0], other, worn[1]))
                    _note(found["garment_texture"], _texture(one, first, worn[0], other, second, worn[1]))
    for picture, page in zip(pictures, given, strict=True):
        figures = score(picture, page.target).figures
        for name in FIDELITY:
            found[name] += figures.get(name, [])
    return {name: values for name, values in found.items() if values}


def _texture(
    one: ndarray,
    first: PageSet,
    region: Bool[ndarray, "h w"],
    other: ndarray,
    second: PageSet,
    region2: Bool[ndarray, "h w"],
) -> float | None:
    """PSNR over the places of the body that both regions show."""
    maps = [
        np.where(shown[..., None], page.maps.iuv, np.uint8(0)) for page, shown in ((first, region), (second, region2))
    ]
    return texel_psnr(one, maps[0], other, maps[1])


def _distance(
    one: ndarray, region: Bool[ndarray, "h w"], other: ndarray, region2: Bool[ndarray, "h w"]
) -> float | None:
    first, second = region_palette(one, region), region_palette(other, region2)
    return None if first is None or second is None else palette_distance(first, second)


def _note(values: list[float], value: float | None) -> None:
    # Equal pictures have an infinite PSNR, of which there is no mean.
    if value is not None:
        values.append(min(value, 100.0))
