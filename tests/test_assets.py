"""Opening, cutting and laying out assets, and their masks at token resolution."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from fcjax.assets import MAX_ASSETS, SMALLEST_COVERAGE, Asset, AssetCanvas, Box, lay_out, owned_tokens, token_masks

RED = (200, 30, 40)


def shirt_on(background=(255, 255, 255), size=(160, 200)) -> Image.Image:
    """A red shirt with a white badge inside, width x height."""
    image = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 50, 120, 180), fill=RED)
    draw.rectangle((70, 80, 90, 100), fill=(255, 255, 255))
    return image


def solid(height: int, width: int, colour=RED, phrase="a red thing") -> Asset:
    return Asset(np.full((height, width, 4), (*colour, 255), np.uint8), phrase)


def random_assets(count: int, rng: np.random.Generator) -> list[Asset]:
    return [
        solid(*rng.integers(10, 300, 2), colour=rng.integers(0, 200, 3), phrase=f"thing {index}")
        for index in range(count)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Opening and cutting


def test_white_background_is_cut_and_white_details_stay(tmp_path: Path) -> None:
    shirt_on().save(tmp_path / "shirt.png")
    asset = Asset.open(tmp_path / "shirt.png", "  a red\n shirt ")
    assert asset.phrase == "a red shirt"
    alpha = asset.image[..., 3]
    assert alpha[10, 10] == 0 and alpha[100, 50] == 255
    assert alpha[90, 80] == 255 and tuple(asset.image[90, 80, :3]) == (255, 255, 255)
    assert abs(int((alpha >= 128).sum()) - 81 * 131) <= 2 * (81 + 131)


def test_soft_edges_keep_their_colour_and_their_share() -> None:
    large = shirt_on().resize((1600, 2000), Image.Resampling.NEAREST).filter(ImageFilter.GaussianBlur(5))
    image = large.resize((160, 200), Image.Resampling.BOX)
    asset = Asset.from_image(image, "a red shirt")
    colour, alpha = asset.image[..., :3].astype(float), asset.image[..., 3:] / 255.0
    edge = (alpha[..., 0] > 0.2) & (alpha[..., 0] < 0.9)
    edge[60:120, 60:100] = False
    assert edge.sum() > 100
    assert np.abs(colour[edge] - RED).max() < 60
    # On white again it is the picture it was.
    assert np.abs(colour * alpha + 255 * (1 - alpha) - np.asarray(image)).max() < 16


@pytest.mark.parametrize("quality", [60, 95])
def test_jpeg_noise_and_off_white_are_background(tmp_path: Path, quality: int) -> None:
    shirt_on((246, 244, 240)).save(tmp_path / "shirt.jpg", quality=quality)
    alpha = Asset.open(tmp_path / "shirt.jpg", "a red shirt").image[..., 3]
    assert alpha[:40].max() == 0 and alpha[:, :30].max() == 0 and alpha[150, 80] == 255


def test_a_winding_background_is_followed() -> None:
    """White that reaches the border through a serpentine is background, a closed hole is not."""
    image = np.full((80, 64, 3), 255, np.uint8)
    image[8:72, 8:56] = RED
    for turn in range(6):
        row = 12 + 9 * turn
        image[row : row + 4, 0 if turn == 0 else 12 : 52] = 255
        side = 48 if turn % 2 == 0 else 12
        image[row : row + (13 if turn < 5 else 4), side : side + 4] = 255
    image[66:70, 30:34] = 255
    alpha = Asset.from_image(image, "a maze").image[..., 3]
    for turn in range(6):
        assert alpha[14 + 9 * turn, 30] == 0
    assert alpha[68, 32] == 255 and alpha[10, 30] == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "1", "I;16", "YCbCr"])
def test_every_mode_opens(tmp_path: Path, mode: str) -> None:
    """The same shirt in every mode: its middle opaque and dark, its background away."""
    image, suffix = shirt_on(), "png"
    if mode in ("RGBA", "LA"):
        mask = Image.new("L", image.size, 0)
        mask.paste(255, (40, 50, 121, 181))
        image.putalpha(mask)
        image = image.convert(mode)
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
        suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    image.save(tmp_path / f"shirt.{suffix}")
    asset = Asset.open(tmp_path / f"shirt.{suffix}", "a red shirt")
    assert asset.image.shape == (200, 160, 4)
    assert asset.image[5, 5, 3] == 0 and asset.image[150, 80, 3] == 255
    assert asset.image[150, 80, :3].min() < 110


def test_palette_transparency_is_used(tmp_path: Path) -> None:
    image = shirt_on((0, 255, 0)).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "shirt.gif", transparency=image.getpixel((0, 0)))
    alpha = Asset.open(tmp_path / "shirt.gif", "a red shirt").image[..., 3]
    assert alpha[0, 0] == 0 and alpha[100, 50] == 255


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # stored lying on its side
    shirt_on().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "shirt.png", exif=exif)
    asset = Asset.open(tmp_path / "shirt.png", "a red shirt")
    assert asset.image.shape == (200, 160, 4)
    assert asset.image[190:, :, 3].max() == 0 and asset.image[90, 80, 1] == 255


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    shirt_on().resize((3200, 4000)).save(tmp_path / "shirt.jpg")
    asset = Asset.open(tmp_path / "shirt.jpg", "a red shirt")
    assert max(asset.image.shape) == 1024 and asset.image[512, 300, 3] == 255


def test_a_real_background_is_refused_unless_the_picture_is_the_asset(tmp_path: Path) -> None:
    shirt_on((90, 140, 90)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"photo\.png.*real background.*transparent or near-white"):
        Asset.open(tmp_path / "photo.png", "a red shirt")
    swatch = Asset.open(tmp_path / "photo.png", "trousers of this fabric", whole=True)
    assert swatch.image[..., 3].min() == 255


def test_a_few_clear_pixels_make_no_cut_out() -> None:
    """Neither white nor a scene passes for an asset because an editor left a pixel of it transparent."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 40, 4), np.uint8)
    noise[..., 3], noise[0, 0, 3] = 255, 0
    with pytest.raises(ValueError, match="has a real background"):
        Asset.from_image(Image.fromarray(noise), "a red shirt")
    white = np.full((60, 40, 4), 255, np.uint8)
    white[0, 0, 3] = 0
    with pytest.raises(ValueError, match="white"):
        Asset.from_image(Image.fromarray(white), "a red shirt")
    white[20:40, 10:30, :3], white[0, 0, 3] = (200, 20, 20), 254
    alpha = Asset.from_image(Image.fromarray(white), "a red shirt").image[..., 3]
    assert alpha.shape == (60, 40) and alpha[0, 0] == 0 and alpha[5, 5] == 0 and alpha[30, 20] == 255


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    (tmp_path / "text.png").write_text("not a picture")
    shirt_on().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    Image.new("RGB", (64, 64), (255, 255, 255)).save(tmp_path / "white.png")
    Image.new("RGBA", (64, 64), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    for name, message in (
        ("missing.png", "no such asset file"),
        ("", "cannot read"),
        ("broken.png", r"cannot read .*broken\.png"),
        ("text.png", r"cannot read .*text\.png"),
        ("cut.png", r"cannot read .*cut\.png"),
        ("white.png", "nothing to see"),
        ("clear.png", "nothing to see"),
        ("float.tif", "floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            Asset.open(tmp_path / name, "a shirt")
    for phrase in ("", "  \n"):
        with pytest.raises(ValueError, match="needs the phrase"):
            Asset.open(tmp_path / "whole.png", phrase)
    with pytest.raises(ValueError, match="uint8 RGBA"):
        Asset(np.zeros((4, 4, 3), np.uint8), "a shirt")


# ---------------------------------------------------------------------------------------------------------------------
# Layout


def overlapping(boxes: tuple[Box, ...]) -> bool:
    return any(
        one.top < two.bottom and two.top < one.bottom and one.left < two.right and two.left < one.right
        for one, two in itertools.combinations(boxes, 2)
    )


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("size", [(256, 192), (512, 384), (64, 64)])
def test_layouts_are_sound(varied: bool, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for seed in range(12):
        count = seed % (MAX_ASSETS + 1)
        assets = random_assets(count, rng)
        canvas = lay_out(assets, *size, seed=seed, varied=varied)
        assert canvas.image.shape == (*size, 3) and canvas.masks.shape == (MAX_ASSETS, *size)
        assert canvas.image.dtype == np.uint8 and canvas.masks.dtype == np.float32
        assert canvas.phrases == tuple(asset.phrase for asset in assets) and len(canvas.boxes) == count
        assert not overlapping(canvas.boxes)
        assert np.all(canvas.masks[count:] == 0) and np.all(canvas.masks.sum(0) <= 1)
        assert np.all(canvas.image[canvas.masks.sum(0) == 0] == 255)
        for asset, box, mask in zip(assets, canvas.boxes, canvas.masks, strict=False):
            assert box.top >= 0 and box.left >= 0 and box.bottom <= size[0] and box.right <= size[1]
            assert np.all(mask[box.top : box.bottom, box.left : box.right] == 1) and mask.sum() == (
                (box.bottom - box.top) * (box.right - box.left)
            )
            assert np.all(canvas.image[box.top : box.bottom, box.left : box.right] == asset.image[0, 0, :3])
            # Aspect is kept up to the rounding of either side to whole pixels.
            height, width = box.bottom - box.top, box.right - box.left
            scale = (height / asset.image.shape[0], width / asset.image.shape[1])
            assert abs(scale[0] - scale[1]) <= 1 / asset.image.shape[0] + 1 / asset.image.shape[1]


def test_seed_decides_the_layout() -> None:
    assets = random_assets(4, np.random.default_rng(1))
    for varied in (False, True):
        first, again, other = (lay_out(assets, 256, 192, seed=seed, varied=varied) for seed in (1, 1, 2))
        assert first.boxes == again.boxes and first.boxes != other.boxes
        np.testing.assert_array_equal(first.image, again.image)


def test_default_layout_is_large_and_even_and_varied_layouts_vary() -> None:
    assets = [solid(200, 160), solid(260, 120), solid(100, 110)]
    packed, varied = [], []
    for seed in range(16):
        for shares, mode in ((packed, False), (varied, True)):
            boxes = lay_out(assets, 256, 192, seed=seed, varied=mode).boxes
            shares.append([(box.bottom - box.top) * (box.right - box.left) / (256 * 192) for box in boxes])
    assert np.min(np.sum(packed, 1)) > 0.5 and np.min(packed) > 0.08
    assert np.mean(np.sum(packed, 1)) > np.mean(np.sum(varied, 1)) + 0.1
    assert np.std(varied, 0).min() > 0.03


def test_transparent_margins_do_not_take_room_and_small_things_stay_small() -> None:
    image = np.zeros((200, 200, 4), np.uint8)
    image[90:110, 95:105] = (*RED, 255)
    box = lay_out([Asset(image, "a tie")], 256, 192).boxes[0]
    assert (box.bottom - box.top, box.right - box.left) == (60, 30)


def test_resizing_does_not_bleed_transparent_colours() -> None:
    image = np.zeros((120, 120, 4), np.uint8)
    image[..., :3] = (0, 255, 0)
    image[10:110, 10:110] = (*RED, 255)
    canvas = lay_out([Asset(image, "a red square")], 64, 48)
    assert np.all(canvas.image[..., 0] >= canvas.image[..., 1].astype(int) - 1)


def test_boxes_fix_the_places() -> None:
    assets = [solid(100, 50), solid(50, 100)]
    canvas = lay_out(assets, 256, 192, boxes=[(0, 0, 100, 100), (100, 92, 256, 192)])
    assert canvas.boxes == ((0, 25, 100, 75), (153, 92, 203, 192))
    for boxes, message in (
        ([(0, 0, 100, 100)], "one box an asset, got 1 boxes for 2 assets"),
        ([(0, 0, 100, 100), (99, 99, 256, 192)], "overlap"),
        ([(0, 0, 100, 100), (100, 92, 257, 192)], "leaves the canvas of 256x192"),
        ([(0, 0, 100, 100), (120, 92, 120, 192)], "is empty or leaves"),
        ([(0, 0, 100, 100), (100, 92.5, 256, 192)], "four whole numbers"),
        ([(0, 0, 100, 100), (100, 92, 256)], "four whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            lay_out(assets, 256, 192, boxes=boxes)


def test_bad_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 2 assets fit this model's canvas, got 3"):
        lay_out([solid(8, 8)] * 3, 64, 64, max_assets=2)
    with pytest.raises(ValueError, match="height must be a positive multiple of 8, got 250; 248 would do"):
        lay_out([], 250, 192)
    with pytest.raises(ValueError, match="width must be a positive multiple of 8, got 0"):
        lay_out([], 256, 0)
    with pytest.raises(ValueError, match="no room for 8 assets"):
        lay_out([solid(8, 8)] * 8, 8, 8)


# ---------------------------------------------------------------------------------------------------------------------
# Token masks


def test_token_masks_are_area_averages() -> None:
    masks = np.random.default_rng(0).random((2, 3, 32, 24)).astype(np.float32)
    tokens = token_masks(masks, 8, 6)
    assert tokens.shape == (2, 3, 8, 6) and tokens.dtype == np.float32
    np.testing.assert_allclose(tokens[1, 2, 3, 4], max(masks[1, 2, 12:16, 16:20].mean(), 0), rtol=1e-5)
    with pytest.raises(ValueError, match="32x24 pixels do not divide into 5x6 tokens"):
        token_masks(masks, 5, 6)


def test_a_small_asset_keeps_a_token_at_every_level() -> None:
    masks = np.zeros((4, 64, 48), np.float32)
    masks[0, 17:20, 30:32] = 1.0
    masks[1, 40:42, 14:18] = 0.25
    masks[2] = 1.0
    for height, width in ((32, 24), (8, 6), (2, 1)):
        tokens = token_masks(masks, height, width)
        assert tokens[0].max() >= SMALLEST_COVERAGE and tokens[1].max() == SMALLEST_COVERAGE
        assert np.all(tokens[2] == 1.0) and np.all(tokens[3] == 0.0)
    coarse = token_masks(masks, 8, 6)
    assert coarse[0, 2, 3] == SMALLEST_COVERAGE and np.count_nonzero(coarse[0]) == 1
    # Both tokens that it straddles know of it; one of them is raised.
    assert coarse[1, 5, 1] == SMALLEST_COVERAGE and coarse[1, 5, 2] == pytest.approx(0.25 * 4 / 64)


def test_owned_tokens_are_those_of_the_masks() -> None:
    """Training keeps the map of owners, sampling the masks: both must come to the same tokens."""
    masks = np.zeros((3, 16, 16), np.float32)
    masks[0, :8, :8], masks[1, 8:, 4:12] = 0.9, 1.0
    canvas = AssetCanvas(np.full((16, 16, 3), 255, np.uint8), masks, (), (), ())
    assert set(np.unique(canvas.owners)) == {0, 1, 2}
    assert canvas.owners[0, 0] == 1 and canvas.owners[15, 4] == 2 and canvas.owners[0, 15] == 0
    assert np.array_equal(owned_tokens(canvas.owners, 3, 4, 4), token_masks((masks >= 0.5).astype(np.float32), 4, 4))


def test_an_asset_of_which_nothing_is_left_is_refused() -> None:
    """A hair-line is there at its own size, but covers no pixel of the canvas by half."""
    picture = np.zeros((400, 400, 4), np.uint8)
    picture[np.arange(400), np.arange(400)] = (200, 0, 0, 255)
    with pytest.raises(ValueError, match="'a thread' is so thin or faint that nothing of it is left at .* pixels"):
        lay_out([Asset(picture, "a thread")], 64, 48)
