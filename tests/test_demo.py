"""`infer.demo`: a look on two poses, and an album."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.cli import run
from infer import compose, demo


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
    pages = [np.asarray(Image.open(out / f"album/page_{number}.png")) for number in (1, 2, 3)]
    assert len({page.tobytes() for page in pages}) == 3 and (out / "album/sheet.png").is_file()
    asked = json.loads((out / "album.json").read_text())["pages"]
    assert asked[2]["assets"] and all(asset["phrase"] in asked[2]["prompt"] for asset in asked[2]["assets"])


def test_bad_flags_are_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    for words, line in (
        (["--out", str(tmp_path / "file")], f"error: cannot write into {tmp_path / 'file'}: File exists\n"),
        (["--out", str(tmp_path), "--look", "-1"], "error: looks count from 0, got -1\n"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run(demo.main, words)
        assert exit_.value.code == 2 and capsys.readouterr().err == line
