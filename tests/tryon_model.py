"""A tiny model that tries on, a person and a shirt."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from fcjax import pretrained
from fcjax.assets import Asset
from fcjax.composer import Composer
from fcjax.person import Person
from fcjax.tokenizer import Tokenizer

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
