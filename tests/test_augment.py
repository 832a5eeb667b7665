"""Pictures mirrored, cropped, and with assets left out, of Wardrobe's own samples."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fcjax.agnostic import agnostic_image
from fcjax.body import flip_iuv, load_densepose_symmetry
from fcjax.data import decode_record
from fcjax.data.augment import Augmentation, cropped, mirrored, swap_sides, without_assets
from fcjax.wardrobe import Wardrobe
from tests import miniatures
from train.prepare import WardrobeJob, wardrobe_record


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> dict:
    job = WardrobeJob(out=tmp_path_factory.mktemp("wardrobe"), height=64, width=48)
    wardrobe = Wardrobe(height=64, width=48)
    numbers = (number for number in range(50) if "face" in [asset.kind for asset in wardrobe[number].assets])
    number = next(number for number in numbers if len(wardrobe[number].assets) > 2)
    return {**decode_record(wardrobe_record(wardrobe[number], number, job)), "charts": "own"}


def canvas_places(sample: dict, layout: int = 0) -> dict[tuple[int, int], tuple[int, int]]:
    """Of every pixel of the person that shows a flat, the canvas's pixel (row, column) that shows the same cloth."""
    height, width = sample["owners0"].shape
    found = {}
    for row, column in zip(*np.nonzero(sample["origins"][..., 0]), strict=True):
        number, x, y = (int(value) for value in sample["origins"][row, column])
        a, b, c, d = sample["placed"][layout][number - 1]
        place = int((c * y / 255 + d) * height), int((a * x / 255 + b) * width)
        found[row, column] = (min(max(place[0], 0), height - 1), min(max(place[1], 0), width - 1))
    return found


def test_mirroring_turns_everything_together(sample: dict):
    twin = mirrored(sample)
    assert np.array_equal(twin["image"], sample["image"][:, ::-1])
    assert np.array_equal(twin["iuv"], flip_iuv(sample["iuv"])) and not np.array_equal(twin["iuv"], sample["iuv"])
    assert np.array_equal(twin["owners1"], sample["owners1"][:, ::-1])
    # The same cloth is still where the places say: at the mirrored pixel of the mirrored canvas, rounding apart.
    before, after, width = canvas_places(sample), canvas_places(twin), sample["owners0"].shape[1]
    assert len(before) == len(after) > 100
    for (row, column), (canvas_row, canvas_column) in before.items():
        mirrored_row, mirrored_column = after[row, width - 1 - column]
        assert mirrored_row == canvas_row and abs(mirrored_column - (width - 1 - canvas_column)) <= 1


def test_densepose_charts_are_mirrored_by_their_table(sample: dict, tmp_path: Path):
    photograph = {**sample, "charts": "densepose"}
    with pytest.raises(ValueError, match=r"UV_symmetry_transforms\.mat"):
        mirrored(photograph)
    table = load_densepose_symmetry(miniatures.symmetry(tmp_path / "UV_symmetry_transforms.mat"))
    twin, ruled = mirrored(photograph, table), mirrored(sample)
    assert np.array_equal(twin["iuv"], flip_iuv(sample["iuv"], table))
    assert not np.array_equal(twin["iuv"], ruled["iuv"])
    for name in set(ruled) - {"iuv", "charts"}:
        assert np.array_equal(twin[name], ruled[name]), name
    # Wardrobe's own charts stay mirrored by the rule, whatever is given for others.
    assert np.array_equal(mirrored(sample, table)["iuv"], ruled["iuv"])
    changed = Augmentation(flip=1.0)(photograph, np.random.default_rng(0), table)
    assert np.array_equal(changed["iuv"], twin["iuv"])


def test_mirroring_twice_gives_the_sample_back(sample: dict):
    again = mirrored(mirrored(sample))
    assert np.allclose(again.pop("placed"), sample["placed"])
    for name in set(sample) - {"placed"}:
        assert np.array_equal(again[name], sample[name]), name


def test_left_and_right_change_places():
    assert swap_sides("Left sleeve rolled up, bag in her right hand") == "Right sleeve rolled up, bag in her left hand"
    assert swap_sides("a leftover bright top") == "a leftover bright top"


def test_a_crop_enlarges_what_it_keeps(sample: dict):
    window = cropped(sample, 16, 12, 32, 24)
    assert window["image"].shape == sample["image"].shape
    assert np.array_equal(window["iuv"], sample["iuv"][16:48, 12:36].repeat(2, 0).repeat(2, 1))
    assert set(np.unique(window["origins"][..., 0])) <= set(np.unique(sample["origins"][16:48, 12:36, 0]))
    assert np.array_equal(window["canvas0"], sample["canvas0"])


def test_a_crop_hides_what_try_on_hides(sample: dict):
    mask = np.zeros(sample["image"].shape[:2], np.uint8)
    mask[20:40, 10:30] = 255
    worn = {**sample, "mask": mask, "agnostic": agnostic_image(sample["image"], mask > 0)}
    small = cropped(worn, 11, 7, 40, 30)
    np.testing.assert_array_equal(small["agnostic"], agnostic_image(small["image"], small["mask"] > 0))
    assert (small["mask"] > 0).any() and not (small["mask"] > 0).all()


def test_an_asset_left_out_leaves_no_trace(sample: dict):
    bare = without_assets(sample, [1])
    assert (sample["owners0"] == 2).any() and not (bare["owners0"] == 2).any()
    assert (bare["canvas0"][sample["owners0"] == 2] == 255).all()
    others = sample["owners0"] != 2
    assert np.array_equal(bare["canvas0"][others], sample["canvas0"][others])
    assert not (bare["origins"][..., 0] == 2).any() and (bare["phrases"], bare["caption"]) == (
        sample["phrases"],
        sample["caption"],
    )


def test_faces_have_a_share_of_their_own(sample: dict):
    face = 1 + sample["kinds"].index("face")
    changed = Augmentation(drop_face=1.0)(sample, np.random.default_rng(0))
    numbers = set(np.unique(sample["owners0"]))
    assert set(np.unique(changed["owners0"])) == numbers - {face}
    changed = Augmentation(drop_asset=1.0)(sample, np.random.default_rng(0))
    assert set(np.unique(changed["owners0"])) == {0, face}


def test_the_same_generator_changes_a_sample_the_same_way(sample: dict):
    augment = Augmentation(flip=0.5, crop=0.3, drop_asset=0.3, drop_face=0.3)
    one, other = (augment(sample, np.random.default_rng(5)) for _ in range(2))
    for name in sample:
        assert np.array_equal(one[name], other[name]), name
    images = {augment(sample, np.random.default_rng(seed))["image"].tobytes() for seed in range(8)}
    assert len(images) == 8


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"drop_face": -0.1}, {"crop": 0.95}])
def test_shares_out_of_bounds_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(Augmentation(), **wrong)
