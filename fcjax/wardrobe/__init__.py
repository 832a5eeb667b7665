"""Wardrobe: a synthetic set of dressed people, drawn by code from free data.

`Wardrobe("train", seed=0, height=256, width=192)[index]` gives a `Sample`: the picture, its assets (flat garments,
swatches, a face) with their phrases, the caption, body maps and the assets' regions.
"""

from fcjax.wardrobe.alike import Alike
from fcjax.wardrobe.captions import vocabulary
from fcjax.wardrobe.samples import EDITION, POSES_PER_OUTFIT, SPLITS, Sample, Wardrobe, WardrobeAsset

__all__ = ["EDITION", "POSES_PER_OUTFIT", "SPLITS", "Alike", "Sample", "Wardrobe", "WardrobeAsset", "vocabulary"]
