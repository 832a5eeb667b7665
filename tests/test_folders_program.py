"""The program that scores folders: what it writes, and what it says of bad input."""

import csv
import hashlib
import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.cli import run
from fcjax.metrics import networks
from fcjax.metrics.protocols import PROTOCOLS
from infer import predictions
from infer.evaluate import main
from infer.predictions import FolderFlags, load_networks, score_folders, table
from tests.scored_folders import (
    NAMES,
    NETWORKS,
    flags_of,
    picture,
    save,
)

pytestmark = pytest.mark.usefixtures("small_protocols")


def test_the_program_writes_what_it_says(folders: tuple[Path, Path], tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(predictions, "load_networks", lambda *_: NETWORKS)
    (folders[0] / "00000_00.png").unlink()
    words = ["--predictions", folders[0], "--truth", folders[1], "--protocol", "ladi-512", "--subset", "--rows", 2]
    words += ["--json", tmp_path / "new/out.json", "--csv", tmp_path / "out.csv", "--worst", tmp_path / "worst.png"]
    run(main, [str(word) for word in words])
    assert "A SUBSET: 1 missing (00000_00) left out" in capsys.readouterr().out
    found = json.loads((tmp_path / "new/out.json").read_text())
    assert found["counts"] == {
        "predictions": 5, "truth": 5,
        "left out": {"missing": 1, "extra": 0, "unreadable": 0, "mis-sized": 0, "unread": 0}
    }  # fmt: skip
    assert found["sizes"] == {"predictions": {"32x24": 5}, "truth": {"64x48": 5}}
    assert len(found["notes"]) == 2
    assert found["notes"][1] == "compared at 32x24 (height x width), pictures are 64x48"
    assert found["protocol"]["name"] == "ladi-512" and found["seeds"] == {"intervals": 0, "kid_subsets": 0}
    assert found["versions"]["numpy"] == np.__version__ and len(found["pairs"]) == 5
    assert found["figures"]["ssim"]["low"] <= found["figures"]["ssim"]["mean"] <= found["figures"]["ssim"]["high"]
    with (tmp_path / "out.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [line["name"] for line in read] == NAMES[1:]
    assert float(read[0]["ssim"]) == found["pairs"][0]["ssim"]
    with Image.open(tmp_path / "worst.png") as image:
        assert image.height > 512
    assert not (tmp_path / "new/out.json.partial").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--protocol", "hrviton", "--metrics", "fid"], "hrviton defines no fid"),
        (["--protocol", "hrviton", "--pairing", "unpaired"], "hrviton compares pairs"),
        (["--protocol", "ladi-512", "--pairing", "unpaired", "--metrics", "ssim"], "ssim compares pairs"),
        (["--protocol", "ladi-512", "--masks", "."], "leave --masks out"),
        (["--protocol", "ladi-512", "--workers", "0"], "workers is 0"),
        ([], "--predictions, --truth and --protocol belong together"),
        (["--protocol", "ladi-512", "--split", "train"], "--predictions makes no use of --split"),
        (["--protocol", "ladi-512", "--metrics", "fid", "--worst", "w.png"], "know no worst pictures"),
        (["--protocol", "catvton-512", "--metrics", "ssim", "lpips"], "LPIPS squeeze needs squeezenet1_1-b8a52dc0.pth"),
        (["--protocol", "catvton-512", "--metrics", "ssim", "lpips"], "without them, --metrics ssim still runs"),
        (["--protocol", "catvton-512"], "fid and kid cannot be had: weights of FID"),
        (["--protocol", "catvton-512"], "(--inception-weights names a file); without them, --metrics ssim still runs"),
        (["--protocol", "catvton-512"], "(--lpips-weights names a file); fid"),
        (["--protocol", "catvton-512", "--metrics", "ssim", "--masks", "."], "holds no mask of 00000_00"),
    ],
)
def test_bad_input_is_one_line(folders: tuple[Path, Path], words: list[str], said: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(main, ["--predictions", str(folders[0]), "--truth", str(folders[1]), *words])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and len(error.strip().splitlines()) == 1


def test_one_picture_is_no_set(folders: tuple[Path, Path], tmp_path: Path):
    """Said before anything is scored."""
    for name in NAMES[1:]:
        (folders[0] / f"{name}.png").unlink()
        (folders[1] / f"{name}.jpg").unlink()
    with pytest.raises(ValueError, match=r"fid and kid compare sets of two .* there is 1: .* --metrics ssim lpips"):
        score_folders(flags_of(folders), tmp_path / "work", NETWORKS, quiet=True)
    with pytest.raises(ValueError, match="^fid compares sets"):
        score_folders(flags_of(folders, metrics=("fid",)), tmp_path / "work", NETWORKS, quiet=True)
    assert not (tmp_path / "work").exists()
    alone = score_folders(flags_of(folders, metrics=("ssim",)), tmp_path / "work", NETWORKS, quiet=True)
    # A mean of one has no interval.
    assert len(alone.figures) == 1 and "ladi-512, paired, 1 picture\n" in table(alone) and "[" not in table(alone)


def test_pictures_smaller_than_a_window_are_named(folders: tuple[Path, Path], tmp_path: Path):
    for folder in folders:
        shutil.rmtree(folder)
        save(folder / "tiny.png", picture(0, 8, 8))
    with pytest.raises(ValueError, match=r"made/tiny.png cannot be compared: SSIM's window is 11 pixels wide"):
        score_folders(flags_of(folders, protocol="hrviton", metrics=("ssim",)), tmp_path / "work", quiet=True)


def test_weights_of_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def load_inception(weights: Path | None, resize: str):
        if weights is None:
            raise ValueError("pt_inception.pth is in no cache")
        return types.SimpleNamespace(file=weights, resize=resize)

    monkeypatch.setattr(networks, "load_inception", load_inception)
    protocol, metrics = PROTOCOLS["ladi-512"], ("ssim", "fid", "kid")
    with pytest.raises(
        ValueError, match=r"is in no cache \(--inception-weights names a file\); .* --metrics ssim still"
    ):
        load_networks(protocol, metrics, FolderFlags())
    (tmp_path / "a.pth").write_bytes(b"weights")
    loaded = load_networks(protocol, metrics, FolderFlags(inception_weights=tmp_path / "a.pth"))
    assert loaded.inception is not None and loaded.lpips is None
    said = f"resize clean, a.pth sha256 {hashlib.sha256(b'weights').hexdigest()}"
    assert loaded.names == {"inception": said}


def test_flags_of_folders_alone_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(main, ["--protocol", "ladi-512"])
    assert stopped.value.code == 2 and "sets makes no use of --protocol" in capsys.readouterr().err


def test_pages_of_several_methods(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """A report of all, and a comparison without names; the same pictures are in both."""
    monkeypatch.setattr(predictions, "load_networks", lambda *_: NETWORKS)
    shutil.copytree(folders[0], tmp_path / "other")
    words = ["--predictions", folders[0], "--also", tmp_path / "other", "--truth", folders[1], "--labels", "one", "two"]
    words += ["--protocol", "ladi-512", "--rows", "2"]
    written = ["--json", tmp_path / "o.json", "--csv", tmp_path / "o.csv", "--html", tmp_path / "report.html"]
    run(main, [str(word) for word in (*words, *written)])
    printed = capsys.readouterr().out
    assert printed.count("ladi-512, paired, 6 pictures") == 2
    assert [line.split() for line in printed.splitlines() if line.endswith("  pictures")] == [
        ["one", "pictures"],
        ["two", "pictures"],
    ]
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["figures"] == found["also"]["two"]["figures"] and found["distances"]["fid"] > 0
    assert found["name"] == "one" and found["also"]["two"]["name"] == "two"
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 4 and "KID, all pictures" in page and "<th>two</th>" in page
    with (tmp_path / "o.csv").open() as file:
        names = [line["name"] for line in csv.DictReader(file)]
    assert names == [f"{own}/{name}" for own in ("one", "two") for name in NAMES]
    run(main, [str(word) for word in (*words, "--html", tmp_path / "votes.html", "--blind")])
    key = json.loads((tmp_path / "votes.key.json").read_text())
    assert len(key["orders"]) == 2 and set(key["orders"][0]) == {"one", "two"}
    assert (tmp_path / "votes.html").read_text().count("<img") == 6
    # Without garments or a truth nobody can tell what is truer to them; a report has pictures and what compares sets.
    unpaired = [*words, "--pairing", "unpaired", "--html"]
    run(main, [str(word) for word in (*unpaired, tmp_path / "quality.html", "--blind")])
    assert list(json.loads((tmp_path / "quality.key.json").read_text())["questions"]) == ["quality"]
    assert "truer" not in (tmp_path / "quality.html").read_text() and "truer" in (tmp_path / "votes.html").read_text()
    run(main, [str(word) for word in (*unpaired, tmp_path / "sets.html")])
    page = (tmp_path / "sets.html").read_text()
    assert page.count("<img") == 4 and page.count("KID, all pictures") == 2 and "Means with" not in page
    # Nothing is written over what is there.
    with pytest.raises(SystemExit):
        run(main, [str(word) for word in (*words, "--csv", tmp_path / "o.csv")])
    assert "o.csv is there, of an earlier run" in capsys.readouterr().err
