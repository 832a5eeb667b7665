"""`train.prepare` on real data sets: shards of each, the report of what is left out, --check, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fcjax.agnostic import agnostic_image
from fcjax.data import Prepared
from fcjax.tokenizer import Tokenizer
from tests import miniatures
from tests.conftest import TOKENIZER
from tests.miniatures import HEIGHT, WIDTH
from train.prepare import main

SIZE = ["--height", str(HEIGHT), "--width", str(WIDTH), "--workers", "1", "--layouts", "1"]
MAKERS = {
    "viton-hd": (miniatures.viton_hd, 3, 0),
    "dresscode": (miniatures.dresscode, 6, 0),
    "deepfashion": (miniatures.deepfashion, 2, 0),
    "folder": (miniatures.own_folder, 2, 1),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_set_becomes_shards(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make, kept, left_out = MAKERS[kind]
    labels = ["--labels", "atr"] if kind == "folder" else []
    main([kind, str(make(tmp_path / "set")), str(tmp_path / "out"), *SIZE, *labels, "--tokenizer", str(TOKENIZER)])
    data, report = Prepared(tmp_path / "out"), json.loads((tmp_path / "out/report.json").read_text())
    assert len(data) == kept and len(report["left_out"]) == left_out
    said = capsys.readouterr().out
    assert said.startswith(f"{kept} samples") and ("report.json says why" in said) == bool(left_out)
    tokenizer = Tokenizer.load(TOKENIZER)
    known = 0
    for number in range(kept):
        record = data[number]
        assert record["image"].shape == record["agnostic"].shape == (HEIGHT, WIDTH, 3)
        assert set(np.unique(record["owners0"])) == set(range(len(record["phrases"]) + 1))
        assert tokenizer.encode_prompt(record["caption"], record["phrases"]).appended == ()
        hidden = record["mask"] > 0
        np.testing.assert_array_equal(record["agnostic"], agnostic_image(record["image"], hidden))
        worn = [place + 1 for place, name in enumerate(record["kinds"]) if name != "face"]
        if (shown := np.isin(record["regions"], worn)).any():
            assert hidden[shown].mean() > 0.9
            known += 1
        assert 0.02 < hidden.mean() < 0.6 and record["iuv"][..., 0].max() <= 24
    assert known


def test_a_broken_picture_lands_in_the_report(tmp_path: Path):
    root = miniatures.viton_hd(tmp_path / "set")
    (root / "train/image/00002_00.jpg").write_bytes(b"\xff\xd8\xff broken")
    (root / "train/image-densepose-iuv/00003_00.png").unlink()
    main(["viton-hd", str(root), str(tmp_path / "out"), *SIZE])
    (broken, bodiless) = json.loads((tmp_path / "out/report.json").read_text())["left_out"]
    assert broken["name"] == "00002_00" and "as a picture" in broken["reason"]
    assert bodiless["name"] == "00003_00" and "its body map is unknown" in bodiless["reason"]
    # Mended, it is made anew.
    miniatures.viton_hd(tmp_path / "set")
    main(["viton-hd", str(root), str(tmp_path / "out"), *SIZE, "--retry"])
    assert len(Prepared(tmp_path / "out")) == 3


def test_a_set_read_otherwise_does_not_continue_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = miniatures.viton_hd(tmp_path / "set")
    main(["viton-hd", str(root), str(tmp_path / "out"), *SIZE])
    assert Prepared(tmp_path / "out")[0]["kinds"] == ["top", "pants", "shoes", "face"]
    with pytest.raises(SystemExit) as ended:
        main(["viton-hd", str(root), str(tmp_path / "out"), *SIZE, "--no-worn"])
    assert ended.value.code == 2 and "begun with other settings (worn)" in capsys.readouterr().err


def test_checking_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = miniatures.viton_hd(tmp_path / "set")
    (root / "train/cloth/00001_00.jpg").unlink()
    before = sorted(tmp_path.rglob("*"))
    main(["viton-hd", str(root), "--check"])
    said = capsys.readouterr().out
    assert "cloth/*.jpg: missing for 1 of 3 (00001_00): these samples are left out" in said
    assert "1 of 3 samples cannot be read: no such file" in said
    main(["viton-hd", str(root), "--check", "--count", "1", "--split", "test"])
    assert "3 samples, 1 of them looked through" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    for path in (root / "train/image").iterdir():
        path.write_text("nothing")
    with pytest.raises(SystemExit) as ended:
        main(["viton-hd", str(root), "--check"])
    assert ended.value.code == 2 and "no sample of" in capsys.readouterr().err


def test_a_set_as_its_makers_give_it_lacks_u_and_v(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """VITON-HD's own DensePose pictures show parts alone: said before anything is written, and by --check."""
    root = miniatures.viton_hd(tmp_path / "set")
    shutil.rmtree(root / "train/image-densepose-iuv")
    for asked in ([str(tmp_path / "out")], ["--check"]):
        with pytest.raises(SystemExit) as ended:
            main(["viton-hd", str(root), *asked, *SIZE])
        said = capsys.readouterr()
        assert ended.value.code == 2 and "none of the 3 samples" in said.err and "--no-need-pose" in said.err
        assert ("3 samples, 3 of them looked through" in said.out) == (asked == ["--check"])
    assert not (tmp_path / "out").exists()
    main(["viton-hd", str(root), "--check", "--no-need-pose"])
    main(["viton-hd", str(root), str(tmp_path / "out"), *SIZE, "--no-need-pose"])
    record = Prepared(tmp_path / "out")[0]
    assert record["iuv"].max() == 0 and record["mask"].max() == 255 and len(Prepared(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["viton-hd", "SET", "OUT"], "no such list"),
        (["dresscode", "SET", "OUT"], "none of upper_body"),
        (["deepfashion", "SET", "OUT"], "no *_segm.png in"),
        (["folder", "SET", "OUT"], "images; the pictures of people are expected there"),
        (["folder", "NOWHERE", "--check"], "no such folder"),
        (["folder", "SET"], "or give --check"),
        (["folder", "SET", "OUT", "--workers", "0"], "workers must be at least 1"),
        (["folder", "SET", "OUT", "--height", "100"], "multiple of 8"),
    ],
)
def test_wrong_requests_end_in_exit_code_2(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "SET").mkdir()
    given = [str(tmp_path / word) if word.isupper() else word for word in arguments]
    with pytest.raises(SystemExit) as ended:
        main(given)
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert ended.value.code == 2 and expected in said and "Traceback" not in said
    assert not (tmp_path / "OUT").exists()
