import numpy as np
import pytest

from fcjax.metrics import (
    Palette,
    asset_palette,
    bootstrap,
    bootstrap_runs,
    box_resize,
    ciede2000,
    extract_palette,
    iou,
    is_plain,
    lab,
    nearest_palette,
    palette_distance,
    psnr,
    region_palette,
    silhouette,
    texture_correlation,
)
from fcjax.metrics.palette import LEAST_PIXELS, transport_cost
from fcjax.wardrobe import Wardrobe

# Sharma, Wu, Dalal: The CIEDE2000 color-difference formula (2005), Table 1: L, a, b twice, and the difference.
SHARMA = np.array(
    [
        (50.0, 2.6772, -79.7751, 50.0, 0.0, -82.7485, 2.0425),
        (50.0, 3.1571, -77.2803, 50.0, 0.0, -82.7485, 2.8615),
        (50.0, 2.8361, -74.0200, 50.0, 0.0, -82.7485, 3.4412),
        (50.0, -1.3802, -84.2814, 50.0, 0.0, -82.7485, 1.0000),
        (50.0, -1.1848, -84.8006, 50.0, 0.0, -82.7485, 1.0000),
        (50.0, -0.9009, -85.5211, 50.0, 0.0, -82.7485, 1.0000),
        (50.0, 0.0, 0.0, 50.0, -1.0, 2.0, 2.3669),
        (50.0, -1.0, 2.0, 50.0, 0.0, 0.0, 2.3669),
        (50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0009, 7.1792),
        (50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0010, 7.1792),
        (50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0011, 7.2195),
        (50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0012, 7.2195),
        (50.0, -0.0010, 2.4900, 50.0, 0.0009, -2.4900, 4.8045),
        (50.0, -0.0010, 2.4900, 50.0, 0.0010, -2.4900, 4.8045),
        (50.0, -0.0010, 2.4900, 50.0, 0.0011, -2.4900, 4.7461),
        (50.0, 2.5, 0.0, 50.0, 0.0, -2.5, 4.3065),
        (50.0, 2.5, 0.0, 73.0, 25.0, -18.0, 27.1492),
        (50.0, 2.5, 0.0, 61.0, -5.0, 29.0, 22.8977),
        (50.0, 2.5, 0.0, 56.0, -27.0, -3.0, 31.9030),
        (50.0, 2.5, 0.0, 58.0, 24.0, 15.0, 19.4535),
        (50.0, 2.5, 0.0, 50.0, 3.1736, 0.5854, 1.0000),
        (50.0, 2.5, 0.0, 50.0, 3.2972, 0.0, 1.0000),
        (50.0, 2.5, 0.0, 50.0, 1.8634, 0.5757, 1.0000),
        (50.0, 2.5, 0.0, 50.0, 3.2592, 0.3350, 1.0000),
        (60.2574, -34.0099, 36.2677, 60.4626, -34.1751, 39.4387, 1.2644),
        (63.0109, -31.0961, -5.8663, 62.8187, -29.7946, -4.0864, 1.2630),
        (61.2901, 3.7196, -5.3901, 61.4292, 2.2480, -4.9620, 1.8731),
        (35.0831, -44.1164, 3.7933, 35.0232, -40.0716, 1.5901, 1.8645),
        (22.7233, 20.0904, -46.6940, 23.0331, 14.9730, -42.5619, 2.0373),
        (36.4612, 47.8580, 18.3852, 36.2715, 50.5065, 21.2231, 1.4146),
        (90.8027, -2.0831, 1.4410, 91.1528, -1.6435, 0.0447, 1.4441),
        (90.9257, -0.5406, -0.9208, 88.6381, -0.8985, -0.7239, 1.5381),
        (6.7747, -0.2908, -2.4247, 5.8714, -0.0985, -2.2286, 0.6377),
        (2.0776, 0.0795, -1.1350, 0.9033, -0.0636, -0.5514, 0.9082),
    ]
)

RED, BLUE, GREEN = (200, 30, 40), (30, 60, 190), (40, 150, 60)


@pytest.fixture(scope="module")
def samples():
    wardrobe = Wardrobe("heldout", seed=3, height=192, width=144)
    return [wardrobe[index] for index in range(8)]


def flat(color, count=400):
    return np.full((count, 3), color, np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Colours


def test_ciede2000_on_the_published_pairs():
    for first, second in ((SHARMA[:, :3], SHARMA[:, 3:6]), (SHARMA[:, 3:6], SHARMA[:, :3])):
        np.testing.assert_allclose(ciede2000(first, second), SHARMA[:, 6], atol=5.1e-5)


def test_ciede2000_broadcasts_and_halves_lightness_for_cloth():
    black, white = np.array([0.0, 0, 0]), np.array([100.0, 0, 0])
    assert ciede2000(black, white) == pytest.approx(100)
    assert ciede2000(black, white, lightness_scale=2) == pytest.approx(50)
    assert ciede2000(SHARMA[:5, None, :3], SHARMA[None, :7, :3]).shape == (5, 7)


def test_lab_of_known_colours():
    # The D65 values that every colour library gives for sRGB's corners.
    given = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255], [128, 128, 128]], np.uint8)
    known = [(100, 0, 0), (0, 0, 0), (53.24, 80.09, 67.20), (32.30, 79.19, -107.86), (53.59, 0, 0)]
    np.testing.assert_allclose(lab(given), known, atol=0.02)
    np.testing.assert_allclose(lab(given / 255.0), lab(given))


# ---------------------------------------------------------------------------------------------------------------------
# Palettes


def test_a_palette_finds_flat_colours_and_their_shares():
    pixels = np.concatenate([flat(RED, 600), flat(BLUE, 300), flat(GREEN, 100)])
    palette = extract_palette(pixels)
    np.testing.assert_allclose(palette.colors, lab(np.array([RED, BLUE, GREEN], np.uint8)), atol=1e-6)
    np.testing.assert_allclose(palette.shares, [0.6, 0.3, 0.1])
    shuffled = extract_palette(np.random.default_rng(0).permutation(pixels))
    np.testing.assert_allclose(shuffled.colors, palette.colors, atol=1e-6)


def test_a_palette_of_noise_has_its_size_and_order():
    pixels = np.random.default_rng(1).integers(0, 256, (9000, 3)).astype(np.uint8)
    palette = extract_palette(pixels, size=4)
    assert palette.colors.shape == (4, 3) and palette.shares.sum() == pytest.approx(1)
    assert (np.diff(palette.shares) <= 0).all()


def test_a_region_without_pixels_has_no_palette():
    image, region = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), bool)
    region[:3, :5] = True
    assert region_palette(image, region) is None
    with pytest.raises(ValueError, match=f"at least {LEAST_PIXELS} pixels, got 3"):
        extract_palette(flat(RED, 3))


def test_the_outermost_pixels_of_a_region_do_not_count():
    image, region = np.full((20, 20, 3), RED, np.uint8), np.zeros((20, 20), bool)
    region[4:16, 4:16] = True
    image[4:16, 4] = image[4, 4:16] = GREEN
    palette = region_palette(image, region)
    assert len(palette.colors) == 1 and ciede2000(palette.colors[0], lab(np.array(RED, np.uint8))) < 1e-6


def test_palette_distance_by_hand():
    mixed = extract_palette(np.concatenate([flat(RED, 750), flat(BLUE, 250)]))
    red, blue = extract_palette(flat(RED)), extract_palette(flat(BLUE))
    between = palette_distance(red, blue)
    assert between == pytest.approx(ciede2000(red.colors[0], blue.colors[0], 2.0))
    # A quarter of the cloth has to change its colour.
    assert palette_distance(mixed, red) == pytest.approx(between / 4)
    assert palette_distance(red, mixed) == pytest.approx(between / 4)
    assert palette_distance(mixed, mixed) == pytest.approx(0)


def test_transport_is_exact():
    """Against a brute-force search over the vertices of the transport polytope, equal costs included."""
    rng = np.random.default_rng(2)
    for trial in range(40):
        cost = rng.random((3, 3)) * 50 if trial % 2 else rng.integers(0, 3, (3, 3)).astype(float)
        supply, demand = rng.dirichlet(np.ones(3), 2)
        assert transport_cost(cost, supply, demand) == pytest.approx(_least_vertex(cost, supply, demand), abs=1e-9)


def _least_vertex(cost, supply, demand):
    from itertools import combinations

    equations = np.zeros((6, 9))
    for row in range(3):
        equations[row, 3 * row : 3 * row + 3] = 1
        equations[3 + row, row::3] = 1
    totals, best = np.concatenate([supply, demand])[:5], np.inf
    for basis in combinations(range(9), 5):
        square = equations[:5, basis]
        if abs(np.linalg.det(square)) > 0.5:
            flow = np.linalg.solve(square, totals)
            if (flow >= -1e-12).all():
                best = min(best, flow @ cost.ravel()[list(basis)])
    return best


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def test_runs_on_other_groups_have_no_interval():
    with pytest.raises(ValueError, match=r"runs on the same groups are expected, got \[1, 2\]"):
        bootstrap_runs([[[1.0]], [[1.0], [2.0]]])
    assert bootstrap_runs([]) is None and bootstrap_runs([[[]], [[]]]) is None


def test_psnr_by_hand():
    first = np.zeros((4, 4, 3), np.uint8)
    assert psnr(first, first) == float("inf")
    assert psnr(first, first + np.uint8(255)) == pytest.approx(0)
    assert psnr(first, first + np.uint8(10)) == pytest.approx(20 * np.log10(25.5))
    with pytest.raises(ValueError, match="one size"):
        psnr(first, first[:2])
    with pytest.raises(ValueError, match="PSNR takes pictures uint8 of 0 to 255, got float32 with NaN"):
        psnr(np.full(3, np.nan, np.float32), np.zeros(3, np.float32))


def test_box_resize_averages_areas():
    image = np.arange(12 * 8 * 3).reshape(12, 8, 3)
    np.testing.assert_allclose(box_resize(image, 6, 2), image.reshape(6, 2, 2, 4, 3).mean(axis=(1, 3)))
    row = np.array([[0.0, 3.0, 6.0]])
    # Pixels of one and a half: the middle one is shared.
    np.testing.assert_allclose(box_resize(row, 1, 2), [[1.0, 5.0]])


def test_texture_correlation_sees_the_texture_not_the_colour():
    rng = np.random.default_rng(3)
    coarse = np.kron(rng.integers(40, 200, (32, 24, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    region = np.zeros((256, 192), bool)
    region[64:192, 48:144] = True
    assert texture_correlation(coarse, coarse, region) == pytest.approx(1)
    assert texture_correlation(255 - coarse, coarse, region) == pytest.approx(-1)
    # Another brightness and contrast is the same texture; another texture is not.
    assert texture_correlation((coarse // 2 + 60).astype(np.uint8), coarse, region) > 0.99
    assert abs(texture_correlation(rng.permutation(coarse), coarse, region)) < 0.2
    assert texture_correlation(np.full_like(coarse, 90), coarse, region) == 0
    assert texture_correlation(coarse, np.full_like(coarse, 90), region) is None
    region[:] = False
    region[:9, :9] = True
    assert texture_correlation(coarse, coarse, region) is None


# ---------------------------------------------------------------------------------------------------------------------
# Silhouettes


def scene(background):
    """A person of two rectangles before a background, with soft edges, and the mask."""
    mask = np.zeros((192, 144), bool)
    mask[20:60, 60:84] = mask[60:180, 45:99] = True
    picture = background.copy()
    picture[20:60, 60:84] = (210, 160, 130)
    picture[60:180, 45:99] = (60, 80, 150)
    picture[90:140, 60:84] = background[90:140, 60:84]  # a shirt front in the background's colour
    return picture.astype(np.uint8), mask


def test_silhouettes_before_plain_and_gradient_backgrounds():
    y = np.linspace(0, 1, 192)[:, None, None]
    plain = np.full((192, 144, 3), (230.0, 215, 190))
    for background in (plain, plain * (1 - 0.4 * y)):
        picture, mask = scene(background)
        assert is_plain(background.astype(np.uint8))
        assert iou(silhouette(picture), mask) > 0.98
        assert iou(silhouette(picture), np.roll(mask, 20, axis=1)) < 0.7


def test_a_structured_background_is_not_plain():
    background = np.full((192, 144, 3), (230, 215, 190), np.uint8)
    background[120:] = (120, 90, 60)
    background[20:70, 10:40] = (90, 140, 200)
    assert not is_plain(background)


def test_iou_by_hand():
    first, second = np.array([[True, True, False]]), np.array([[False, True, True]])
    assert iou(first, second) == pytest.approx(1 / 3)
    assert iou(first & False, second & False) == 1
    with pytest.raises(ValueError, match="one size"):
        iou(first, second.T)


# ---------------------------------------------------------------------------------------------------------------------
# Intervals


def test_bootstrap_draws_groups():
    figure = bootstrap([[1.0, 0.0], [1.0], [], [1.0]])
    assert figure.mean == pytest.approx(0.75) and (figure.count, figure.groups) == (4, 3)
    assert figure.low < figure.mean < figure.high
    assert figure == bootstrap([[1.0, 0.0], [1.0], [], [1.0]])
    values = np.random.default_rng(4).normal(5, 1, 400)
    wide = bootstrap([[value] * 4 for value in values[:100]])
    narrow = bootstrap([[value] for value in values])
    # Repeating values inside a group adds no certainty: the interval is that of 100 values.
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, rel=0.35)
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert bootstrap([[], []]) is None
    pairs = bootstrap_runs([[[value] for value in values[:100].repeat(2)]], together=2)
    assert pairs == pytest.approx(bootstrap([[value, value] for value in values[:100]])) and pairs.groups == 100
    with pytest.raises(ValueError, match="finite"):
        bootstrap([[1.0, float("inf")]])


# ---------------------------------------------------------------------------------------------------------------------
# On pictures whose truth is known


def test_true_pictures_reach_the_ceiling_and_swapped_ones_do_not(samples):
    kept, kept_when_swapped, textures, swapped_textures = [], [], [], []
    for sample in samples:
        palettes = [asset_palette(asset.image) for asset in sample.assets]
        garments = [index for index, asset in enumerate(sample.assets) if asset.kind != "face"]
        for index in garments:
            region = sample.regions == index + 1
            palette = region_palette(sample.image, region)
            kept.append(nearest_palette(palette, palettes)[0] == index)
            texture = texture_correlation(sample.image, sample.image, region)
            if texture is not None:
                textures.append(texture)
                mirrored = texture_correlation(sample.image[:, ::-1], sample.image, region)
                swapped_textures.append(mirrored)
        if len(garments) > 1:
            # What another garment's place shows is not the own asset.
            for index, other in zip(garments, garments[1:] + garments[:1], strict=True):
                palette = region_palette(sample.image, sample.regions == other + 1)
                kept_when_swapped.append(nearest_palette(palette, palettes)[0] == index)
    assert np.mean(kept) == 1 and len(kept) >= 12
    assert np.mean(kept_when_swapped) == 0 and len(kept_when_swapped) >= 6
    assert np.min(textures) == pytest.approx(1)
    assert np.mean(swapped_textures) < 0.5


def test_true_silhouettes(samples):
    plain = [sample for sample in samples if is_plain(sample.backdrop)]
    agreement = [iou(silhouette(sample.image), sample.foreground) for sample in plain]
    assert len(plain) >= 3 and np.mean(agreement) >= 0.95
    shifted = [iou(silhouette(np.roll(sample.image, 12, axis=1)), sample.foreground) for sample in plain]
    assert np.mean(shifted) < 0.85


def test_a_palette_tells_the_own_face_from_a_wrong_one(samples):
    faces = [
        (region_palette(sample.image, sample.regions == index + 1), asset_palette(asset.image))
        for sample in samples
        for index, asset in enumerate(sample.assets)
        if asset.kind == "face"
    ]
    own = [palette_distance(*face) for face in faces]
    wrong = [
        palette_distance(shown, asset)
        for number, (shown, _) in enumerate(faces)
        for other, (_, asset) in enumerate(faces)
        if other != number
    ]
    assert len(own) >= 3 and np.mean(own) < np.mean(wrong)


def test_palettes_are_plain_tuples():
    palette = Palette(np.zeros((1, 3)), np.ones(1))
    assert palette_distance(palette, palette) == 0
