"""The program that tries on: one picture, many pairs, any kind of file, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

import fcjax
from fcjax import estimate
from fcjax.agnostic import agnostic_mask
from fcjax.assets import Asset
from fcjax.cli import run
from fcjax.composer import Composer
from fcjax.data.sources import Part
from fcjax.person import Person
from fcjax.pictures import open_rgb
from infer import tryon
from infer.request import KEY
from infer.sampling_request import SamplingFlags
from infer.tryon_request import TryOnRequest
from tests.tryon_model import PROMPT, SHIRT, a_person


@pytest.fixture(scope="module")
def composer(tryon_model: Path) -> Composer:
    return Composer.load(tryon_model)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a person, a mask and a shirt."""
    person = a_person()
    Image.fromarray(person.image).save(tmp_path / "person.png")
    Image.fromarray(person.mask).save(tmp_path / "mask.png")
    Image.fromarray(np.pad(SHIRT.image, ((2, 2), (2, 2), (0, 0)))).save(tmp_path / "shirt.png")
    return tmp_path


def flags(files: Path, folder: Path, **changed: str) -> list[str]:
    given = {"person": files / "person.png", "mask": files / "mask.png", "prompt": PROMPT, "model": folder, "steps": 2}
    given |= {"asset": f"{files / 'shirt.png'}=a red shirt", "out": files / "out.png", **changed}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def test_the_program_writes_picture_sheet_and_request(files: Path, tryon_model: Path, composer: Composer):
    run(tryon.main, flags(files, tryon_model, sheet=str(files / "sheet.png")))
    with Image.open(files / "out.png") as image:
        held = json.loads(image.text[KEY])["request"]
        made = np.asarray(image)
    assert held["prompt"] == PROMPT and len(held["sha256"]) == 3
    [same] = composer.try_on(
        PROMPT, [Asset.open(files / "shirt.png", "a red shirt")], Person.open(files / "person.png", files / "mask.png"),
        steps=2,
    )  # fmt: skip
    np.testing.assert_array_equal(made, same.image)
    assert open_rgb(files / "sheet.png").shape[1] > 4 * 72


def test_pairs_go_on_where_they_stopped_and_name_what_fails(
    files: Path, tryon_model: Path, capsys: pytest.CaptureFixture[str]
):
    line = {"person": "person.png", "mask": "mask.png", "prompt": PROMPT}
    line["assets"] = [{"path": "shirt.png", "phrase": "a red shirt"}]
    lines = [
        {**line, "name": "a.png"},
        {**line, "name": "b.png", "mask": "nowhere.png"},
        {**line, "name": "c.png", "seed": 1},
        {**line, "name": "d.png", "reference_guidance": "2"},
        {**line, "name": "e.png", "person": 300 * "x"},
        {**line, "name": "f.png", "model": "nowhere"},
        {**line, "name": "g.png", "model": "nowhere"},
        {**line, "name": "h.png", "model": "nowhere", "sampler": "foo"},
    ]
    # As Windows' editor writes it.
    text = "\ufeff" + "\n".join(map(json.dumps, lines))
    (files / "pairs.jsonl").write_text(text, encoding="utf-8")
    arguments = [
        "--pairs",
        str(files / "pairs.jsonl"),
        "--out",
        str(files / "made"),
        "--model",
        str(tryon_model),
        "--steps",
        "2",
    ]
    with pytest.raises(SystemExit) as ended:
        run(tryon.main, arguments)
    assert ended.value.code == 2 and "6 of 8 pairs failed" in capsys.readouterr().err
    failed = json.loads((files / "made" / "failed.json").read_text())
    assert "no file's name: File name too long" in failed.pop("e.png")
    assert failed.pop("h.png").startswith("sampler must be one of ddim")
    assert "nowhere" in failed.pop("f.png") and "nowhere" in failed.pop("g.png")
    assert failed == {
        "b.png": "no such mask file: nowhere.png",
        "d.png": "reference_guidance is '2'; expected a number",
    }
    first = (files / "made" / "a.png").stat().st_mtime_ns
    Image.fromarray(a_person().mask).save(files / "nowhere.png")
    (files / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines[:3])))
    run(tryon.main, arguments)
    assert "1 pictures made, 2 were there" in capsys.readouterr().out
    assert (files / "made" / "a.png").stat().st_mtime_ns == first and not (files / "made" / "failed.json").exists()
    pictures = [open_rgb(files / "made" / f"{name}.png") for name in "abc"]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"prompt": "a man in a red shirt"}, "a.png, was made with another prompt: remove them, or name another --out"),
        ({"seed": 3, "feather": 1}, "was made with another feather, seed"),
        ({"mask": "other.png"}, "was made with another mask"),
    ],
)
def test_pictures_of_another_request_are_not_taken_for_these(
    files: Path, tryon_model: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], expected: str
):
    run(tryon.main, listed(files, tryon_model))
    line = json.loads((files / "pairs.jsonl").read_text())
    (files / "other.png").write_bytes((files / "mask.png").read_bytes())
    (files / "pairs.jsonl").write_text(json.dumps({**line, **changed}))
    refused(listed(files, tryon_model, anew=False), expected, capsys)


def test_pictures_of_other_files_or_weights_are_not_taken_for_these(
    files: Path, tryon_model: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
):
    run(tryon.main, listed(files, tryon_model))
    run(tryon.main, listed(files, tryon_model))
    assert "0 pictures made, 1 were there" in capsys.readouterr().out
    Image.fromarray(a_person(seed=1).image).save(files / "person.png")
    refused(listed(files, tryon_model), "was made with another file person.png", capsys)
    Image.fromarray(a_person().image).save(files / "person.png")
    # The same folder with other weights in it.
    copy = tmp_path_factory.mktemp("models") / "copy"
    shutil.copytree(tryon_model, copy)
    run(tryon.main, [*listed(files, copy), "--out", str(files / "copied")])
    weights = next((copy / "binder").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    refused([*listed(files, copy), "--out", str(files / "copied")], "was made with another weights", capsys)
    (files / "made" / "a.png").write_bytes((files / "person.png").read_bytes())
    refused(listed(files, tryon_model), "was made with another program", capsys)


def listed(files: Path, tryon_model: Path, anew: bool = True) -> list[str]:
    """The flags of a list of one pair, which is written where it is not there."""
    line = {"name": "a.png", "person": "person.png", "mask": "mask.png", "prompt": PROMPT}
    line["assets"] = [{"path": "shirt.png", "phrase": "a red shirt"}]
    if anew:
        (files / "pairs.jsonl").write_text(json.dumps(line))
    given = {"pairs": files / "pairs.jsonl", "out": files / "made", "model": tryon_model, "steps": 2}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def refused(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        run(tryon.main, arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and expected in said
    return said


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"person": "nobody.png"}, "no such picture file: nobody.png"),
        ({"prompt": " "}, "prompt is empty"),
        ({"model": "nowhere"}, "nowhere"),
        ({"out": "out.jpg"}, "its name must end in .png"),
        ({"sheet": "out.png"}, "out.png is named for two pictures"),
        ({"out": "person.png"}, "person.png is read and would be written over"),
        ({"category": "shoes"}, "invalid choice"),
    ],
)
def test_wrong_requests_end_in_one_line(
    files: Path,
    tryon_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, str],
    expected: str,
):
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as ended:
        run(tryon.main, flags(files, tryon_model, **changed))
    assert ended.value.code == 2 and expected in capsys.readouterr().err


def test_something_must_say_what_to_repaint(files: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--person", str(files / "person.png"), "--prompt", PROMPT]
    dressed = [*arguments, "--asset", f"{files / 'shirt.png'}=a red shirt"]
    for more, expected in (
        ([], "give --mask (white is repainted), or --iuv"),
        (["--mask", "m.png", "--iuv", "i.png"], "mask and iuv each say what to repaint"),
        (["--mask", "m.png", "--shoes"], "the one given says what to repaint"),
        (["--mask", "m.png", "--parse", "p.png", "--keypoints", "k.json"], "mask and parse and keypoints each say"),
        (["--keypoints", "k.json"], "or --iuv or --parse"),
        (["--mask", "m.png", "--raw", "--feather", "2"], "which has no edge to feather"),
    ):
        with pytest.raises(SystemExit):
            run(tryon.main, [*dressed, *more])
        assert expected in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tryon.main, [*arguments, "--mask", str(files / "mask.png")])
    assert "there is nothing to try on" in capsys.readouterr().err
    refused(["--asset", "shirt.png=a shirt"], "expected --person and --prompt, or --pairs", capsys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no pair"),
        ("{", ":1 is no JSON"),
        ('{"name": "\u2028"', ":1 is no JSON (Expecting ',' delimiter"),
        ("[1]", ":1 must be a JSON object"),
        ('{"name": "../a.png"}', "expected a file name that ends in .png"),
        ('{"name": "a.png"}\n{"name": "a.png"}', "stands in the list twice"),
    ],
)
def test_lists_that_cannot_be_read(files: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str):
    (files / "pairs.jsonl").write_text(text)
    with pytest.raises(SystemExit) as ended:
        run(tryon.main, ["--pairs", str(files / "pairs.jsonl"), "--out", str(files / "made")])
    assert ended.value.code == 2 and expected in capsys.readouterr().err
    assert not (files / "made").exists()


def test_files_beside_a_list_go_before_those_of_the_working_folder(
    files: Path, tryon_model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.fromarray(a_person(seed=1).image).save(elsewhere / "person.png")
    monkeypatch.chdir(elsewhere)
    run(tryon.main, listed(files, tryon_model))
    made, person = open_rgb(files / "made" / "a.png"), a_person()
    np.testing.assert_array_equal(made[~person.mask], person.image[~person.mask])


def test_a_list_in_another_encoding_is_told(files: Path, capsys: pytest.CaptureFixture[str]):
    (files / "pairs.jsonl").write_bytes('{"prompt": "été"}'.encode("latin-1"))
    refused(
        ["--pairs", str(files / "pairs.jsonl"), "--out", str(files / "made")], "pairs.jsonl is not in UTF-8", capsys
    )


def test_the_colours_of_a_photograph_keep_their_profile(files: Path, tryon_model: Path):
    """Pixels outside the mask are the same, so their meaning must be."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(a_person().image).save(files / "person.png", icc_profile=profile)
    run(tryon.main, flags(files, tryon_model))
    with Image.open(files / "out.png") as image:
        assert image.info["icc_profile"] == profile


def test_shoes_that_the_mask_would_leave_on_are_warned_of(
    files: Path, tryon_model: Path, capsys: pytest.CaptureFixture[str]
):
    Image.fromarray(fcjax.Body(pose="standing").render(50, 30).iuv).save(files / "iuv.png")
    arguments = flags(files, tryon_model, prompt="a woman in black shoes", asset=f"{files / 'shirt.png'}=black shoes")
    place = arguments.index("--mask")
    made = [*arguments[:place], *arguments[place + 2 :], "--iuv", str(files / "iuv.png")]
    run(tryon.main, made)
    assert "'black shoes', but the mask leaves the feet as it is: --shoes covers that, too" in capsys.readouterr().err
    run(tryon.main, [*made, "--shoes"])
    assert "--shoes" not in capsys.readouterr().err


def test_a_mask_follows_from_a_parse_map_as_infer_mask_makes_it(files: Path, tryon_model: Path):
    parse = np.zeros((50, 30), np.uint8)
    parse[10:30, 8:22], parse[4:10, 12:18] = Part.UPPER, Part.FACE
    Image.fromarray(parse).save(files / "parse.png")
    request = {"prompt": PROMPT, "person": "person.png", "parse": "parse.png", "category": "upper"}
    request |= {"assets": [{"path": "shirt.png", "phrase": "a red shirt"}]}
    person = tryon.person_of(TryOnRequest.from_dict(request, "here"), files)
    np.testing.assert_array_equal(person.mask, agnostic_mask(parse, category="upper"))
    with pytest.raises(ValueError, match="labels are 'coco'; expected one of viton-hd"):
        TryOnRequest.from_dict({**request, "labels": "coco"}, "here")


def test_a_whole_outfit_in_one_pass(files: Path, tryon_model: Path):
    """Top, skirt, shoes and hat on a mask that is made of the body map."""
    body = fcjax.Body(pose="standing").render(64, 48)
    person = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    Image.fromarray(person).save(files / "person.png")
    Image.fromarray(body.iuv).save(files / "iuv.png")
    worn = ("a red shirt", "a blue skirt", "black shoes", "a white hat")
    given = {
        "person": files / "person.png",
        "iuv": files / "iuv.png",
        "model": tryon_model,
        "steps": 2,
        "category": "outfit",
    }
    given |= {"prompt": f"a woman in {worn[0]}, {worn[1]}, {worn[2]} and {worn[3]}", "out": files / "out.png"}
    arguments = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    for number, phrase in enumerate(worn):
        color = (60 * number, 200 - 40 * number, 90, 255)
        picture = np.pad(np.full((12, 10, 4), color, np.uint8), ((2, 2), (2, 2), (0, 0)))
        Image.fromarray(picture).save(files / f"{number}.png")
        arguments += ["--asset", f"{files / f'{number}.png'}={phrase}"]
    run(tryon.main, [*arguments, "--shoes", "--hat", "--feather", "0"])
    with Image.open(files / "out.png") as image:
        held, made = json.loads(image.text[KEY])["request"], np.asarray(image)
    assert [asset["phrase"] for asset in held["assets"]] == list(worn) and held["shoes"] and held["hat"]
    changed = (made != person).any(axis=-1)
    part, top = body.part, np.flatnonzero(body.foreground.any(axis=1))[0]
    for place in (np.isin(part, (1, 2)), np.isin(part, range(7, 15)), np.isin(part, (5, 6))):
        assert changed[place].mean() > 0.8
    # Above the head, where a hat comes, but not in the face.
    assert changed[:top].any() and not changed[body.face_mask].mean() > 0.5
    mask = agnostic_mask(iuv=body.iuv, category="outfit", shoes=True, hat=True)
    np.testing.assert_array_equal(made[~mask], person[~mask])


KINDS = ("EXIF", "CMYK", "16-bit", "RGBA", "LA", "L", "P", "P, transparent")


@pytest.mark.parametrize("kind", KINDS)
def test_a_person_of_any_kind_of_picture(files: Path, tryon_model: Path, kind: str):
    """Everything outside the mask is the file's picture as one sees it: upright, on white, in 8 bits."""
    grey = np.tile(np.linspace(0, 255, 30).astype(np.uint8), (50, 1))
    seen = np.dstack([grey] * 3)
    path, alpha = files / "kind.png", np.full(grey.shape, 255, np.uint8)
    alpha[:10] = 0
    if kind == "EXIF":
        path, exif = files / "kind.jpg", Image.Exif()
        exif[0x0112] = 6  # turned to the right to be seen
        Image.fromarray(np.rot90(seen)).save(path, exif=exif, quality=95)
    elif kind == "CMYK":
        path = files / "kind.jpg"
        Image.fromarray(seen).convert("CMYK").save(path, quality=95)
    elif kind == "16-bit":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    elif kind == "RGBA":
        Image.fromarray(np.dstack([seen, alpha])).save(path)
    elif kind == "LA":
        Image.fromarray(np.dstack([grey, alpha])).save(path)
    elif kind == "P, transparent":
        palette = Image.fromarray(np.where(alpha > 0, np.maximum(grey, 1), 0).astype(np.uint8))
        palette.putpalette([value for number in range(256) for value in (number, number, number)])
        palette.save(path, transparency=0)
    else:
        Image.fromarray(grey).convert(kind).save(path)
    if kind in ("RGBA", "LA", "P, transparent"):
        seen = np.where(alpha[..., None] > 0, seen, 255)
    run(tryon.main, flags(files, tryon_model, person=str(path)))
    made, mask = open_rgb(files / "out.png"), a_person().mask
    assert made.shape == seen.shape
    np.testing.assert_allclose(made[~mask].astype(int), seen[~mask], atol=6 if path.suffix == ".jpg" else 1)
    np.testing.assert_array_equal(made[~mask], open_rgb(path)[~mask])
    assert (made[mask] != seen[mask]).any()


def test_photographs_and_maps_without_a_person(
    files: Path, tryon_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Image.fromarray(np.zeros((50, 30, 3), np.uint8)).save(files / "empty.png")
    arguments = flags(files, tryon_model)
    place = arguments.index("--mask")
    without = [*arguments[:place], *arguments[place + 2 :]]
    refused([*without, "--iuv", str(files / "empty.png")], "the maps show nothing of a person to be repainted", capsys)

    def unsure(square: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        return np.zeros((39, 5)), 0.02, np.full((256, 256), -9.0)

    monkeypatch.setattr(estimate, "_model", lambda: unsure)
    said = refused([*without, "--estimate"], "no person is found in the picture", capsys)
    assert "second best: give a parse map or a DensePose map" in said
    assert not (files / "out.png").exists()


def test_flags_of_zero_are_said(files: Path):
    sampling = SamplingFlags(guidance=0.0, reference_guidance=0.0, seed=0, steps=0)
    asked = tryon.given_by(tryon.Flags(feather=0, sampling=sampling))
    assert asked == {"feather": 0, "guidance": 0.0, "reference_guidance": 0.0, "seed": 0, "steps": 0}
