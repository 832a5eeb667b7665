"""The reader of VITON-HD: a miniature in its makers' layout, with its aliases and traps; what it shares with others."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcjax.data.sources import DeepFashion, DressCode, Folder, Part, SampleError, VitonHD, check, require_body_maps
from tests import miniatures
from tests.miniatures import HEIGHT, WIDTH, drawn, kinds, report, save, write


@pytest.fixture
def viton(tmp_path: Path) -> Path:
    return miniatures.viton_hd(tmp_path / "zalando-hd-resized")


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
    with pytest.raises(
        SampleError, match="u and v are expected as its channels, or the parts alone, as numbers or in VITON-HD's"
    ):
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
