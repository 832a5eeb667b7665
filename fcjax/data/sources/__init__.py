"""Data sets as their makers lay them out, read as samples of one kind."""

from fcjax.data.sources.check import check, require_body_maps
from fcjax.data.sources.deepfashion import DeepFashion
from fcjax.data.sources.dresscode import DressCode
from fcjax.data.sources.folder import Folder
from fcjax.data.sources.sample import LABELS, Labels, Part, RawAsset, RawSample, SampleError, to_parts
from fcjax.data.sources.source import Source
from fcjax.data.sources.viton import VitonHD

__all__ = [
    "LABELS",
    "DeepFashion",
    "DressCode",
    "Folder",
    "Labels",
    "Part",
    "RawAsset",
    "RawSample",
    "SampleError",
    "Source",
    "VitonHD",
    "check",
    "require_body_maps",
    "to_parts",
]
