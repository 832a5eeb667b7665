"""Figures that need no pretrained network, in NumPy: colours, palettes, textures, silhouettes, SSIM and intervals."""

from fcjax.metrics.color import ciede2000, lab
from fcjax.metrics.distributions import KernelDistance, frechet_distance, kernel_distance
from fcjax.metrics.intervals import Figure, bootstrap, bootstrap_runs
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
from fcjax.metrics.ssim import grey, ssim, ssim_map, ssim_outside
from fcjax.metrics.texels import part_iou, psnr_outside, texel_psnr, texel_ssim, unwrap

__all__ = [
    "FIGURES",
    "Figure",
    "KernelDistance",
    "Palette",
    "Scores",
    "Target",
    "asset_palette",
    "bootstrap",
    "bootstrap_runs",
    "box_resize",
    "ciede2000",
    "extract_palette",
    "face_palette",
    "face_scores",
    "frechet_distance",
    "grey",
    "iou",
    "is_plain",
    "kernel_distance",
    "lab",
    "nearest_palette",
    "palette_distance",
    "part_iou",
    "places_exchanged",
    "psnr",
    "psnr_outside",
    "region_palette",
    "score",
    "silhouette",
    "ssim",
    "ssim_map",
    "ssim_outside",
    "texel_psnr",
    "texel_ssim",
    "texture_correlation",
    "unwrap",
]
