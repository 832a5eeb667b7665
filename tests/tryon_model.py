"""A tiny model that tries on, a person and a shirt, and flags of the program that tries on."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fcjax import pretrained
from fcjax.assets import Asset
from fcjax.cli import run
from fcjax.composer import Composer
from fcjax.person import Person
from fcjax.tokenizer import Tokenizer
from infer import tryon

PROMPT = "a woman in a red shirt"
SHIRT = Asset(np.full((12, 10, 4), (200, 20, 30, 255), np.uint8), "a red shirt")


def save_tryon_model(tiny_model_folder: Path, folder: Path) -> None:
    """Writes the tiny model for try-on, whose conv_in reads the person and the mask."""
    read = pretrained.load(tiny_model_folder, condition="tryon")
    conv_in = read.params["unet"]["conv_in"]
    weights = 0.2 * jax.random.normal(jax.random.key(1), conv_in["kernel"].shape)
    params = {**read.params, "unet": {**read.params["unet"], "conv_in": {**conv_in, "kernel": weights}}}
    # A whole outfit has four parts.
    config = dataclasses.replace(read.config, max_assets=4)
    Composer(config, params, Tokenizer.load(tiny_model_folder / "tokenizer")).save(folder)


def a_person(height: int = 50, width: int = 30, seed: int = 0) -> Person:
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : -width // 4] = True
    return Person(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8), mask)


def write_person(folder: Path) -> Path:
    """A folder with a person, a mask and a shirt."""
    person = a_person()
    Image.fromarray(person.image).save(folder / "person.png")
    Image.fromarray(person.mask).save(folder / "mask.png")
    Image.fromarray(np.pad(SHIRT.image, ((2, 2), (2, 2), (0, 0)))).save(folder / "shirt.png")
    return folder


def flags(files: Path, folder: Path, **changed: str) -> list[str]:
    """Those of the program for these files."""
    given = {"person": files / "person.png", "mask": files / "mask.png", "prompt": PROMPT, "model": folder, "steps": 2}
    given |= {"asset": f"{files / 'shirt.png'}=a red shirt", "out": files / "out.png", **changed}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def refused(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says in one line that ends it."""
    with pytest.raises(SystemExit) as ended:
        run(tryon.main, arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and expected in said
    return said
