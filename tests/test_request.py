"""Requests as data, from flags and from files, and the sheets that show them."""

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.assets import Asset
from fcjax.body import Body
from fcjax.composer import Composer
from infer import compose
from infer.request import AssetFile, ComposeRequest
from infer.sampling_request import SamplingFlags, settled
from infer.sheet import sheet


def test_a_request_survives_json() -> None:
    request = ComposeRequest(
        "a woman in a red shirt",
        (AssetFile("shirt.png", "a red shirt"), AssetFile("cloth.png", "a skirt of this fabric", whole=True)),
        Body(pose="walking", gender=0.3, joint_rotations=np.zeros((24, 3))),
        model="models/other",
        negative_prompt="a man",
        seed=4,
        guidance=3.0,
        reference_guidance=2.0,
        size=(64, 48),
        boxes=((0, 0, 8, 8), (8, 8, 16, 16)),
        eta=0.5,
        dtype="bfloat16",
    )
    assert ComposeRequest.from_dict(json.loads(json.dumps(request.asdict()))) == request


def test_a_short_request_has_the_composers_defaults() -> None:
    short = ComposeRequest.from_dict({"prompt": "a woman"})
    defaults = {name: parameter.default for name, parameter in inspect.signature(Composer.compose).parameters.items()}
    assert short.settings == {name: defaults[name] for name in short.settings}
    assert short.body == Body() and short.model == "mini"
    # How far guidance goes, and in how many steps, is the model's to say.
    own = {"guidance": 7.5, "steps": 9}
    assert short.guidance is short.steps is None and not own.keys() & short.asdict().keys()
    assert own.items() <= settled(short, own).asdict().items()
    asked = dataclasses.replace(short, guidance=2.0)
    assert {"guidance": 2.0, "steps": 9}.items() <= settled(asked, own).asdict().items()
    assert settled(dataclasses.replace(short, steps=3), own).steps == 3


def test_every_setting_has_a_flag() -> None:
    flags = {field.name for kind in (compose.Flags, SamplingFlags) for field in dataclasses.fields(kind)}
    wanted = {field.name for kind in (ComposeRequest, Body) for field in dataclasses.fields(kind)}
    assert wanted - flags == {"assets", "body", "boxes", "joint_rotations"}


def test_an_equals_sign_may_stand_in_a_phrase_and_in_a_name(tmp_path: Path) -> None:
    assert AssetFile.parse("shirt.png=a = b") == AssetFile("shirt.png", "a = b")
    (tmp_path / "a=b.png").touch()
    assert AssetFile.parse(f"{tmp_path}/a=b.png=a shirt").phrase == "a shirt"


def test_jpeg_assets_are_read_alike_from_a_file_and_from_a_picture(tmp_path: Path) -> None:
    """A JPEG of more than twice the greatest side is decoded at a reduced size: from bytes too."""
    path = tmp_path / "large.jpg"
    Image.effect_noise((2400, 2400), 60).convert("RGB").save(path)
    file = AssetFile(str(path), "a skirt of this fabric", whole=True)
    opened = file.open(file.sealed(file.read(), embed=True).read())
    np.testing.assert_array_equal(opened.image, Asset.open(path, "a skirt of this fabric", whole=True).image)


def test_a_sheet_keeps_aspects_and_shows_labels() -> None:
    tall, wide = np.full((40, 20, 3), 9, np.uint8), np.full((20, 40, 4), (0, 0, 255, 0), np.uint8)
    page = sheet([[("a label of several words", tall), ("transparent", wide)], [("below", tall)]], height=80)
    assert page.width == 8 + 72 + 8 + 80 + 8
    shown = np.asarray(page)
    assert (shown[8:88, 24:64] == 9).all()
    assert (shown[8:88, 88:168] == 255).all(), "transparent pixels are white on a sheet"
    assert (shown[88:140, 8:80] < 128).any(), "a label is written"
    with pytest.raises(ValueError, match="at least one"):
        sheet([[]])
