"""Folders of predictions and truth: what fits, what is refused, what is scored, and how a killed run goes on."""

import dataclasses
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from fcjax.metrics import frechet_distance, kernel_distance
from fcjax.metrics.protocols import PROTOCOLS
from fcjax.metrics.ssim import ssim
from fcjax.pictures import open_rgb
from infer import scoring
from infer.folders import match, size_of
from infer.predictions import lines, report, score_folders, table, worst
from tests.scored_folders import (
    NAMES,
    NETWORKS,
    flags_of,
    mean_difference,
    mean_features,
    picture,
    save,
)

pytestmark = pytest.mark.usefixtures("small_protocols")

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


def test_pictures_of_another_size_than_the_protocols_are_told(folders: tuple[Path, Path], tmp_path: Path):
    """Of both sides, too; what compares files as they are stored resizes none."""
    said = "compared at 64x48 (height x width), pictures are 32x24"
    for number, name in enumerate(NAMES):
        (folders[1] / f"{name}.jpg").unlink()
        save(folders[1] / f"{name}.png", picture(number))
    larger = score_folders(flags_of(folders, protocol="promptdresser-1024"), tmp_path / "a", NETWORKS, quiet=True)
    assert report(larger)["notes"] == [said] and f"\n{said}\n" in table(larger)
    for number, changes in enumerate(({}, {"protocol": "promptdresser-1024", "metrics": ("fid",)})):
        same = score_folders(flags_of(folders, **changes), tmp_path / str(number), NETWORKS, quiet=True)
        assert same.notes == []


@pytest.mark.parametrize(
    ("border", "said"), [("crop", "border cropped"), (None, "border cropped"), ("reflect", "border mirrored")]
)
def test_ssims_border_is_chosen_and_told(folders: tuple[Path, Path], tmp_path: Path, border, said: str):
    scored = score_folders(flags_of(folders, ssim_border=border, metrics=("ssim",)), tmp_path / "work", quiet=True)
    [pair, *_] = match(*folders).pairs
    shown = PROTOCOLS["ladi-512"].pair(open_rgb(pair.prediction), open_rgb(pair.truth))
    assert scored.figures[0] == {"ssim": ssim(*shown, border=border or "crop")}
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
