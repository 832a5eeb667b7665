"""Means with bootstrap intervals, for values that come in groups (several garments of one set)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Figure(NamedTuple):
    """A mean, its 95 % interval, and how many values and groups it rests on."""

    mean: float
    low: float
    high: float
    count: int
    groups: int


def bootstrap(groups: Sequence[Sequence[float]], seed: int = 0, resamples: int = RESAMPLES) -> Figure | None:
    """The mean over all values and its percentile interval; whole groups are drawn, because their values depend.

    None where there is no value at all.
    """
    sums = np.array([sum(group) for group in groups if len(group)], np.float64)
    counts = np.array([len(group) for group in groups if len(group)], np.float64)
    if not len(sums):
        return None
    if not np.isfinite(sums).all():
        raise ValueError("an interval needs finite values; the figures hold an infinity or NaN")
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Figure(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()), len(sums))
