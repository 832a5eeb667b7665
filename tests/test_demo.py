"""`infer.demo`: a look on two poses, tried on, and an album."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.cli import run
from fcjax.pictures import open_rgb
from infer import compose, demo, tryon
from infer import convert as convert_program


def test_full_looks_are_complete_and_the_same_again() -> None:
    look = demo.full_look(1)
    kinds = {asset.kind for asset in look.assets}
    assert "face" in kinds and ("dress" in kinds or {"top"} < kinds) and "swatch" not in kinds
    assert all(asset.phrase in look.caption for asset in look.assets)
    assert demo.full_look(1).caption == look.caption != demo.full_look(0).caption


def test_a_look_on_two_poses(tiny_model_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "demo"
    run(demo.main, ["--out", str(out), "--model", str(tiny_model_folder), "--steps", "1"])
    assert "sheet.png after" in capsys.readouterr().out
    for pose in demo.POSES:
        with Image.open(out / f"{pose}.png") as image:
            made = np.asarray(image)
        assert made.shape == (32, 32, 3)
        # The request beside the picture makes it again, and so does the picture itself.
        for source in (f"{pose}.json", f"{pose}.png"):
            run(compose.main, ["--request", str(out / source), "--out", str(tmp_path / "again.png")])
            with Image.open(tmp_path / "again.png") as image:
                np.testing.assert_array_equal(np.asarray(image), made)
    with Image.open(out / "sheet.png") as image:
        assert image.width > 4 * 72 and image.height > 2 * 256
    assert not (out / "tryon.png").exists()
    pages = [np.asarray(Image.open(out / f"album/page_{number}.png")) for number in (1, 2, 3, 4)]
    assert len({page.tobytes() for page in pages}) == 4 and (out / "album/sheet.png").is_file()
    asked = json.loads((out / "album.json").read_text())["pages"]
    assert asked[3]["assets"] and all(asset["phrase"] in asked[3]["prompt"] for asset in asked[3]["assets"])


def test_the_look_is_tried_on(tiny_model_folder: Path, tmp_path: Path) -> None:
    convert = [str(tiny_model_folder), str(tmp_path / "tryon"), "--condition", "posed_tryon"]
    run(convert_program.main, convert)
    flags = demo.Flags(tmp_path / "demo", steps=1)
    flags.out.mkdir()
    asked = demo.tryon_flags(demo.full_look(0), demo.full_look(1), str(tmp_path / "tryon"), flags)
    tryon.main(asked)
    assert asked.asset and all(words.split("=")[1] in asked.prompt for words in asked.asset)
    made, person, mask = (np.asarray(Image.open(flags.out / f"{name}.png")) for name in ("tryon", "person", "mask"))
    assert made.shape == person.shape == (256, 192, 3) and (flags.out / "tryon_sheet.png").is_file()
    np.testing.assert_array_equal(made[mask == 0], person[mask == 0])
    assert (made[mask > 0] != person[mask > 0]).mean() > 0.5
    # Garments, person, body map, what stays and the result.
    assert open_rgb(flags.out / "tryon_sheet.png").shape[1] >= 192 * (len(asked.asset) + 4)


def test_bad_flags_are_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    for words, line in (
        (["--out", str(tmp_path / "file")], f"error: cannot write into {tmp_path / 'file'}: File exists\n"),
        (["--out", str(tmp_path), "--look", "-1"], "error: looks count from 0, got -1\n"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run(demo.main, words)
        assert exit_.value.code == 2 and capsys.readouterr().err == line
