"""Folders of predictions and truth: what fits, what is refused, what is scored, and how a killed run goes on."""

import csv
import dataclasses
import hashlib
import json
import shutil
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from fcjax.cli import run
from fcjax.metrics import frechet_distance, kernel_distance, networks
from fcjax.metrics.protocols import PROTOCOLS
from fcjax.metrics.ssim import ssim
from fcjax.pictures import open_rgb
from infer import predictions, scoring
from infer.evaluate import main
from infer.folders import match, size_of
from infer.predictions import FolderFlags, lines, load_networks, report, score_folders, table, worst
from infer.scoring import Networks

NAMES = [f"{number:05d}_00" for number in range(6)]


def picture(seed: int, height: int = 32, width: int = 24) -> np.ndarray:
    return (
        np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Six predictions, each a little worse than the one before, and their truth as JPEGs of twice the size."""
    for number, name in enumerate(NAMES):
        truth = picture(number)
        noise = np.random.default_rng(9).normal(size=truth.shape) * (4 + 8 * number)
        save(tmp_path / f"made/{name}.png", (truth + noise).clip(0, 255).astype(np.uint8))
        save(tmp_path / f"true/{name}.jpg", truth.repeat(2, 0).repeat(2, 1))
    return tmp_path / "made", tmp_path / "true"


def mean_features(pictures: np.ndarray) -> np.ndarray:
    """Stands for Inception: the four corners' mean colours."""
    half = pictures.shape[1] // 2
    return np.concatenate([pictures[:, :half].mean((1, 2)), pictures[:, half:].mean((1, 2))], axis=1)


def mean_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Stands for LPIPS."""
    return np.abs(first.astype(float) - second).mean((1, 2, 3)) / 255


NETWORKS = Networks(mean_difference, mean_features, {"lpips": "mean difference", "inception": "halves"})


def flags_of(folders: tuple[Path, Path], **changes) -> FolderFlags:
    return dataclasses.replace(FolderFlags(*folders, protocol="ladi-512", batch=4), **changes)


@pytest.fixture(autouse=True)
def small_protocols(monkeypatch: pytest.MonkeyPatch):
    """Protocols at a sixteenth of their size."""
    for name, protocol in PROTOCOLS.items():
        sizes = {field: getattr(protocol, field) for field in ("height", "width")}
        small = {field: size and 32 * size // 512 for field, size in sizes.items()}
        monkeypatch.setitem(PROTOCOLS, name, dataclasses.replace(protocol, **small))


# ---------------------------------------------------------------------------------------------------------------------
# What fits


def test_stems_fit_whatever_the_endings(folders: tuple[Path, Path]):
    matched = match(*folders)
    assert [pair.name for pair in matched.pairs] == NAMES and not matched.problems.any
    assert matched.pairs[2].prediction == folders[0] / "00002_00.png"
    assert matched.pairs[2].truth == folders[1] / "00002_00.jpg"


def test_everything_that_does_not_fit_is_listed_at_once(folders: tuple[Path, Path]):
    made, true = folders
    (made / "00000_00.png").unlink()
    save(made / "spare.png", picture(0))
    broken = true / "00001_00.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    save(made / "00002_00.png", picture(2, 32, 32))
    (made / "notes.txt").write_text("not a picture")
    with pytest.raises(ValueError) as refused:
        match(made, true)
    said = str(refused.value)
    for words in (
        "1 missing (00000_00)",
        "1 extra (spare)",
        "1 unreadable (00001_00.jpg)",
        "1 mis-sized (00002_00 32x32 for 64x48)",
        "a prediction and its truth have one stem",
        "--subset",
    ):
        assert words in said
    matched = match(made, true, subset=True)
    assert [pair.name for pair in matched.pairs] == NAMES[3:]
    assert matched.problems.counts == {"missing": 1, "extra": 1, "unreadable": 1, "mis-sized": 1, "unread": 0}


def test_what_is_not_read_is_said(folders: tuple[Path, Path]):
    for folder in folders:
        Image.fromarray(picture(0)).save(folder / "more.gif")
        Image.fromarray(picture(1)).save(folder / "read.tif")
    (folders[0] / "rest").mkdir()
    with pytest.raises(ValueError, match=r"2 unread \(.*made/more.gif, .*true/more.gif\); folders .*: .*made/rest"):
        match(*folders)
    matched = match(*folders, subset=True)
    assert len(matched.pairs) == 7 and matched.problems.counts["unread"] == 2
    assert matched.notes == [
        "sizes (height x width) differ: predictions 32x24 (7); truth 64x48 (6), 32x24 (1)",
        f"folders in folders are not searched: {folders[0] / 'rest'}",
    ]


def test_sizes_are_those_of_turned_pictures(folders: tuple[Path, Path]):
    """As cameras store portraits, EXIF turns them."""
    turn = Image.Exif()
    turn[ExifTags.Base.Orientation] = 6
    for ending in ("jpg", "webp", "png", "tif"):
        path = folders[0] / f"turned.{ending}"
        Image.fromarray(picture(0, 24, 32)).save(path, exif=turn)
        assert size_of(path) == open_rgb(path).shape[:2] == (32, 24)
        path.unlink()
    Image.fromarray(picture(3, 32, 24)).save(folders[0] / "00003_00.png", exif=turn)
    with pytest.raises(ValueError, match=r"1 mis-sized \(00003_00"):
        match(*folders)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_pictures_of_floats_are_listed_and_left_out(folders: tuple[Path, Path], value: float):
    Image.fromarray(np.full((32, 24), value, np.float32)).save(folders[0] / "00001_00.png", "TIFF")
    with pytest.raises(ValueError, match=r"1 unreadable \(00001_00.png\)"):
        match(*folders)
    assert len(match(*folders, subset=True).pairs) == 5


def test_a_prediction_may_be_a_pixel_off_but_hr_viton_wants_one_size(folders: tuple[Path, Path]):
    save(folders[0] / "00003_00.png", np.pad(picture(3, 40, 24), ((0, 0), (0, 5), (0, 0))))
    assert len(match(*folders).pairs) == 6
    with pytest.raises(ValueError, match=r"1 mis-sized \(00003_00 40x29 among 32x24\)"):
        match(*folders, one_size=True)


def test_dresscodes_garments_are_no_truth(folders: tuple[Path, Path], tmp_path: Path):
    for number in range(3):
        for kind in (0, 1):
            save(tmp_path / f"images/{number:06d}_{kind}.jpg", picture(number))
        save(tmp_path / f"results/{number:06d}_0.png", picture(number))
    assert [pair.name for pair in match(tmp_path / "results", tmp_path / "images").pairs] == [
        "000000_0", "000001_0", "000002_0"
    ]  # fmt: skip
    (tmp_path / "results/000001_0.png").unlink()
    listed = tmp_path / "test_pairs_paired.txt"
    listed.write_text("000000_0.jpg\t000000_1.jpg\n000002_0.jpg\t000002_1.jpg\n")
    assert len(match(tmp_path / "results", tmp_path / "images", names=listed).pairs) == 2
    listed.write_text("000000_0.jpg 000000_1.jpg\n000009_0.jpg 000009_1.jpg\n")
    with pytest.raises(ValueError, match="names 1 of 2 pictures that .*images lacks: 000009_0"):
        match(tmp_path / "results", tmp_path / "images", names=listed)


def test_unpaired_sets_need_not_share_names(folders: tuple[Path, Path]):
    made, true = folders
    for name in NAMES:
        (made / f"{name}.png").rename(made / f"{name}_in_{name[::-1]}.png")
    with pytest.raises(ValueError, match="6 missing .*6 extra"):
        match(made, true)
    matched = match(made, true, paired=False)
    assert sorted(pair.truth.stem for pair in matched.pairs if pair.truth) == NAMES and not matched.problems.any
    next(iter(made.iterdir())).unlink()
    with pytest.raises(ValueError, match="made holds 5 pictures and .*true 6: two sets of one number"):
        match(made, true, paired=False)
    left = match(made, true, paired=False, subset=True)
    assert sum(pair.truth is not None for pair in left.pairs) == 6
    assert sum(pair.prediction is not None for pair in left.pairs) == 5


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda made: shutil.rmtree(made), "no such folder of pictures"),
        (lambda made: [path.unlink() for path in made.iterdir()], "holds no pictures"),
        (lambda made: save(made / "00000_00.webp", picture(0)), "00000_00.png and 00000_00.webp: one picture a name"),
    ],
)
def test_folders_that_are_none(folders: tuple[Path, Path], break_it, words: str):
    break_it(folders[0])
    with pytest.raises(ValueError, match=words):
        match(*folders)


# ---------------------------------------------------------------------------------------------------------------------
# What is scored


def test_figures_are_those_of_the_protocol(folders: tuple[Path, Path], tmp_path: Path):
    scored = score_folders(flags_of(folders), tmp_path / "work", NETWORKS, quiet=True)
    protocol = PROTOCOLS["ladi-512"]
    stored = [(open_rgb(pair.prediction), open_rgb(pair.truth)) for pair in match(*folders).pairs]
    compared = [protocol.pair(*pair) for pair in stored]
    assert [one["ssim"] for one in scored.figures] == [protocol.similarity(*pair)["ssim"] for pair in compared]
    expected = [float(mean_difference(a[None], b[None])[0]) for a, b in compared]
    assert [one["lpips"] for one in scored.figures] == pytest.approx(expected)
    # FID sees the files as they are: here the truth is twice as large.
    made, true = (np.concatenate([mean_features(pair[side][None]) for pair in stored]) for side in (0, 1))
    assert scored.distances["fid"] == pytest.approx(frechet_distance(made, true), rel=1e-4)
    kid = kernel_distance(made, true)
    assert scored.distances["kid_exact"] == pytest.approx(kid.exact, rel=1e-4)
    summary = scored.summary()
    assert summary["ssim"].count == 6 and summary["ssim"].mean == pytest.approx(
        np.mean([one["ssim"] for one in scored.figures])
    )
    assert worst(scored, 2) == [5, 4]
    said = table(scored)
    assert said.startswith("ladi-512, paired, 6 pictures\nsizes (height x width) differ: predictions 32x24 (6); truth")
    assert "numpy" in said and "KID, all pictures, as every subset of 1000" in said and "±" not in said
    scored = score_folders(
        flags_of(folders, pairing="unpaired", subset=True, metrics=("kid",)), tmp_path / "u", NETWORKS, quiet=True
    )
    scored.matched.pairs[0] = dataclasses.replace(scored.matched.pairs[0], prediction=None)
    assert [name for name, *_ in lines(scored)] == ["KID, mean of 100 subsets", "KID, all pictures"]


@pytest.mark.parametrize(
    ("border", "said"), [("crop", "border cropped"), (None, "border mirrored"), ("reflect", "border mirrored")]
)
def test_ssims_border_is_chosen_and_told(folders: tuple[Path, Path], tmp_path: Path, border, said: str):
    scored = score_folders(flags_of(folders, ssim_border=border, metrics=("ssim",)), tmp_path / "work", quiet=True)
    [pair, *_] = match(*folders).pairs
    shown = PROTOCOLS["ladi-512"].pair(open_rgb(pair.prediction), open_rgb(pair.truth))
    assert scored.figures[0] == {"ssim": ssim(*shown, border=border or "reflect")}
    assert f"SSIM ({said}, as torchmetrics" in table(scored) and report(scored)["ssim"].startswith(said)


def test_catvton_scales_kid_and_resizes_the_reference(folders: tuple[Path, Path], tmp_path: Path):
    scored = score_folders(flags_of(folders, protocol="catvton-512"), tmp_path / "work", NETWORKS, quiet=True)
    pairs = [
        PROTOCOLS["catvton-512"].pair(open_rgb(pair.prediction), open_rgb(pair.truth), None, (False, True))
        for pair in match(*folders).pairs
    ]
    made, true = (np.concatenate([mean_features(pair[side][None]) for pair in pairs]) for side in (0, 1))
    assert scored.distances["fid"] == pytest.approx(frechet_distance(made, true), rel=1e-4)
    assert scored.distances["kid_exact"] == pytest.approx(1000 * kernel_distance(made, true).exact, rel=1e-4)
    assert "KID x 1000" in table(scored)


def test_masks_paste_the_person_back(folders: tuple[Path, Path], tmp_path: Path):
    flags = flags_of(folders, protocol="catvton-512", metrics=("ssim",))
    for number, name in enumerate(NAMES):
        mask = np.full((64, 48), 255 * (number % 2), np.uint8)
        save(tmp_path / f"masks/{name}_mask.png", mask)
    without, pasted = (
        score_folders(dataclasses.replace(flags, masks=masks), tmp_path / str(masks is None), quiet=True).figures
        for masks in (None, tmp_path / "masks")
    )
    assert all(one["ssim"] == 1 for one in pasted[::2]) and pasted[1::2] == without[1::2]


def test_unpaired_pictures_are_compared_as_sets(folders: tuple[Path, Path], tmp_path: Path):
    paired = score_folders(flags_of(folders, protocol="catvton-512"), tmp_path / "a", NETWORKS, quiet=True)
    scored = score_folders(
        flags_of(folders, protocol="catvton-512", pairing="unpaired"), tmp_path / "b", NETWORKS, quiet=True
    )
    assert scored.metrics == ("fid", "kid") and scored.distances == paired.distances
    (folders[0] / "00000_00.png").unlink()
    flags = flags_of(folders, protocol="catvton-512", pairing="unpaired", subset=True)
    assert "5 pictures against 6, A SUBSET: 1 missing" in table(
        score_folders(flags, tmp_path / "c", NETWORKS, quiet=True)
    )


@pytest.mark.parametrize("equal", [2, 6])
def test_equal_pictures_have_no_psnr(folders: tuple[Path, Path], tmp_path: Path, equal: int):
    for name in NAMES[:equal]:
        save(folders[0] / f"{name}.png", open_rgb(folders[1] / f"{name}.jpg"))
    flags = flags_of(folders, metrics=("psnr",))
    scored = score_folders(flags, tmp_path / "work", quiet=True)
    assert scored.figures[0] == {"psnr": None} and scored.equal == equal
    assert [line[::2] for line in lines(scored)] == [
        *([["PSNR (dB)", "4"]] if equal < 6 else []), ["PSNR (dB) of equal pictures", str(equal)]
    ]  # fmt: skip


def test_processes_change_nothing(folders: tuple[Path, Path], tmp_path: Path):
    flags = flags_of(folders, protocol="hrviton", metrics=("ssim", "psnr"))
    shutil.rmtree(folders[1])
    for number, name in enumerate(NAMES):
        save(folders[1] / f"{name}.jpg", picture(number))
    alone, together = (
        score_folders(dataclasses.replace(flags, workers=workers), tmp_path / str(workers), quiet=True)
        for workers in (1, 2)
    )
    assert alone.figures == together.figures and len(alone.figures) == 6


def test_a_killed_run_goes_on(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flags = flags_of(folders, batch=2)
    whole = score_folders(flags, tmp_path / "whole", NETWORKS, quiet=True)
    measured: list[int] = []
    measure = scoring.measure

    def dying(place, *rest):
        measured.append(place)
        if len(measured) == 5:
            raise KeyboardInterrupt
        return measure(place, *rest)

    monkeypatch.setattr(scoring, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        score_folders(flags, tmp_path / "work", NETWORKS, quiet=True)
    with (tmp_path / "work/pairs.jsonl").open("a") as file:
        file.write('["00004_00", {"ss')
    again = score_folders(flags, tmp_path / "work", NETWORKS, quiet=True)
    assert measured == [0, 1, 2, 3, 4, 4, 5]
    assert again.figures == whole.figures and again.distances == whole.distances
    # What is kept belongs to these pictures.
    save(folders[0] / "00000_00.png", picture(77))
    with pytest.raises(ValueError, match="a run with other pictures or settings: delete it"):
        score_folders(flags, tmp_path / "work", NETWORKS, quiet=True)


def test_one_of_many_claims_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All find no claim and write; one is the first, and the others see the whole of it."""
    barrier, write, seen = threading.Barrier(4), Path.write_text, []

    def slowly(path: Path, text: str) -> int:
        barrier.wait()
        half = len(text) // 2
        with path.open("w") as file:
            file.write(text[:half])
            file.flush()
            time.sleep(0.05)
            return file.write(text[half:])

    monkeypatch.setattr(Path, "write_text", slowly)

    def claims(number: int):
        try:
            scoring.claim(tmp_path / "work", {"run": number, "long": "x" * 100})
            seen.append(number)
        except ValueError as error:
            assert "another run" in str(error) or "other pictures" in str(error)

    threads = [threading.Thread(target=claims, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.setattr(Path, "write_text", write)
    assert len(seen) == 1 and [path.name for path in (tmp_path / "work").iterdir()] == ["made-from.json"]
    scoring.claim(tmp_path / "work", {"run": seen[0], "long": "x" * 100})


# ---------------------------------------------------------------------------------------------------------------------
# The program


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
    assert found["sizes"] == {"predictions": {"32x24": 5}, "truth": {"64x48": 5}} and len(found["notes"]) == 1
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
