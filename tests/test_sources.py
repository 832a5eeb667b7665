"""Readers of real data sets: miniatures in their makers' layouts, with their aliases and traps."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcjax.data.sources import (
    DeepFashion,
    DressCode,
    Folder,
    Part,
    RawSample,
    SampleError,
    Source,
    VitonHD,
    check,
    require_body_maps,
)
from fcjax.data.sources.files import read_uv
from tests import miniatures
from tests.miniatures import HEIGHT, WIDTH, drawn, save, write


@pytest.fixture
def viton(tmp_path: Path) -> Path:
    return miniatures.viton_hd(tmp_path / "zalando-hd-resized")


@pytest.fixture
def dresscode(tmp_path: Path) -> Path:
    return miniatures.dresscode(tmp_path / "DressCode")


@pytest.fixture
def deepfashion(tmp_path: Path) -> Path:
    return miniatures.deepfashion(tmp_path / "DeepFashion")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return miniatures.own_folder(tmp_path / "mine")


def kinds(sample: RawSample) -> list[str]:
    return [asset.kind for asset in sample.assets]


def report(source: Source) -> str:
    return "\n".join(check(source)[0])


# ---------------------------------------------------------------------------------------------------------------------
# VITON-HD


def test_viton_hd_is_read_as_it_lies(viton: Path):
    source = pickle.loads(pickle.dumps(VitonHD(viton)))
    sample, person = source[0], drawn()
    assert len(source) == 3 and source.name(1) == "00002_00" and sample.person == "woman"
    assert np.abs(sample.image.astype(int) - person.image).mean() < 8  # a JPEG
    np.testing.assert_array_equal(sample.parse, person.parse)
    np.testing.assert_array_equal(sample.iuv, person.iuv)
    # The 25 points as 18, of the person that OpenPose is surest of.
    np.testing.assert_allclose(sample.keypoints, person.keypoints)
    top, *others = sample.assets
    assert top.kind == "top" and [asset.kind for asset in others] == ["pants", "shoes", "face"]
    np.testing.assert_array_equal(top.region, person.parse == Part.UPPER)
    assert top.picture.shape == (40, 30, 4) and set(np.unique(top.picture[..., 3])) == {0, 255}
    assert (top.picture[..., 3] == 255).sum() == pytest.approx(28 * 20, abs=20)
    assert kinds(VitonHD(viton, worn=False)[0]) == ["top"]


def test_viton_hds_lists_are_traps(viton: Path):
    """The second column of the training list is another's garment; the test list is the unpaired one."""
    for split in ("train", "test"):
        worn, other = VitonHD(viton, split)[0], VitonHD(viton, split, paired=False)[0]
        green = [int(np.median(sample.assets[0].picture[20, 10:20, 1])) for sample in (worn, other)]
        assert abs(green[0] - 30) < 12 and abs(green[1] - 90) < 12
        assert worn.assets[0].region is not None and other.assets[0].region is None
    write(viton / "test_pairs_unpaired.txt", "00001_00.jpg 00003_00.jpg\n")
    unpaired = VitonHD(viton, "test", paired=False)
    assert len(unpaired) == 1 and abs(int(unpaired[0].assets[0].picture[20, 15, 1]) - 150) < 12
    assert len(VitonHD(viton, "test")) == 3
    assert "train_pairs.txt: 3 of 3 lines name another garment than the person wears" in report(VitonHD(viton))


def test_viton_hds_aliases(tmp_path: Path):
    source = VitonHD(miniatures.viton_hd(tmp_path / "set", aliases=True))
    sample = source[0]
    assert sample.parse is not None and sample.keypoints is not None and sample.assets[0].picture.shape[2] == 4
    said = report(source)
    for line in ("image-parse/ is read for image-parse-v3/", "openpose-json/ is read for", "cloth_mask/ is read for"):
        assert line in said
    assert "missing" not in said


def test_viton_hds_tags(viton: Path):
    miniatures.tagged(viton, "00001_00.jpg")
    source = VitonHD(viton)
    top, other = source[0].assets[0], source[1].assets[0]
    assert (top.color, top.adjectives, top.noun) == (None, ("short sleeve",), "t-shirts") and other.noun is None
    write(viton / "train/vitonhd_train_tagged.json", '{"data": [{"file": 1}]}')
    with pytest.raises(ValueError, match="file_name and tag_info of each garment are expected"):
        VitonHD(viton)


def test_what_viton_hd_lacks_is_said(viton: Path):
    (viton / "train/image-parse-v3").rename(viton / "train/elsewhere")
    (viton / "train/cloth/00002_00.jpg").unlink()
    (viton / "train/image/00003_00.jpg").write_bytes((viton / "train/image/00003_00.jpg").read_bytes()[:200])
    save(viton / "train/image/spare.jpg", drawn().image)
    source = VitonHD(viton)
    assert source[0].parse is None and kinds(source[0]) == ["top"]
    for index, expected in ((1, "no such file: .*cloth/00002_00.jpg"), (2, "cannot read .*00003_00.jpg as a picture")):
        with pytest.raises(SampleError, match=expected):
            source[index]
    with pytest.raises(IndexError):
        source[3]
    lines, usable = check(source)
    said = "\n".join(lines)
    assert usable == 1 and "3 samples, 3 of them" in lines[0]
    assert "image-parse-v3/*.png: missing for 3 of 3 (00001_00, 00002_00, 00003_00): no cut-outs, no face" in said
    assert "cloth/*.jpg: missing for 1 of 3 (00002_00): these samples are left out" in said
    assert "train/image/: 1 files stand in no line of train_pairs.txt (spare)" in said
    assert "2 of 3 samples cannot be read" in said and "no vitonhd_train_tagged.json" in said


@pytest.mark.parametrize(
    ("source", "make", "removed", "named"),
    [
        (VitonHD, miniatures.viton_hd, "train/image-densepose-iuv/*.png", "train/image-densepose-iuv/*.png"),
        (DressCode, miniatures.dresscode, "*/dense/*_uv.npz", "dense/*_5.png and upper_body/dense/*_5_uv.npz"),
        (DeepFashion, miniatures.deepfashion, "densepose/*", "densepose/*_densepose.png"),
        (Folder, miniatures.own_folder, "iuv/*", "iuv/*.png"),
    ],
)
def test_a_set_without_body_maps_is_refused(source: Any, make: Any, removed: str, named: str, tmp_path: Path):
    """One sample that has its map is enough; DressCode's parts are none without u and v."""
    opened = source(make(tmp_path))
    for path in list(tmp_path.glob(removed)):
        require_body_maps(opened)
        path.unlink()
    with pytest.raises(ValueError, match=f"has a body map.*{re.escape(named)} are read .*--no-need-pose"):
        require_body_maps(opened)


def test_only_the_samples_that_are_read_must_have_a_body_map(viton: Path):
    (viton / "train/image-densepose-iuv/00001_00.png").unlink()
    require_body_maps(VitonHD(viton), 2)
    with pytest.raises(ValueError, match="none of the 1 samples"):
        require_body_maps(VitonHD(viton), 1)


def test_parts_are_read_from_viton_hds_renderings(viton: Path):
    """JPEG blurs thin limbs at 128x96 (94 % of a body are right at 1024x768); without it all are right."""
    (viton / "train/image-densepose-iuv/00001_00.png").unlink()
    sample, charts = VitonHD(viton)[0], drawn().iuv[..., 0]
    assert sample.iuv is None and not sample.parts[..., 1:].any()
    read = sample.parts[..., 0]
    assert ((read > 0) == (charts > 0)).mean() > 0.98 and (read == charts)[charts > 0].mean() > 0.65
    (viton / "train/image-densepose/00001_00.jpg").unlink()
    save(viton / "train/image-densepose/00001_00.png", miniatures.rendered(charts))
    np.testing.assert_array_equal(VitonHD(viton)[0].parts[..., 0], charts)
    (viton / "train/image-densepose/00001_00.png").unlink()
    save(viton / "train/image-densepose/00001_00.jpg", drawn().image)
    with pytest.raises(SampleError, match="u and v are expected as its channels, or the parts in VITON-HD's colours"):
        VitonHD(viton)[0]


def test_maps_of_another_size_are_brought_to_the_pictures(viton: Path):
    person = drawn()
    small = miniatures.labels(person.parse, "viton-hd")[::2, ::2]
    save(viton / "train/image-parse-v3/00001_00.png", small)
    save(viton / "train/image-parse-v3/00002_00.png", small[:, :20])
    source = VitonHD(viton)
    parse = source[0].parse
    assert parse.shape == (HEIGHT, WIDTH) and (parse == person.parse).mean() > 0.95
    with pytest.raises(SampleError, match=r"00002_00.png is 64x20 \(height x width\), the picture 128x96"):
        source[1]
    assert "not of the picture's size for 2 (00001_00: 64x48 for 128x96, 00002_00: 64x20 for 128x96)" in report(source)


def test_labels_and_maps_that_cannot_be(viton: Path):
    wrong = drawn().parse.copy()
    wrong[0, 0] = 20
    save(viton / "train/image-parse-v3/00001_00.png", wrong)
    save(viton / "train/image-parse-v3/00002_00.png", drawn().image)
    save(viton / "train/image-densepose-iuv/00003_00.png", drawn().image)
    source = VitonHD(viton)
    for index, expected in (
        (0, "labels 0 to 19; got .* with 0 to 20"),
        (1, r"is a picture in colours \(RGB\); one number for each pixel"),
        (2, "is no DensePose map: the parts 0 to 24"),
    ):
        with pytest.raises(SampleError, match=expected):
            source[index]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{", "is no JSON"), ('{"men": 1}', "no JSON of OpenPose"),
     ('{"people": [{"pose_keypoints_2d": [1, 2]}]}', "no JSON of OpenPose"),
     ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "1 keypoints a person; OpenPose's 18 or 25")],
)  # fmt: skip
def test_keypoints_that_cannot_be(viton: Path, text: str, expected: str):
    write(viton / "train/openpose_json/00001_00_keypoints.json", text)
    with pytest.raises(SampleError, match=expected):
        VitonHD(viton)[0]


def test_nobody_has_no_keypoints(viton: Path):
    write(viton / "train/openpose_json/00001_00_keypoints.json", '{"people": []}')
    assert VitonHD(viton)[0].keypoints is None


def test_folders_that_are_no_viton_hd(viton: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no such folder: .*nowhere \(VITON-HD is expected there\)"):
        VitonHD(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no such list: .*train_pairs.txt"):
        VitonHD(tmp_path)
    with pytest.raises(ValueError, match="VITON-HD has train and test"):
        VitonHD(viton, "val")  # pyright: ignore[reportArgumentType]
    write(viton / "train_pairs.txt", "00001_00.jpg\n")
    with pytest.raises(ValueError, match="line 1 is too short; 2 columns"):
        VitonHD(viton)
    write(viton / "train_pairs.txt", "")
    with pytest.raises(ValueError, match="the list is too short"):
        VitonHD(viton)
    (viton / "test/image").rename(viton / "test/images")
    with pytest.raises(ValueError, match="VITON-HD keeps the test set's pictures there"):
        VitonHD(viton, "test")


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


def test_folders_that_are_no_deepfashion(deepfashion: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no \\*_segm.png in"):
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
