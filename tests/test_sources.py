"""Readers of real data sets: miniatures in their makers' layouts, with their aliases and traps."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.data.sources import DeepFashion, DressCode, Folder, Part, SampleError, VitonHD, check
from fcjax.data.sources.files import read_uv
from tests import miniatures
from tests.miniatures import HEIGHT, WIDTH, drawn, kinds, report, save, write


@pytest.fixture
def dresscode(tmp_path: Path) -> Path:
    return miniatures.dresscode(tmp_path / "DressCode")


@pytest.fixture
def deepfashion(tmp_path: Path) -> Path:
    return miniatures.deepfashion(tmp_path / "DeepFashion")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return miniatures.own_folder(tmp_path / "mine")


# ---------------------------------------------------------------------------------------------------------------------
# DressCode


def test_dresscode_is_read_as_it_lies(dresscode: Path):
    source, person = pickle.loads(pickle.dumps(DressCode(dresscode))), drawn()
    # Garments lie among the people, and are no samples.
    assert len(list((dresscode / "dresses/images").iterdir())) == 4
    assert [source.name(i) for i in range(len(source))] == [
        "upper_body/000000_0", "upper_body/000001_0", "lower_body/000010_0", "lower_body/000011_0",
        "dresses/000020_0", "dresses/000021_0",
    ]  # fmt: skip
    upper, lower, dress = source[0], source[2], source[4]
    assert (kinds(upper), kinds(lower), kinds(dress)) == (
        ["top", "pants", "shoes", "face"], ["pants", "top", "shoes", "face"], ["dress", "shoes", "face"],
    )  # fmt: skip
    # ATR's 18, where tools write it, is the neck.
    assert (upper.parse == Part.NECK).any()
    np.testing.assert_array_equal(upper.parse, person.parse)
    np.testing.assert_array_equal(upper.iuv[..., 0], person.iuv[..., 0])
    np.testing.assert_allclose(upper.iuv, person.iuv, atol=1)
    # Found in 384x512.
    seen = person.keypoints[:, 2] > 0
    np.testing.assert_allclose(upper.keypoints[seen, :2], person.keypoints[seen, :2])
    np.testing.assert_array_equal(upper.keypoints[:, 2], seen)
    np.testing.assert_array_equal(lower.assets[0].region, person.parse == Part.PANTS)
    assert dress.assets[0].picture.shape == (40, 30, 4)


def test_dresscodes_unpaired_list(dresscode: Path):
    unpaired = DressCode(dresscode, "test", paired=False)
    assert len(unpaired) == 3 and len(DressCode(dresscode, "test")) == 6
    assert unpaired[1].assets[0].region is None and kinds(unpaired[1])[0] == "lower"


def test_what_dresscode_lacks_is_said(dresscode: Path):
    (dresscode / "upper_body/dense/000000_5_uv.npz").write_bytes(b"PK broken")
    np.savez(dresscode / "upper_body/dense/000001_5_uv.npz", flow=np.zeros(3))
    (dresscode / "lower_body/dense/000010_5_uv.npz").unlink()
    np.savez(dresscode / "lower_body/dense/000011_5_uv.npz", uv=np.zeros((3, HEIGHT, WIDTH)))
    write(dresscode / "dresses/keypoints/000020_2.json", '{"keypoints": [[1, 2, 3, 4]]}')
    save(dresscode / "dresses/dense/000021_5.png", np.full((HEIGHT, WIDTH), 99, np.uint8))
    source = DressCode(dresscode)
    for index, expected in (
        (0, "an .npz with the array uv is expected"),
        (1, "an .npz with the array uv is expected"),
        (3, r"uv is expected as \(2, h, w\) .* got float64 \(3, 128, 96\)"),
        (4, "expected as 18 rows of 4 numbers"),
        (5, "has parts up to 99"),
    ):
        with pytest.raises(SampleError, match=expected):
            source[index]
    assert source[2].iuv is None
    lines, usable = check(source)
    assert usable == 1
    words = "missing for 1 of 6 (000010): no body map: left out unless --no-need-pose"
    assert f"lower_body/dense/*_5_uv.npz: {words}" in lines


def test_a_damaged_uv_file_leaves_one_sample_out(dresscode: Path):
    path = dresscode / "lower_body/dense/000011_5_uv.npz"
    whole = path.read_bytes()
    np.save(path.with_suffix(".npy"), np.zeros((2, HEIGHT, WIDTH)))
    damaged = [whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :] for place in range(0, len(whole), 97)]
    refused = 0
    for content in (path.with_suffix(".npy").read_bytes(), *damaged):
        path.write_bytes(content)
        try:
            read_uv(path, (HEIGHT, WIDTH))
        except SampleError as error:
            refused += str(path) in str(error)
    assert refused > len(damaged) / 2


def test_folders_that_are_no_dresscode(dresscode: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="none of upper_body, lower_body, dresses is in"):
        DressCode(tmp_path)
    with pytest.raises(ValueError, match="unpaired goes with the split test"):
        DressCode(dresscode, "train", paired=False)
    with pytest.raises(ValueError, match="DressCode has train and test"):
        DressCode(dresscode, "val")  # pyright: ignore[reportArgumentType]
    (dresscode / "dresses").rename(tmp_path / "dresses")
    assert "no dresses/: its samples are missed" in report(DressCode(dresscode))
    write(dresscode / "upper_body/train_pairs.txt", "000000_1.jpg 000000_0.jpg\n")
    with pytest.raises(ValueError, match=r"must name a person \(N_0.jpg\) and a garment \(N_1.jpg\) a line"):
        DressCode(dresscode)


# ---------------------------------------------------------------------------------------------------------------------
# DeepFashion-MultiModal


def test_deepfashion_is_read_as_it_lies(deepfashion: Path):
    source, person = pickle.loads(pickle.dumps(DeepFashion(deepfashion))), drawn()
    assert len(source) == 2
    man, woman = source[0], source[1]
    assert (man.person, woman.person) == ("man", "woman")
    # Written blue first, and read as part, u, v.
    np.testing.assert_array_equal(man.iuv, person.iuv)
    assert man.keypoints is None and man.caption and woman.caption is None
    # The set has no sides of arms and shoes.
    assert (man.parse[person.parse == Part.RIGHT_ARM] == Part.SKIN).all()
    assert kinds(man) == ["top", "pants", "shoes", "face"]
    top, pants, shoes, face = man.assets
    assert top.adjectives == ("striped", "short-sleeved", "cotton") and top.noun is None
    assert pants.adjectives == ("denim",) and pants.noun == "shorts"
    assert shoes.adjectives == () == woman.assets[0].adjectives
    cut = top.picture
    assert cut.shape[2] == 4 and (cut[..., 3] > 0).sum() == (person.parse == Part.UPPER).sum()
    assert np.ptp(cut[cut[..., 3] > 0][:, 0].astype(int)) < 120 and face.picture.shape[2] == 3
    rows, columns = np.nonzero(face.region)
    assert face.picture.shape[0] < HEIGHT // 4 and {Part.FACE, Part.HAIR} >= set(person.parse[rows, columns])


def test_deepfashions_parts_in_their_own_order(deepfashion: Path):
    save(deepfashion / "densepose/MEN-Denim-id_00000080-01_7_additional_densepose.png", drawn().iuv)
    np.testing.assert_array_equal(DeepFashion(deepfashion)[0].iuv, drawn().iuv)


def test_deepfashion_side_by_side(deepfashion: Path):
    for path in [*deepfashion.glob("*/*.jpg"), *deepfashion.glob("*/*.png"), *deepfashion.glob("labels/*/*.txt")]:
        path.rename(deepfashion / path.name)
    for name in ("images", "segm", "densepose"):
        (deepfashion / name).rmdir()
    sample = DeepFashion(deepfashion)[0]
    assert sample.iuv is not None and sample.assets[0].adjectives[0] == "striped"


def test_what_deepfashion_lacks_is_said(deepfashion: Path):
    said = report(DeepFashion(deepfashion))
    assert "1 of 3 pictures have no parse map and are no samples (WOMEN-Skirts-unparsed)" in said
    assert "captions.json: nothing on 1 of 2 samples" in said
    (deepfashion / "labels/texture/fabric_ann.txt").unlink()
    (deepfashion / "captions.json").unlink()
    source = DeepFashion(deepfashion)
    assert source[0].assets[0].adjectives == ("striped", "short-sleeved") and source[0].caption is None
    assert "no list of fabric attributes (fabric_ann.txt or fabric.txt" in report(source)


def test_deepfashions_pictures_for_a_parser(deepfashion: Path):
    source = DeepFashion(deepfashion, parsed=False)
    assert len(source) == 3 and source.name(1) == "WOMEN-Skirts-unparsed"
    assert not any("no parse map" in line for line in source.oddities())
    source.parser = lambda image: np.full(image.shape[:2], Part.DRESS, np.uint8)
    assert kinds(source[1]) == ["dress"] == kinds(source[0])
    said = report(source)
    assert "_segm.png" not in said and "cannot be read" not in said
    for path in deepfashion.glob("images/*.jpg"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no pictures in .*images: DeepFashion-MultiModal"):
        DeepFashion(deepfashion, parsed=False)


def test_folders_that_are_no_deepfashion(deepfashion: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no \\*_segm.png in .*: DeepFashion-MultiModal"):
        DeepFashion(tmp_path)
    write(deepfashion / "captions.json", "[1]")
    with pytest.raises(ValueError, match="a caption for every picture's name"):
        DeepFashion(deepfashion)
    write(deepfashion / "labels/shape/shape_anno_all.txt", "a.jpg 1 2\n")
    with pytest.raises(ValueError, match="13 columns a line"):
        DeepFashion(deepfashion)
    write(deepfashion / "labels/shape/shape_anno_all.txt", "a.jpg " + "x " * 12)
    with pytest.raises(ValueError, match="12 whole numbers a line"):
        DeepFashion(deepfashion)


# ---------------------------------------------------------------------------------------------------------------------
# One's own folder


def test_ones_own_folder(folder: Path):
    source = pickle.loads(pickle.dumps(Folder(folder, "atr")))
    ann, ben, cleo = (source[index] for index in range(3))
    assert ann.caption == "Ann in a red t-shirt and a blue skirt." and ann.iuv is not None and ann.parse is None
    assert [(asset.phrase, asset.kind) for asset in ann.assets] == [("a red t-shirt", "top"), ("a blue skirt", "skirt")]
    assert ann.assets[0].picture.shape[2] == 3 and ann.assets[1].picture.shape[2] == 4
    np.testing.assert_array_equal(ben.parse, drawn().parse)
    np.testing.assert_allclose(ben.keypoints, drawn().keypoints)
    assert kinds(ben) == ["top", "pants", "shoes", "face"] and ben.assets[0].phrase is None
    assert cleo.assets == () and cleo.iuv is None
    save(folder / "iuv/nobody.png", drawn().iuv)
    save(folder / "assets/nobody/a.png", drawn().image)
    said = report(source)
    assert "1 of 3 pictures have neither assets nor parse map (cleo): left out" in said
    assert "assets/: 1 belong to no picture in images/ (nobody)" in said and "iuv/: 1 belong" in said
    assert "iuv/*.png: missing for 1 of 3 (cleo): no body map" in said


def test_an_assets_kind_is_told_by_words(folder: Path):
    for name in ("a_denim_jacket", "a_dress_with_a_red_belt", "wool", "a_smiling_man", "a_red_shirt_for_a_man"):
        save(folder / f"assets/cleo/{name}.png", drawn().image)
    write(folder / "images/cleo.json", json.dumps({"kinds": {"wool.png": "coat"}}))
    assert {asset.phrase: asset.kind for asset in Folder(folder)[2].assets} == {
        "a denim jacket": "coat", "a dress with a red belt": "dress", "wool": "coat", "a smiling man": "face",
        "a red shirt for a man": "top",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[]", "an object with caption"), ('{"caption": 3}', "an object with caption"), ("{", "is no JSON"),
     ('{"title": "a"}', "unknown keys title"),
     ('{"phrases": {"coat.png": "a coat"}}', "no such asset in assets/ann/: coat.png")],
)  # fmt: skip
def test_words_of_a_folder_that_cannot_be(folder: Path, text: str, expected: str):
    write(folder / "images/ann.json", text)
    with pytest.raises(SampleError, match=expected):
        Folder(folder)[0]


def test_folders_without_pictures(tmp_path: Path):
    with pytest.raises(ValueError, match="no such folder: .*images; the pictures of people"):
        Folder(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"no picture \(.jpg, .jpeg, .png, .webp\) in"):
        Folder(tmp_path)
    for name in ("ann.jpg", "ann.png", "ben.jpg"):
        save(tmp_path / f"images/{name}", drawn().image)
    with pytest.raises(ValueError, match="ann.jpg in .*: another picture has that name but for its ending"):
        Folder(tmp_path)


def test_a_palette_keeps_its_numbers(tmp_path: Path):
    """A map of labels with a palette is numbers, not colours."""
    root = miniatures.viton_hd(tmp_path / "set")
    with Image.open(root / "train/image-parse-v3/00001_00.png") as image:
        assert image.mode == "P"
    np.testing.assert_array_equal(VitonHD(root)[0].parse, drawn().parse)
