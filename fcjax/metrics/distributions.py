"""How far two sets of pictures are apart, by the features of any network: Fréchet and kernel distances.

Features are (n, d), one row a picture. FID and KID are these distances of Inception-v3's features; which resize and
which weights made the features is their maker's matter and belongs beside every number.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

SUBSETS, SUBSET_SIZE = 100, 1000


def frechet_distance(first: Float[ndarray, "n d"], second: Float[ndarray, "m d"]) -> float:
    """|mean difference|² + tr(S1 + S2 - 2 (S1 S2)^½), with S the covariances (divided by n - 1), in float64.

    Heusel et al. 2017. No covariance is formed: with A and B the centred features over (n - 1)^½, tr (S1 S2)^½ is the
    nuclear norm of A Bᵀ, so that fewer pictures than dimensions do no harm. ValueError for one picture alone and for
    features that are not finite or of different widths.
    """
    a, b = _checked(first, second)
    difference = a.mean(axis=0) - b.mean(axis=0)
    a, b = ((part - part.mean(axis=0)) / np.sqrt(len(part) - 1) for part in (a, b))
    total = float((a * a).sum() + (b * b).sum())
    # The smaller of two equal products: the nuclear norm of A Bᵀ is that of R_a R_bᵀ of their triangular factors.
    a, b = (np.asarray(np.linalg.qr(part, mode="r")) if len(part) > part.shape[1] else part for part in (a, b))
    shared = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    return float(difference @ difference) + total - 2 * shared


class KernelDistance(NamedTuple):
    """The unbiased estimate over all pictures, and mean and standard deviation over random subsets (None: too few)."""

    exact: float
    mean: float | None
    deviation: float | None


def kernel_distance(
    first: Float[ndarray, "n d"],
    second: Float[ndarray, "m d"],
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> KernelDistance:
    """The squared maximum mean discrepancy under (x·y / d + 1)³: KID (Bińkowski et al. 2018), not times 1000.

    Subsets are drawn without replacement and alike for the same seed; as in other implementations they are of at most
    `subset_size` pictures. ValueError as `frechet_distance`.
    """
    a, b = _checked(first, second)
    within_a, within_b, across = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    exact = _discrepancy(within_a, within_b, across)
    size, rng = min(subset_size, len(a), len(b)), np.random.default_rng(seed)
    if size < 2 or subsets < 1:
        return KernelDistance(exact, None, None)
    drawn = []
    for _ in range(subsets):
        rows, columns = (rng.choice(len(part), size, replace=False) for part in (a, b))
        parts = within_a[np.ix_(rows, rows)], within_b[np.ix_(columns, columns)], across[np.ix_(rows, columns)]
        drawn.append(_discrepancy(*parts))
    return KernelDistance(exact, float(np.mean(drawn)), float(np.std(drawn)))


def _kernel(a: Float[ndarray, "n d"], b: Float[ndarray, "m d"]) -> Float[ndarray, "n m"]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _discrepancy(
    within_a: Float[ndarray, "n n"], within_b: Float[ndarray, "m m"], across: Float[ndarray, "n m"]
) -> float:
    """The U-statistic: a picture is not compared with itself."""
    n, m = across.shape
    own_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    own_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(own_a + own_b - 2 * across.mean())


def _checked(first: ndarray, second: ndarray) -> tuple[Float[ndarray, "n d"], Float[ndarray, "m d"]]:
    parts = []
    for name, features in (("first", first), ("second", second)):
        features = np.asarray(features, np.float64)
        if features.ndim != 2:
            raise ValueError(f"the {name} set's features have shape {features.shape}; expected (pictures, dimensions)")
        if len(features) < 2:
            raise ValueError(f"a distance of distributions needs two pictures a set, the {name} has {len(features)}")
        if not np.isfinite(features).all():
            raise ValueError(f"the {name} set's features hold NaN or infinite numbers")
        parts.append(features)
    if parts[0].shape[1] != parts[1].shape[1]:
        raise ValueError(f"features of {parts[0].shape[1]} and {parts[1].shape[1]} dimensions: two networks made them")
    return parts[0], parts[1]
