"""The program that tries on: one picture, any kind of file, and what is refused."""

import json
from pathlib import Path

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
from infer import tryon, tryon_fit
from infer.request import KEY
from infer.sampling_request import SamplingFlags
from infer.tryon_request import TryOnRequest
from tests.tryon_model import PROMPT, a_person, flags, refused, write_person


@pytest.fixture(scope="module")
def composer(tryon_model: Path) -> Composer:
    return Composer.load(tryon_model)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_person(tmp_path)


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


def test_a_picture_is_made_again_from_itself(files: Path, tryon_model: Path, tmp_path_factory, capsys):
    """The picture lies in another folder than the request's files."""
    request = {"person": "person.png", "mask": "mask.png", "prompt": PROMPT, "model": str(tryon_model), "steps": 2}
    request["assets"] = [{"path": "shirt.png", "phrase": "a red shirt"}]
    (files / "request.json").write_text(json.dumps(request))
    out, again = (tmp_path_factory.mktemp("made") / name for name in ("out.png", "again.png"))
    run(tryon.main, ["--request", str(files / "request.json"), "--out", str(out), "--seed", "3"])
    run(tryon.main, ["--request", str(out), "--out", str(again)])
    with Image.open(out) as first, Image.open(again) as second:
        assert json.loads(first.text[KEY]) == json.loads(second.text[KEY])
        assert json.loads(first.text[KEY])["request"]["seed"] == 3
        np.testing.assert_array_equal(first, second)
    Image.fromarray(a_person(seed=1).image).save(files / "person.png")
    refused(["--request", str(out), "--out", str(again)], f"made with: {files / 'person.png'}; find the old", capsys)
    run(tryon.main, ["--request", str(out), "--out", str(again), "--person", str(files / "person.png")])
    refused(["--request", str(out), "--person", str(files / "person.png"), "--out", str(out)], "written over", capsys)
    refused(["--request", str(files / "person.png"), "--out", str(again)], "person.png holds no request", capsys)
    refused(["--request", str(files / "no.json"), "--out", str(again)], "no such request file", capsys)
    (files / "request.json").write_text("[1]")
    refused(["--request", str(files / "request.json"), "--out", str(again)], "holds no request of infer.tryon", capsys)


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
        (["--mask", "m.png", "--parse", "i.png"], "mask and parse each say what to repaint"),
        (["--mask", "m.png", "--shoes"], "the mask says what to repaint: it leaves nothing for shoes to do"),
        (
            ["--mask", "m.png", "--category", "upper", "--labels", "atr"],
            "repaint: it leaves nothing for labels and category to do",
        ),
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
    refused(["--asset", "shirt.png=a shirt"], "expected --person and --prompt, or --request", capsys)


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
    assert "'black shoes', but the mask leaves the feet alone: --shoes covers that, too" in capsys.readouterr().err
    run(tryon.main, [*made, "--shoes"])
    assert "--shoes" not in capsys.readouterr().err


def test_beside_a_mask_the_body_map_tells_the_pose(
    files: Path, tiny_model_folder: Path, tryon_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    Image.fromarray(fcjax.Body(pose="standing").render(50, 30).iuv).save(files / "iuv.png")
    read = fcjax.Composer.load(tiny_model_folder, condition="posed_tryon")
    read.save(tmp_path / "posed")
    run(tryon.main, [*flags(files, tmp_path / "posed"), "--iuv", str(files / "iuv.png")])
    assert "body map" not in capsys.readouterr().err
    posed = np.asarray(Image.open(files / "out.png"))
    again = ["--request", str(files / "out.png"), "--out", str(files / "again.png")]
    run(tryon.main, again)
    np.testing.assert_array_equal(np.asarray(Image.open(files / "again.png")), posed)
    run(tryon.main, flags(files, tmp_path / "posed"))
    assert "no body map of the person with u and v" in capsys.readouterr().err
    assert not np.array_equal(np.asarray(Image.open(files / "out.png")), posed)
    # A model that reads none says that it serves nothing.
    run(tryon.main, [*flags(files, tryon_model), "--iuv", str(files / "iuv.png")])
    assert "takes no pose: beside --mask it makes no use of --iuv" in capsys.readouterr().err


def test_a_mask_follows_from_a_parse_map_as_infer_mask_makes_it(files: Path, tryon_model: Path):
    parse = np.zeros((50, 30), np.uint8)
    parse[10:30, 8:22], parse[4:10, 12:18] = Part.UPPER, Part.FACE
    Image.fromarray(parse).save(files / "parse.png")
    request = {"prompt": PROMPT, "person": "person.png", "parse": "parse.png", "category": "upper"}
    request |= {"assets": [{"path": "shirt.png", "phrase": "a red shirt"}]}
    person = tryon_fit.person_of(TryOnRequest.from_dict(request, "here"), files)
    np.testing.assert_array_equal(person.mask, agnostic_mask(parse, category="upper"))
    with pytest.raises(ValueError, match="labels are 'coco'; expected one of viton-hd"):
        TryOnRequest.from_dict({**request, "labels": "coco"}, "here")
    with pytest.raises(ValueError, match=r"labels is \[.lip.\]; expected a name"):
        TryOnRequest.from_dict({**request, "labels": ["lip"]}, "here")


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
