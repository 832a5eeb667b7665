"""What compose, tryon and album share: how the model computes, and how it samples."""

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcjax.cli import run
from fcjax.composer import Composer
from infer import album, compose, tryon


def request(program: ModuleType, folder: Path) -> list[str]:
    """Flags of the least that can be asked of a program."""
    if program is compose:
        return ["--prompt", "a woman", "--out", str(folder / "out.png")]
    if program is album:
        (folder / "album.json").write_text(json.dumps({"prompt": "a woman", "pages": [{}]}))
        return ["--request", str(folder / "album.json"), "--out", str(folder / "album")]
    mask = np.zeros((40, 30), np.uint8)
    mask[10:20, 8:20] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    shirt = np.zeros((20, 20, 4), np.uint8)
    shirt[2:18, 2:18] = (200, 0, 0, 255)
    Image.fromarray(shirt).save(folder / "shirt.png")
    Image.new("RGB", (30, 40), "grey").save(folder / "person.png")
    files = ["--person", str(folder / "person.png"), "--mask", str(folder / "mask.png")]
    return [
        *files,
        "--asset",
        f"{folder / 'shirt.png'}=a red shirt",
        "--prompt",
        "a woman",
        "--out",
        str(folder / "o.png"),
    ]


def refused(program: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        run(program.main, words)
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("program", [compose, tryon, album])
def test_settings_reach_the_model(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: dict[str, Any] = {}

    own = {"guidance": 6.5, "steps": 9}

    def load(path: str, **how: Any) -> Any:
        loaded.update(how)
        return SimpleNamespace(compose=ask, try_on=ask, config=SimpleNamespace(own_sampling=own))

    def ask(*_: Any, **settings: Any) -> None:
        asked = ", ".join(f"{name} {settings[name]}" for name in ("eta", "guidance", "steps"))
        raise ValueError(f"asked for {asked} and {loaded}")

    monkeypatch.setattr(Composer, "load", load)
    monkeypatch.setattr("fcjax.album.make_album", ask)
    words = request(program, tmp_path)
    # What nobody asks for is the model's own.
    assert "asked for eta 0.0, guidance 6.5, steps 9 and {'dtype': None}" in refused(program, words, capsys)
    given = ["--eta", "0.5", "--dtype", "bfloat16", "--guidance", "2", "--steps", "3"]
    line = refused(program, [*words, *given], capsys)
    assert "asked for eta 0.5, guidance 2.0, steps 3 and {'dtype': 'bfloat16'}" in line


@pytest.mark.parametrize("program", [compose, tryon, album])
def test_names_that_are_no_dtype_are_refused(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(program, [*request(program, tmp_path), "--dtype", "bf16"], capsys)
    assert "error: dtype must be one of float32, bfloat16, float16; got 'bf16'" in line
