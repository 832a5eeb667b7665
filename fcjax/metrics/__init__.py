"""Figures that need no pretrained network, in NumPy: colours, palettes, textures, silhouettes, PSNR and intervals."""

from fcjax.metrics.color import ciede2000, lab
from fcjax.metrics.intervals import Figure, bootstrap
from fcjax.metrics.palette import (
    Palette,
    asset_palette,
    extract_palette,
    nearest_palette,
    palette_distance,
    region_palette,
)
from fcjax.metrics.pictures import box_resize, psnr, texture_correlation
from fcjax.metrics.silhouette import iou, is_plain, silhouette

__all__ = [
    "Figure",
    "Palette",
    "asset_palette",
    "bootstrap",
    "box_resize",
    "ciede2000",
    "extract_palette",
    "iou",
    "is_plain",
    "lab",
    "nearest_palette",
    "palette_distance",
    "psnr",
    "region_palette",
    "silhouette",
    "texture_correlation",
]
