"""Figures that need no pretrained network, in NumPy: colours, palettes, textures, silhouettes, PSNR and intervals."""

from fcjax.metrics.color import ciede2000, lab
from fcjax.metrics.intervals import Figure, bootstrap
from fcjax.metrics.palette import (
    Palette,
    asset_palette,
    extract_palette,
    face_palette,
    nearest_palette,
    palette_distance,
    region_palette,
)
from fcjax.metrics.pictures import box_resize, psnr, texture_correlation
from fcjax.metrics.scores import FIGURES, Scores, Target, face_scores, places_exchanged, score
from fcjax.metrics.silhouette import iou, is_plain, silhouette

__all__ = [
    "FIGURES",
    "Figure",
    "Palette",
    "Scores",
    "Target",
    "asset_palette",
    "bootstrap",
    "box_resize",
    "ciede2000",
    "extract_palette",
    "face_palette",
    "face_scores",
    "iou",
    "is_plain",
    "lab",
    "nearest_palette",
    "palette_distance",
    "places_exchanged",
    "psnr",
    "region_palette",
    "score",
    "silhouette",
    "texture_correlation",
]
