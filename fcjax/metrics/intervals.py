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
    return bootstrap_runs([groups], seed, resamples)


def bootstrap_runs(
    runs: Sequence[Sequence[Sequence[float]]], seed: int = 0, resamples: int = RESAMPLES, together: int = 1
) -> Figure | None:
    """The same of several runs (seeds of a training, for instance) on the same groups, group i of one that of another.

    Runs and groups are both drawn, each by itself: the interval shows what other runs and other groups would give.
    together: so many groups in a row depend on each other, too, and are one.
    ValueError for runs of different numbers of groups. None where there is no value at all.
    """
    if len({len(groups) for groups in runs}) > 1:
        raise ValueError(f"runs on the same groups are expected, got {[len(groups) for groups in runs]} of them")
    sums = np.array([[sum(group) for group in groups] for groups in runs], np.float64)
    counts = np.array([[len(group) for group in groups] for groups in runs], np.float64)
    if not counts.any():
        return None
    if not np.isfinite(sums).all():
        raise ValueError("an interval needs finite values; the figures hold an infinity or NaN")
    sums, counts = (np.add.reduceat(part, range(0, part.shape[1], together), axis=1) for part in (sums, counts))
    held = counts.any(axis=0)
    sums, counts = sums[:, held], counts[:, held]
    rng = np.random.default_rng(seed)
    drawn = rng.integers(sums.shape[1], size=(resamples, sums.shape[1]))
    chosen = rng.integers(len(runs), size=(resamples, len(runs)))
    totals, numbers = (
        np.take_along_axis(part[:, drawn].sum(axis=2).T, chosen, axis=1).sum(axis=1) for part in (sums, counts)
    )
    # All runs that were drawn may lack values of the groups that were drawn.
    low, high = np.percentile((totals / np.maximum(numbers, 1))[numbers > 0], (2.5, 97.5))
    return Figure(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()), sums.shape[1])
