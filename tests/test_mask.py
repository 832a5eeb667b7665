"""The program `infer.mask`: the mask that training makes, its preview, and requests that cannot be met."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.cli import run
from fcjax.data import decode_record
from fcjax.data.sources import VitonHD
from fcjax.person import Person
from fcjax.pictures import open_mask, open_rgb
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
    save(root / "empty.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    save(root / "narrow.png", np.zeros((HEIGHT, 30), np.uint8))
    given = {"image": FILES["image"], "out": "mask.png", **flags}
    with pytest.raises(SystemExit) as ended:
        run(main, [word for name, value in given.items() for word in (f"--{name}", value)])
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert ended.value.code == 2 and expected in said and not (root / "mask.png").exists()
