"""Data sets as their makers lay them out, read as samples of one kind."""

from fcjax.data.sources.sample import LABELS, Labels, Part, RawAsset, RawSample, SampleError, to_parts

__all__ = ["LABELS", "Labels", "Part", "RawAsset", "RawSample", "SampleError", "to_parts"]
