"""The program `infer.mask`: the mask that training makes, its preview, and requests that cannot be met."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import skimage.data
from PIL import Image

from fcjax.agnostic import CATEGORIES
from fcjax.body import Body
from fcjax.cli import run
from fcjax.data import decode_record
from fcjax.data.sources import LABELS, Part, VitonHD
from fcjax.data.sources.files import read_iuv, read_labels
from fcjax.data.sources.sample import SampleError
from fcjax.person import Person
from fcjax.pictures import open_mask, open_rgb
from fcjax.wardrobe import Wardrobe
from fcjax.wardrobe.undressing import parse_of, take_off, worn_kinds
from infer.mask import main
from tests import miniatures
from tests.miniatures import HEIGHT, WIDTH, drawn, labels, save, write
from train.raw_records import RawOptions, category, raw_record

FILES = {
    "image": "train/image/00001_00.jpg",
    "parse": "train/image-parse-v3/00001_00.png",
    "iuv": "train/image-densepose-iuv/00001_00.png",
    "keypoints": "train/openpose_json/00001_00_keypoints.json",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return miniatures.viton_hd(tmp_path / "set")


def made(root: Path, *more: str, maps: tuple[str, ...] = ("parse", "iuv", "keypoints")) -> np.ndarray:
    given = [word for name in ("image", *maps) for word in (f"--{name}", str(root / FILES[name]))]
    run(main, [*given, "--out", str(root / "mask.png"), *more])
    return open_mask(root / "mask.png")


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (HEIGHT // 2, WIDTH), (HEIGHT, 2 * WIDTH)])
@pytest.mark.parametrize("worn", [True, False])
@pytest.mark.parametrize("maps", [("parse", "iuv", "keypoints"), ("iuv",), ("parse",)])
def test_it_is_the_mask_that_training_makes(root: Path, maps: tuple[str, ...], worn: bool, size: tuple[int, int]):
    """Also where the model's pictures have another shape."""
    for name in {"parse", "iuv", "keypoints"} - set(maps):
        (root / FILES[name]).rename(root / name)
    (root / "train/image-densepose").rename(root / "rendered")
    sample = VitonHD(root, worn=worn)[0]
    options = RawOptions(height=size[0], width=size[1], layouts=1, need_pose=False)
    trained = decode_record(raw_record(sample, 0, options))["mask"] > 0
    kinds = [asset.kind for asset in sample.assets]
    assert category(kinds) == ("outfit" if worn and "parse" in maps else "upper")
    flags = ["--category", category(kinds), *(["--shoes"] if "shoes" in kinds else [])]
    used = Person(sample.image, made(root, *flags, maps=maps)).framed(*size)[1]
    np.testing.assert_array_equal(used, trained)


@pytest.mark.parametrize("parsed", [True, False])
def test_it_is_the_mask_that_wardrobes_people_are_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsed: bool
):
    """Of the same maps as files: a parse map and the body's, or the body's alone."""
    # Labels that are the parts' own numbers.
    monkeypatch.setitem(LABELS, "viton-hd", tuple(Part(number) for number in range(len(Part))))
    wardrobe, shod = Wardrobe("heldout", height=128, width=96), 0
    for index in (0, 1, 2, 5, 13):
        sample = wardrobe[index]
        kinds = worn_kinds(sample)
        for taken in sorted({kind for kind in kinds if kind in CATEGORIES} | {"outfit"}):
            shown = set(kinds) if taken == "outfit" else set()
            save(tmp_path / "image.png", sample.image)
            save(tmp_path / "iuv.png", sample.maps.iuv)
            save(tmp_path / "parse.png", parse_of(sample, kinds))
            words = ["--image", tmp_path / "image.png", "--iuv", tmp_path / "iuv.png", "--category", taken]
            words += ["--parse", tmp_path / "parse.png"] if parsed else []
            words += [f"--{thing}" for thing in ("shoes", "hat") if thing in shown]
            run(main, [str(word) for word in (*words, "--out", tmp_path / "mask.png")])
            np.testing.assert_array_equal(open_mask(tmp_path / "mask.png"), take_off(sample, taken, parsed)[1])
            shod += "shoes" in shown
    assert shod


def test_flags_change_the_mask(root: Path):
    plain = made(root, "--category", "upper")
    assert plain.sum() < made(root, "--category", "upper", "--margin", "0.05").sum()
    parse = drawn().parse
    assert not made(root)[parse == miniatures.Part.LEFT_SHOE].any()
    assert made(root, "--shoes")[parse == miniatures.Part.LEFT_SHOE].all()
    save(root / FILES["parse"], labels(parse, "atr"))
    np.testing.assert_array_equal(made(root, "--category", "upper", "--labels", "atr"), plain)


def test_maps_of_another_size(root: Path):
    plain = made(root, "--category", "upper", maps=("parse",))
    big = Image.fromarray(drawn().image).resize((2 * WIDTH, 2 * HEIGHT))
    big.save(root / FILES["image"])
    large = made(root, "--category", "upper", maps=("parse",))
    assert large.shape == (2 * HEIGHT, 2 * WIDTH) and (large[::2, ::2] == plain).mean() > 0.95


def test_parts_alone_as_dresscode_stores_them(root: Path):
    """Its dense/N_5.png holds numbers of parts, with and without a palette; a parse map may have one bit a pixel."""
    charts = read_iuv(root / FILES["iuv"], (HEIGHT, WIDTH))[..., 0]
    expected = made(root, maps=("iuv",))
    for mode in ("L", "P"):
        picture = Image.fromarray(charts)
        if mode == "P":
            picture.putpalette(list(range(256)) * 3)
        picture.save(root / FILES["iuv"])
        np.testing.assert_array_equal(made(root, maps=("iuv",)), expected)
    Image.fromarray(read_labels(root / FILES["parse"]) > 0).save(root / FILES["parse"])
    mask = made(root, "--labels", "deepfashion", "--category", "upper", maps=("parse",))
    assert mask.any() and not mask.all()


@pytest.mark.parametrize("share", [1, 0.6, 0.4, 0.3, 0.2, 0.15])
def test_a_photograph_is_no_map_however_dark(tmp_path: Path, share: float):
    """The rocket's is nearly black at a fifth of its light, but for its flames."""
    save(tmp_path / "photo.png", (skimage.data.rocket() * share).astype(np.uint8))
    with pytest.raises(SampleError, match="photo.png is no DensePose map"):
        read_iuv(tmp_path / "photo.png", (427, 640), parts_alone=True)


@pytest.mark.parametrize("chart", [1, 20])
def test_a_map_has_several_charts(tmp_path: Path, chart: int):
    charts = np.zeros((HEIGHT, WIDTH), np.uint8)
    charts[20:90, 30:60] = chart
    save(tmp_path / "one.png", miniatures.rendered(charts))
    with pytest.raises(SampleError, match="one.png is no DensePose map"):
        read_iuv(tmp_path / "one.png", charts.shape, parts_alone=True)


@pytest.mark.parametrize(
    ("framing", "rows", "columns", "height", "least"),
    [
        ("full", slice(None), slice(None), 1024, 0.98),
        ("full", slice(None), slice(None), 256, 0.95),
        ("full", slice(None), slice(None), 128, 0.9),
        ("upper", slice(0, 400), slice(200, 500), 400, 0.95),  # head and shoulders
        ("upper", slice(100, 250), slice(320, 440), 150, 0.98),  # a face
    ],
)
def test_rendered_maps_are_taken_as_blurred_jpegs_and_near(
    tmp_path: Path, framing: Literal["full", "upper"], rows: slice, columns: slice, height: int, least: float
):
    charts = Body(framing=framing).render(1024, 768).part[rows, columns]
    size = height, height * charts.shape[1] // charts.shape[0]
    picture = Image.fromarray(miniatures.rendered(charts)).resize(size[::-1], Image.Resampling.BILINEAR)
    picture.save(tmp_path / "map.jpg", quality=75)
    read = read_iuv(tmp_path / "map.jpg", charts.shape, parts_alone=True)[..., 0]
    assert (read == charts).mean() > least and len(np.unique(charts)) > 2


def test_a_preview_shows_person_mask_and_what_stays(root: Path, capsys: pytest.CaptureFixture[str]):
    mask = made(root, "--category", "upper", "--preview", str(root / "preview.png"))
    picture = open_rgb(root / "preview.png")
    assert picture.shape[1] > 3 * WIDTH and (picture == 128).all(axis=-1).sum() > mask.sum()
    assert "of the picture is repainted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "give --parse or --iuv"),
        ({"parse": "nowhere.png"}, "no such file: nowhere.png"),
        ({"parse": FILES["image"]}, "is a picture in colours"),
        ({"iuv": FILES["image"]}, "is no DensePose map"),
        ({"parse": FILES["parse"], "labels": "atr"}, "labels 0 to 18"),
        ({"parse": FILES["parse"], "keypoints": "broken.json"}, "is no JSON"),
        ({"parse": FILES["parse"], "keypoints": "null.json"}, "null.json: keypoints are expected as finite numbers"),
        ({"parse": FILES["parse"], "keypoints": "larger.json"}, "or of this one at another size"),
        ({"iuv": "narrow.png"}, r"is 128x30 (height x width), the picture 128x96"),
        ({"iuv": "many.png"}, "has parts up to 99; DensePose's 0 to 24 are expected"),
        ({"parse": "empty.png"}, "show nothing of a person to be repainted"),
        ({"parse": "narrow.png"}, r"is 128x30 (height x width), the picture 128x96"),
        ({"parse": FILES["parse"], "margin": "3"}, "must lie in [0, 0.5]"),
        ({"parse": FILES["parse"], "category": "hat"}, "invalid choice"),
        ({"parse": FILES["parse"], "out": "mask.jpg"}, "must end in .png"),
        ({"parse": FILES["parse"], "image": "nobody.png"}, "no such picture file"),
    ],
)
def test_wrong_requests_end_in_exit_code_2(
    root: Path,
    flags: dict[str, str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(root)
    write(root / "broken.json", "{")
    for name, point in (("null", [None, 1, 1]), ("larger", [WIDTH * 1.5, 9, 0.9])):
        people = [{"pose_keypoints_2d": [number for _ in range(18) for number in point]}]
        write(root / f"{name}.json", json.dumps({"people": people}))
    save(root / "many.png", np.full((HEIGHT, WIDTH), 99, np.uint8))
    save(root / "empty.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    save(root / "narrow.png", np.zeros((HEIGHT, 30), np.uint8))
    given = {"image": FILES["image"], "out": "mask.png", **flags}
    with pytest.raises(SystemExit) as ended:
        run(main, [word for name, value in given.items() for word in (f"--{name}", value)])
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert ended.value.code == 2 and expected in said and not (root / "mask.png").exists()
