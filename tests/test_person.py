"""A person's picture and its mask: what is repainted, and pictures of every kind that they are read from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fcjax
from fcjax.person import Person, feathered
from fcjax.pictures import open_mask, open_rgb
from infer.request import AssetFile
from infer.tryon_fit import person_of
from infer.tryon_request import TryOnRequest


def test_a_feather_lies_inside_the_mask():
    mask = np.zeros((20, 20), bool)
    mask[4:16, 4:16] = True
    share = feathered(mask, 3)
    assert not share[~mask].any()
    np.testing.assert_allclose(share[10, 3:9], [0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_array_equal(feathered(mask, 0), mask)
    # The middle of what is thin is new all the same.
    mask[8:12, 16:20] = True
    share = feathered(mask, 3)
    np.testing.assert_allclose(share[7:13, 18], [0, 0.5, 1, 1, 0.5, 0])
    for width in (500, 10**12):
        wide = feathered(mask, width)
        assert wide.max() == 1 and not wide[~mask].any() and wide[4, 10] == 0.25


def test_persons_that_cannot_be():
    image, mask = np.zeros((50, 30, 3), np.uint8), np.zeros((50, 30), bool)
    mask[10:20, 5:9] = True
    for given, expected in (
        (
            (image, mask[:-1]),
            r"the mask is 49x30 \(height x width\), the person's picture 50x30: give a mask of the picture's own size",
        ),
        ((image, mask.T), "turn one of them by a quarter"),
        ((image, mask.astype(np.uint8)), r"must be bool \(height, width\), got uint8 \(50, 30\)"),
        ((image, np.zeros_like(mask)), "the mask is empty"),
        ((image, np.ones_like(mask)), "the mask covers everything"),
        ((image[..., 0], mask), "must be uint8 RGB"),
        ((image, mask, image[1:]), r"body map must be uint8 .* own size, 50x30, got uint8 \(49, 30, 3\)"),
        ((image, mask, "iuv.png"), "got 'iuv.png'; Person.open reads files"),
        ((image, mask, np.full_like(image, 25)), "has the part 25 in its first channel; DensePose's are 1 to 24"),
    ):
        with pytest.raises(ValueError, match=expected):
            Person(*given)
    speck = np.zeros((500, 500), bool)
    speck[0, 0] = True
    with pytest.raises(ValueError, match="so thin that nothing of it is left at the model's 32x32"):
        Person(np.zeros((500, 500, 3), np.uint8), speck).framed(32, 32)
    with pytest.raises(ValueError, match="feather must be 0"):
        feathered(mask, -1)


def test_the_body_map_is_framed_as_the_picture(tmp_path: Path):
    image, mask = np.zeros((60, 30, 3), np.uint8), np.zeros((60, 30), bool)
    mask[20:30] = True
    iuv = fcjax.Body(pose="walking").render(60, 30).iuv
    for name, array in (("person", image), ("mask", mask), ("iuv", iuv), ("parts", iuv * np.uint8([1, 0, 0]))):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in ("person", "mask", "iuv", "parts")]
    person = Person.open(*paths[:3])
    assert person.tells_pose
    posed = person.posed(60, 60)
    np.testing.assert_array_equal(posed[:, 15:45], iuv)
    assert not posed[:, :15].any() and not posed[:, 45:].any()
    # Parts alone serve to make masks, and tell no pose.
    for untold in (Person.open(*paths[:2]), Person.open(*paths[:2], paths[3])):
        assert not untold.tells_pose and not untold.posed(60, 60).any()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "L", "P", "I;16"])
def test_pictures_of_every_kind_are_read(tmp_path: Path, mode: str):
    grey = np.tile(np.linspace(0, 255, 30).astype(np.uint8), (50, 1))
    deep = mode == "I;16"
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if deep else Image.fromarray(grey).convert(mode)
    path = tmp_path / ("p.tiff" if mode == "CMYK" else "p.png")
    picture.save(path)
    np.testing.assert_allclose(open_rgb(path), np.dstack([grey] * 3), atol=1)
    np.testing.assert_array_equal(open_mask(path), grey >= 128)


def test_sixteen_bits_of_small_numbers_and_of_a_clear_grey(tmp_path: Path):
    """Programs write numbers up to 255 with 16 bits, and PNGs of grey name one that is transparent."""
    grey = np.tile(np.arange(0, 250, 5), (4, 1))
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "small.png")
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "small.tiff")
    for name in ("small.png", "small.tiff"):
        np.testing.assert_array_equal(open_rgb(tmp_path / name)[..., 0], grey)
    Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "clear.png", transparency=50 * 257)
    read = open_rgb(tmp_path / "clear.png")[..., 0]
    np.testing.assert_array_equal(read, np.where(grey == 50, 255, grey))


def test_a_body_map_is_no_mask_but_a_mask_of_few_colours_is(tmp_path: Path):
    coloured = np.zeros((20, 20, 3), np.uint8)
    coloured[4:9, :10] = (15, 180, 240)
    Image.fromarray(coloured).save(tmp_path / "iuv.png")
    with pytest.raises(ValueError, match=r"iuv.png is in colours \(12% of it\), .* a mask is white"):
        open_mask(tmp_path / "iuv.png")
    # A JPEG's fringes, and a frame in colour.
    white = np.zeros((40, 40, 3), np.uint8)
    white[10:30, 10:30] = (255, 225, 235)
    white[0, :20] = (0, 200, 0)
    Image.fromarray(white).save(tmp_path / "mask.png")
    assert open_mask(tmp_path / "mask.png")[10:30, 10:30].all()


def test_a_mask_of_zeros_and_ones_is_told(tmp_path: Path):
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="has no white: its lightest pixel is 1 of 255, and 128 or more counts"):
        open_mask(tmp_path / "mask.png")


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "p.jpg", exif=exif, quality=95)
    turned = open_rgb(tmp_path / "p.jpg")
    assert turned.shape == (40, 20, 3) and turned[:15].min() > 200 > 50 > turned[25:].max()


def test_a_mask_is_made_of_a_body_map(tmp_path: Path):
    body = fcjax.Body(pose="standing").render(64, 48)
    Image.fromarray(np.full((64, 48, 3), 90, np.uint8)).save(tmp_path / "person.png")
    Image.fromarray(body.iuv).save(tmp_path / "iuv.png")
    asset = AssetFile("shirt.png", "a red shirt")
    request = TryOnRequest("a woman in a red shirt", "person.png", (asset,), iuv="iuv.png", category="upper")
    person = person_of(request, tmp_path)
    torso = np.isin(body.iuv[..., 0], (1, 2))
    assert person.mask[torso].mean() > 0.95 and not person.mask[np.isin(body.iuv[..., 0], (23, 24))].any()
    # As infer.mask reads it: blue first, of half the size; and what is no such map is refused.
    Image.fromarray(body.iuv[..., ::-1]).save(tmp_path / "iuv.png")
    np.testing.assert_array_equal(person_of(request, tmp_path).mask, person.mask)
    Image.fromarray(body.iuv[::2, ::2]).save(tmp_path / "iuv.png")
    assert (person_of(request, tmp_path).mask == person.mask).mean() > 0.95
    Image.fromarray(body.iuv[:-12]).save(tmp_path / "iuv.png")
    with pytest.raises(ValueError, match="iuv.png is 52x48 .*, the picture 64x48"):
        person_of(request, tmp_path)
    Image.fromarray(np.full((64, 48, 3), 90, np.uint8)).save(tmp_path / "iuv.png")
    with pytest.raises(ValueError, match="iuv.png is no DensePose map"):
        person_of(request, tmp_path)


def test_what_a_made_mask_takes_off(tmp_path: Path):
    body = fcjax.Body(pose="standing").render(64, 48)
    Image.fromarray(np.full((64, 48, 3), 90, np.uint8)).save(tmp_path / "person.png")
    Image.fromarray(body.iuv).save(tmp_path / "iuv.png")
    asset = AssetFile("shirt.png", "a red shirt")

    def area(**changed: Any) -> int:
        return int(
            person_of(
                TryOnRequest("a woman in a red shirt", "person.png", (asset,), iuv="iuv.png", **changed), tmp_path
            ).mask.sum()
        )

    assert area() < area(shoes=True) < area(shoes=True, hat=True) and area() < area(margin=0.1)
