"""How far two sets of pictures are apart, by the features of any network: Fréchet and kernel distances.

Features are (n, d), one row a picture. FID and KID are these distances of Inception-v3's features; which resize and
which weights made the features is their maker's matter and belongs beside every number.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

SUBSETS, SUBSET_SIZE = 100, 1000
BLOCK = 1024
"""So many pictures a side are compared at once, which bounds the memory."""


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
    """The unbiased estimate over all pictures, and mean and standard deviation over random subsets (None: too few).

    Where every subset is all pictures of both sets, that estimate and 0.
    """

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
    size, rng = min(subset_size, len(a), len(b)), np.random.default_rng(seed)
    whole = size == len(a) == len(b)
    # Columns say who counts: in the first all, in each other one a subset.
    drawn = 0 if size < 2 or whole else subsets
    chosen = [np.ones((len(part), 1 + drawn)) for part in (a, b)]
    for column in range(1, 1 + drawn):
        for counts in chosen:
            counts[:, column] = 0
            counts[rng.choice(len(counts), size, replace=False), column] = 1
    exact, *others = _discrepancies(a, b, *chosen)
    if size < 2 or subsets < 1:
        return KernelDistance(exact, None, None)
    others = others or [exact]
    return KernelDistance(exact, float(np.mean(others)), float(np.std(others)))


def _discrepancies(
    a: Float[ndarray, "n d"], b: Float[ndarray, "m d"], of_a: Float[ndarray, "n s"], of_b: Float[ndarray, "m s"]
) -> list[float]:
    """The U-statistics of those who count: a picture is not compared with itself."""
    n, m = of_a.sum(axis=0), of_b.sum(axis=0)
    own_a, own_b = (
        _kernel_sums(part, part, counts, counts) - _cubed((part * part).sum(axis=1), part) @ counts
        for part, counts in ((a, of_a), (b, of_b))
    )
    return (own_a / (n * (n - 1)) + own_b / (m * (m - 1)) - 2 * _kernel_sums(a, b, of_a, of_b) / (n * m)).tolist()


def _kernel_sums(
    a: Float[ndarray, "n d"], b: Float[ndarray, "m d"], of_a: Float[ndarray, "n s"], of_b: Float[ndarray, "m s"]
) -> Float[ndarray, "s"]:
    """Over all pairs of which both count, a block of them at a time."""
    total = np.zeros(of_a.shape[1])
    for row in range(0, len(a), BLOCK):
        for column in range(0, len(b), BLOCK):
            rows, columns = slice(row, row + BLOCK), slice(column, column + BLOCK)
            total += ((_cubed(a[rows] @ b[columns].T, a) @ of_b[columns]) * of_a[rows]).sum(axis=0)
    return total


def _cubed(products: Float[ndarray, "..."], features: Float[ndarray, "n d"]) -> Float[ndarray, "..."]:
    kernel = products / features.shape[1] + 1
    return kernel * kernel * kernel


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
