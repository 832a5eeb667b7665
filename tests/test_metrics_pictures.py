"""SSIM, distances of distributions and comparisons in UV space, against the packages that the field's scripts call."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from fcjax.body import Body
from fcjax.metrics import distributions
from fcjax.metrics.distributions import frechet_distance, kernel_distance
from fcjax.metrics.pictures import psnr
from fcjax.metrics.ssim import RADIUS, grey, ssim, ssim_map, ssim_outside
from fcjax.metrics.texels import part_iou, psnr_outside, texel_psnr, texel_ssim, unwrap


def pictures(height: int = 60, width: int = 47, noise: float = 25.0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture with edges, and the same with noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    first = np.stack([4 * rows, 5 * columns, 128 + 100 * ((rows // 8 + columns // 8) % 2)], axis=-1).clip(0, 255)
    return first.astype(np.uint8), (first + rng.normal(size=first.shape) * noise).clip(0, 255).astype(np.uint8)


def photographs() -> tuple[np.ndarray, np.ndarray]:
    """scikit-image's astronaut (public domain), and what JPEG leaves of her."""
    data = pytest.importorskip("skimage.data")
    first = np.asarray(Image.fromarray(data.astronaut()).resize((192, 256)))
    return first, np.asarray(Image.fromarray(first).quantize(12).convert("RGB"))


@pytest.mark.parametrize("pair", [pictures, photographs])
def test_ssim_and_psnr_equal_torchmetrics(pair):
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    first, second = pair()
    tensors = [torch.tensor(image / 255.0).permute(2, 0, 1)[None] for image in (first, second)]
    expected = torchmetrics.structural_similarity_index_measure(*tensors, data_range=1.0)
    assert ssim(first, second) == pytest.approx(float(expected), abs=1e-6)
    _, image = torchmetrics.structural_similarity_index_measure(*tensors, data_range=1.0, return_full_image=True)
    np.testing.assert_allclose(ssim_map(first, second), image[0].permute(1, 2, 0).numpy(), atol=1e-6)
    expected = torchmetrics.peak_signal_noise_ratio(*tensors, data_range=1.0)
    assert psnr(first, second) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("pair", [pictures, photographs])
def test_ssim_with_the_border_cropped_equals_torchmetrics_before(pair):
    """Before 1.4.2 it left out what now are the border's windows: its picture of all windows, cropped as it was."""
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    tensors = [torch.tensor(image / 255.0).permute(2, 0, 1)[None] for image in pair()]
    measure = torchmetrics.structural_similarity_index_measure
    _, image = measure(*tensors, data_range=1.0, return_full_image=True)
    cropped = image[..., RADIUS:-RADIUS, RADIUS:-RADIUS]
    assert ssim(*pair(), "crop") == pytest.approx(float(cropped.mean()), abs=1e-6)


@pytest.mark.parametrize("pair", [pictures, photographs])
def test_ssim_with_the_border_cropped_equals_scikit_image(pair):
    metrics = pytest.importorskip("skimage.metrics")
    first, second = pair()
    options = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = metrics.structural_similarity(first, second, channel_axis=2, **options)
    assert ssim(first, second, "crop") == pytest.approx(expected, abs=1e-6)
    # HR-VITON's script, in grey.
    a, b = (np.asarray(Image.fromarray(image).convert("L")) for image in (first, second))
    np.testing.assert_array_equal(grey(first), a)
    assert ssim(grey(first), grey(second), "crop") == pytest.approx(
        metrics.structural_similarity(a, b, **options), abs=1e-6
    )


def test_ssim_of_what_is_equal_and_of_what_does_not_fit():
    first, second = pictures()
    assert ssim(first, first) == pytest.approx(1) and 0 < ssim(first, second) < 1
    with pytest.raises(ValueError, match="pictures of one size"):
        ssim(first, second[:-1])
    with pytest.raises(ValueError, match="window is 11 pixels wide"):
        ssim(first[:10], second[:10])
    for broken in (first / 255.0, np.full(first.shape, np.nan)):
        with pytest.raises(ValueError, match="SSIM takes pictures uint8 of 0 to 255, got float64"):
            ssim(broken, broken)


def test_what_try_on_keeps():
    first, second = pictures()
    mask = np.zeros(first.shape[:2], bool)
    mask[10:30, 10:30] = True
    kept = np.where(mask[..., None], second, first)
    assert psnr_outside(first, kept, mask) == float("inf") and ssim_outside(first, kept, mask) == pytest.approx(1)
    inside = psnr_outside(first, kept, ~mask)
    assert inside is not None and inside == pytest.approx(psnr(first[mask], second[mask]))
    everything = np.ones_like(mask)
    assert psnr_outside(first, kept, everything) is None and ssim_outside(first, kept, everything) is None
    with pytest.raises(ValueError, match="do not fit"):
        psnr_outside(first, kept, mask[:-1])


# ---------------------------------------------------------------------------------------------------------------------
# Distributions


def features(count: int, seed: int, dimensions: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(dimensions, dimensions))
    return np.maximum(rng.normal(size=(count, dimensions)) @ mixing * 0.1 + 0.2 * (seed + 1), 0)


def test_frechet_distance_equals_the_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    first, second = features(400, 0), features(300, 1)
    covariances = [np.cov(part, rowvar=False) for part in (first, second)]
    difference = first.mean(axis=0) - second.mean(axis=0)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_equals_torchmetrics():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torchmetrics.image.fid")
    first, second = (torch.tensor(features(count, seed)) for count, seed in ((400, 0), (300, 1)))
    expected = theirs._compute_fid(first.mean(0), torch.cov(first.T), second.mean(0), torch.cov(second.T))
    assert frechet_distance(first.numpy(), second.numpy()) == pytest.approx(float(expected), rel=1e-6)


def test_fewer_pictures_than_dimensions_do_no_harm():
    first = features(20, 0)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(first, first + 3) == pytest.approx(9 * 64, rel=1e-9)
    # Twice as large: the covariances' roots differ by themselves.
    scatter = np.trace(np.cov(first, rowvar=False))
    moved = (first - first.mean(axis=0)) * 2 + first.mean(axis=0)
    assert frechet_distance(first, moved) == pytest.approx(scatter, rel=1e-8)


def test_kernel_distance_equals_its_definition_and_torchmetrics():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torchmetrics.image.kid")
    first, second = features(60, 0), features(40, 1)
    found = kernel_distance(first, second, subsets=5, subset_size=1000)
    # theirs takes sets of one size.
    equal = kernel_distance(first[:40], second, subsets=5)
    expected = theirs.poly_mmd(torch.tensor(first[:40]), torch.tensor(second))
    assert equal.exact == pytest.approx(float(expected), rel=1e-9)
    # Subsets as large as the sets are the sets.
    assert equal.mean == pytest.approx(equal.exact) and equal.deviation == pytest.approx(0, abs=1e-9)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (x @ y / 64 + 1) ** 3

    within = [
        np.mean([kernel(x, y) for i, x in enumerate(part) for j, y in enumerate(part) if i != j])
        for part in (first, second)
    ]
    across = np.mean([kernel(x, y) for x in first for y in second])
    assert found.exact == pytest.approx(sum(within) - 2 * across, rel=1e-9)


def test_subsets_repeat_with_their_seed():
    first, second = features(80, 0), features(80, 1)
    one, same, other = (kernel_distance(first, second, subsets=4, subset_size=20, seed=seed) for seed in (0, 0, 1))
    assert one == same and one.mean != other.mean and one.exact == other.exact
    assert one.mean == pytest.approx(one.exact, rel=0.3)


@pytest.mark.parametrize(("n", "m"), [(50, 37), (16, 40), (41, 41)])
def test_blocks_change_nothing(n: int, m: int, monkeypatch: pytest.MonkeyPatch):
    """Against whole kernels, of which the subsets are cut."""
    first, second = features(n, 0), features(m, 1)
    monkeypatch.setattr(distributions, "BLOCK", 16)
    found = kernel_distance(first, second, subsets=7, subset_size=20, seed=3)

    def discrepancy(rows: np.ndarray, columns: np.ndarray) -> float:
        [[aa, ab], [_, bb]] = [[(x @ y.T / 64 + 1) ** 3 for y in (first, second)] for x in (first, second)]
        own = (kernel[np.ix_(who, who)] for kernel, who in ((aa, rows), (bb, columns)))
        within = [(one.sum() - np.trace(one)) / (len(one) * (len(one) - 1)) for one in own]
        return sum(within) - 2 * ab[np.ix_(rows, columns)].mean()

    rng, size = np.random.default_rng(3), min(n, m, 20)
    drawn = [discrepancy(*(rng.choice(count, size, replace=False) for count in (n, m))) for _ in range(7)]
    assert found.exact == pytest.approx(discrepancy(np.arange(n), np.arange(m)), rel=1e-10)
    assert found.mean == pytest.approx(np.mean(drawn), rel=1e-10)
    assert found.deviation == pytest.approx(np.std(drawn), rel=1e-8)


def test_memory_is_bounded():
    first, second = features(3000, 0), features(3000, 1)
    tracemalloc.start()
    kernel_distance(first, second, subsets=1)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One whole kernel is 72 MB.
    assert held < 40e6


def test_sets_that_have_no_distance():
    good = features(5, 0)
    for bad, expected in (
        (good[:1], "needs two pictures a set, the second has 1"),
        (np.full((5, 64), np.nan), "hold NaN"),
        (good[:, :9], "features of 64 and 9 dimensions"),
        (good[0], "expected \\(pictures, dimensions\\)"),
    ):
        for distance in (frechet_distance, kernel_distance):
            with pytest.raises(ValueError, match=expected):
                distance(good, bad)


# ---------------------------------------------------------------------------------------------------------------------
# UV space


def painted(body: Body, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A body whose colours are a function of the place on it, and its map."""
    iuv = body.render(256, 192).iuv
    part, u, v = np.moveaxis(iuv.astype(float), -1, 0)
    colours = np.stack([u, v, part * 10], axis=-1) * (part > 0)[..., None] + shift
    return colours.clip(0, 255).astype(np.uint8), iuv


def test_one_texture_in_two_poses():
    standing, walking = painted(Body(pose="standing")), painted(Body(pose="walking", view=15))
    same, shifted = texel_psnr(*standing, *walking), texel_psnr(*standing, *painted(Body(pose="walking"), 40))
    assert same is not None and shifted is not None and same > 28 > 18 > shifted
    alike, unlike = texel_ssim(*standing, *walking), texel_ssim(*standing, 255 - standing[0], standing[1])
    assert alike is not None and unlike is not None and alike > 0.9 > 0 > unlike
    assert texel_psnr(*standing, *standing) == float("inf") and texel_ssim(*standing, *standing) == pytest.approx(1)


def test_texels_are_mean_colours_of_their_places():
    image, iuv = painted(Body())
    colours, seen = unwrap(image, iuv)
    chart, row, column = np.nonzero(seen)
    # u is red and grows along columns, v is green and grows along rows.
    np.testing.assert_allclose(colours[chart, row, column, 0], 16 * column + 7.5, atol=8)
    np.testing.assert_allclose(colours[chart, row, column, 1], 16 * row + 7.5, atol=8)
    np.testing.assert_allclose(colours[chart, row, column, 2], 10 * (chart + 1), atol=1)


def test_what_shows_nothing_in_common():
    front, back = painted(Body()), painted(Body(view=180))
    # A little of the torso's front is seen from behind, at its sides.
    back[1][back[1][..., 0] == 2] = 0
    assert texel_psnr(*front, *back, parts=(2,)) is None and texel_ssim(*front, *back, parts=(2,)) is None
    with pytest.raises(ValueError, match="its body map"):
        unwrap(front[0][:-1], front[1])


def test_iou_of_parts():
    first = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    second = np.array([[0, 1, 0], [2, 2, 3]], np.uint8)
    assert part_iou(first, second) == {1: 0.5, 2: 1.0, 3: 0.0}
    with pytest.raises(ValueError, match="do not fit"):
        part_iou(first, second[:1])
