"""Runs that name no data: the bare command works by itself, and goes on with what it drew."""

import json
from pathlib import Path

import pytest

from configs import load_config
from fcjax.data import Prepared
from train.own_data import SAMPLES, with_data
from train.run import main


def test_the_bare_command(tmp_path: Path) -> None:
    out = tmp_path / "run"
    main(["--config", "tiny", "--out", str(out), "--steps", "1", "--checkpoint-every", "1", "--log-every", "1"])
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines] == [1] and (out / "model/unet/config.json").is_file()
    data = Prepared(out / "data")
    assert len(data) == SAMPLES and data[0]["image"].shape == (64, 48, 3)
    assert json.loads((out / "config.json").read_text())["data"] == str(out / "data")
    # A run that goes on finds what it drew.
    drawn = [*out.glob("data/*.arrayrecord"), *out.glob("vae/vae/*.safetensors")]
    before = [path.stat().st_mtime_ns for path in drawn]
    again = with_data(load_config("tiny"), out)
    assert (again.data, again.vae) == (out / "data", out / "vae") and len(drawn) == 2
    assert [path.stat().st_mtime_ns for path in drawn] == before


def test_what_is_named_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is drawn in the place of a data set that is not there."""
    config = load_config("mini")
    assert with_data(config, tmp_path) is config
    with pytest.raises(SystemExit):
        main(["--config", "tiny", "--out", str(tmp_path / "run"), "--data", str(tmp_path / "nowhere")])
    assert not (tmp_path / "run/data").exists() and "nowhere" in capsys.readouterr().err
