"""Prepared pictures changed at random before they are trained on: mirrored, cropped, with assets left out.

A sample is what `fcjax.data.Prepared` gives of a set of pictures: `image`, `iuv`, `foreground` and, where the set has
them, `origins`, `agnostic` and `mask` of the person; whose `charts` the IUV follows; `canvas0`, `owners0` and so on of
the assets; `caption`, `phrases`, `kinds`, `placed`. Functions return a new sample and leave the given one as it is.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fcjax.agnostic import agnostic_image
from fcjax.body import Charts, flip_iuv
from fcjax.body.densepose_mat import DensePoseCharts

Sample = dict[str, Any]

# Of the person, brought back to size after a crop by their nearest pixels: labels and places must not be averaged.
_LABELLED = ("iuv", "foreground", "regions", "origins", "mask")
_SIDES = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Augmentation:
    """Shares in [0, 1]: of the samples that are mirrored, and of the assets that are left out.

    crop: a crop keeps at least 1 - crop of height and width, the same of both.
    drop_asset: of garments and the like; drop_face: of faces. What is left out stays in the caption, so that a model
      learns to make up what it is not shown.
    """

    flip: float = 0.0
    crop: float = 0.0
    drop_asset: float = 0.0
    drop_face: float = 0.0
    symmetry: Path | None = None
    """DensePose's UV_symmetry_transforms.mat, by which body maps of its own charts are mirrored: those of all sets but
    Wardrobe's. Needs scipy."""

    def __post_init__(self):
        for name in ("flip", "crop", "drop_asset", "drop_face"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share: it must lie in [0, 1], got {getattr(self, name)}")
        if self.crop > 0.9:
            raise ValueError(f"a crop must keep a tenth at least: crop is at most 0.9, got {self.crop}")

    def __call__(self, sample: Sample, rng: np.random.Generator, densepose: Charts | None = None) -> Sample:
        """A sample changed by the next numbers of `rng`. `densepose`: as `mirrored` takes it."""
        if rng.random() < self.flip:
            sample = mirrored(sample, densepose)
        if self.crop:
            height, width = sample["image"].shape[:2]
            kept = 1 - self.crop * rng.random()
            rows, columns = max(1, round(kept * height)), max(1, round(kept * width))
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            sample = cropped(sample, int(top), int(left), rows, columns)
        chances = [self.drop_face if kind == "face" else self.drop_asset for kind in sample["kinds"]]
        return without_assets(sample, np.flatnonzero(rng.random(len(chances)) < chances))


AS_THEY_ARE = Augmentation()


def mirrored(sample: Sample, densepose: Charts | None = None) -> Sample:
    """The sample seen in a mirror: body charts exchanged and mirrored inside, the words left and right exchanged.

    densepose: what mirrors maps of DensePose's own charts (`fcjax.body.load_densepose_symmetry`). ValueError for a
    sample with such a map where it is not given.
    """
    flipped = {name: array[:, ::-1] for name, array in sample.items() if isinstance(array, np.ndarray)}
    if "iuv" in sample:
        charts = None if sample["charts"] == "own" else densepose or DensePoseCharts()
        flipped["iuv"] = flip_iuv(sample["iuv"], charts)
    changed: Sample = {
        **sample,
        **flipped,
        "caption": swap_sides(sample["caption"]),
        "phrases": [swap_sides(phrase) for phrase in sample["phrases"]],
    }
    if "origins" in sample:
        changed["origins"] = _mirrored_origins(flipped["origins"])
        # x' = 1 - x both on an asset's picture and on its canvas.
        changed["placed"] = [[[a, 1 - a - b, c, d] for a, b, c, d in layout] for layout in sample["placed"]]
    return changed


def _mirrored_origins(origins: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    shown = origins[..., 0] > 0
    return np.stack([origins[..., 0], np.where(shown, 255 - origins[..., 1], 0), origins[..., 2]], axis=-1)


def swap_sides(text: str) -> str:
    """The words left and right exchanged, a capital kept."""

    def other(match: re.Match[str]) -> str:
        word = match.group()
        swapped = _SIDES[word.lower()]
        return swapped.capitalize() if word[0].isupper() else swapped

    return re.sub(r"\b(left|right)\b", other, text, flags=re.IGNORECASE)


def cropped(sample: Sample, top: int, left: int, rows: int, columns: int) -> Sample:
    """That window of the person, brought back to the picture's size. The assets stay as they are."""
    changed = dict(sample)
    for name in ("image", *_LABELLED):
        if name in sample:
            picture = sample[name]
            window = Image.fromarray(picture[top : top + rows, left : left + columns])
            how = Image.Resampling.BICUBIC if name == "image" else Image.Resampling.NEAREST
            changed[name] = np.asarray(window.resize(picture.shape[1::-1], how))
    if "agnostic" in sample:
        # Not itself resized, which would mix what the mask hides with what it shows.
        changed["agnostic"] = agnostic_image(changed["image"], changed["mask"] > 0)
    return changed


def without_assets(sample: Sample, numbers: Iterable[int]) -> Sample:
    """The assets of these places in `kinds` are white on every canvas and own nothing of it."""
    owners = [1 + int(number) for number in numbers]
    if not owners:
        return sample
    changed = dict(sample)
    for layout in range(sample["layouts"]):
        gone = np.isin(sample[f"owners{layout}"], owners)
        changed[f"canvas{layout}"] = np.where(gone[..., None], np.uint8(255), sample[f"canvas{layout}"])
        changed[f"owners{layout}"] = np.where(gone, np.uint8(0), sample[f"owners{layout}"])
    if "origins" in sample:
        gone = np.isin(sample["origins"][..., :1], owners)
        changed["origins"] = np.where(gone, np.uint8(0), sample["origins"])
    return changed
