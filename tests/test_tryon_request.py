"""Requests of try-on: what a made mask covers, and what is odd about it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fcjax
from fcjax.agnostic import agnostic_mask
from fcjax.cli import run
from infer import tryon, tryon_pairs
from infer.request import KEY, AssetFile, png_metadata
from infer.tryon_request import TryOnRequest
from tests.tryon_model import a_person, flags, write_person


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A person with a body map."""
    write_person(tmp_path)
    Image.fromarray(fcjax.Body(pose="standing").render(50, 30).iuv).save(tmp_path / "iuv.png")
    return tmp_path


def asked(*phrases: str, **changed: Any) -> TryOnRequest:
    """To put on garments of these phrases, on a mask that is made."""
    assets = tuple(AssetFile(f"{number}.png", phrase) for number, phrase in enumerate(phrases))
    return TryOnRequest("a woman", "person.png", assets, **{"iuv": "iuv.png", **changed})


def made_of(files: Path, model: Path, **changed: str) -> list[str]:
    """The program's flags with a body map in place of a mask."""
    words = flags(files, model, iuv=str(files / "iuv.png"), **changed)
    place = words.index("--mask")
    return [*words[:place], *words[place + 2 :]]


def request_in(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.text[KEY])["request"]


@pytest.mark.parametrize(
    ("phrases", "covered"),
    [
        (["a striped shirt"], "upper"),
        (["a beige trench coat", "a blouse"], "upper"),
        (["ripped jeans,"], "lower"),
        (["a red skirt"], "lower"),
        (["a green evening gown"], "dress"),
        (["a striped shirt", "blue jeans"], "outfit"),
        (["a red dress", "a cardigan"], "outfit"),
        (["a shirt and a skirt"], "outfit"),
    ],
)
def test_a_made_mask_covers_what_the_garments_do(phrases: list[str], covered: str):
    request = asked(*phrases)
    assert request.covered == request.made["category"] == covered and not [*request.oddities()]
    # With shoes and a hat as well, as real sets are prepared.
    dressed = asked(*phrases, "white sneakers,", "a straw bonnet", shoes=True, hat=True)
    assert dressed.covered == covered and not [*dressed.oddities()]


@pytest.mark.parametrize(
    ("request_", "covered", "expected"),
    [
        (asked("a thing"), "outfit", ["0.png is 'a thing', which is no garment that is known: --category says"]),
        (asked("a top", "a thing"), "upper", ["1.png is 'a thing', which is no garment that is known"]),
        (asked("a thing", category="lower"), "lower", []),
        (
            asked("a red skirt", category="upper"),
            "upper",
            ["0.png is 'a red skirt', but the mask leaves the legs alone: --category lower covers that, too",
             "the mask covers the upper body of person.png, where nothing is put on: --category lower leaves that"],
        ),
        (asked("a shirt", "jeans", category="upper"), "upper", ["'jeans', but the mask leaves the legs alone"]),
        (asked("a gown", category="lower"), "lower", ["the upper body alone: --category dress covers that, too"]),
        (asked("a shirt", category="outfit"), "outfit", ["the legs of person.png, where nothing is put on: --"]),
        (asked("a shirt", category="dress"), "dress", ["the legs of person.png, where nothing is put on: --"]),
        (asked("ankle boots", shoes=True), "outfit", ["the upper body and the legs of person.png, where nothing"]),
        (asked("a top", "slippers"), "upper", ["1.png is 'slippers', but the mask leaves the feet alone: --shoes"]),
        (asked("a top", "a (knitted) beanie."), "upper", ["but the mask leaves the head alone: --hat covers that"]),
        (asked("a skirt", iuv=None, mask="mask.png"), "lower", []),
    ],
)  # fmt: skip
def test_what_is_odd_about_a_made_mask(request_: TryOnRequest, covered: str, expected: list[str]):
    """A category that is asked for is never changed."""
    found = [*request_.oddities()]
    assert request_.covered == covered and len(found) == len(expected)
    assert all(words in said for words, said in zip(expected, found, strict=True))


def test_a_lone_top_leaves_trousers_on(files: Path, tryon_model: Path, capsys: pytest.CaptureFixture[str]):
    out, again = files / "out.png", files / "again.png"
    run(tryon.main, made_of(files, tryon_model, feather="0"))
    assert "warning: " not in capsys.readouterr().err
    iuv, person = np.asarray(Image.open(files / "iuv.png")), a_person().image
    mask = agnostic_mask(iuv=iuv, category="upper")
    np.testing.assert_array_equal(np.asarray(Image.open(out))[~mask], person[~mask])
    # The picture says what its mask covered, so that words that are learnt later do not change it.
    held = request_in(out)
    assert held["category"] == "upper"
    run(tryon.main, ["--request", str(out), "--out", str(again)])
    assert request_in(again) == held
    np.testing.assert_array_equal(Image.open(again), Image.open(out))
    run(tryon.main, made_of(files, tryon_model, category="outfit"))
    said = capsys.readouterr().err
    assert "warning: the mask covers the legs of " in said and request_in(out)["category"] == "outfit"


def test_a_picture_of_before_masks_followed_from_garments_keeps_its_mask(files: Path, tryon_model: Path):
    run(tryon.main, made_of(files, tryon_model))
    held = {name: value for name, value in request_in(files / "out.png").items() if name != "category"}
    assert held["iuv"] and held["sha256"]
    Image.fromarray(a_person().image).save(files / "old.png", pnginfo=png_metadata(held, "weights"))
    request, _ = tryon.requested(tryon.Flags(request=files / "old.png"))
    assert request.covered == "outfit"
    del held["sha256"]
    (files / "new.json").write_text(json.dumps(held))
    request, _ = tryon.requested(tryon.Flags(request=files / "new.json"))
    assert request.covered == "upper"


HELD = {
    "masked": {"mask": "mask.png", "raw": True},
    "mapped": {"parse": "parse.png", "keypoints": "k.json", "iuv": "iuv.png", "labels": "atr", "category": "upper",
               "margin": 0.1, "shoes": True, "hat": True, "feather": 3},
    "guessed": {"estimate": True, "shoes": True},
}  # fmt: skip


@pytest.mark.parametrize(
    ("held", "words", "expected"),
    [
        ("masked", "--no-raw", {"mask": "mask.png"}),
        ("masked", "--feather 3", {"mask": "mask.png", "feather": 3}),
        ("masked", "--feather 0 --no-raw", {"mask": "mask.png", "feather": 0}),
        ("masked", "--iuv iuv.png", {"mask": "mask.png", "iuv": "iuv.png", "raw": True}),
        ("masked", "--parse parse.png --hat", {"parse": "parse.png", "hat": True, "raw": True}),
        ("masked", "--estimate --category lower", {"estimate": True, "category": "lower", "raw": True}),
        ("mapped", "--mask mask.png", {"mask": "mask.png", "iuv": "iuv.png", "feather": 3}),
        ("mapped", "--raw", {**HELD["mapped"], "raw": True, "feather": None}),
        ("mapped", "--no-raw", HELD["mapped"]),
        ("mapped", "--no-shoes --no-hat", {**HELD["mapped"], "shoes": False, "hat": False}),
        ("mapped", "--estimate", {**HELD["mapped"], "estimate": True, "parse": None, "iuv": None, "keypoints": None}),
        ("guessed", "--iuv iuv.png", {"iuv": "iuv.png", "shoes": True}),
        ("guessed", "--no-estimate --mask mask.png", {"mask": "mask.png"}),
    ],
)
def test_flags_take_back_what_a_request_says(
    files: Path, monkeypatch: pytest.MonkeyPatch, held: str, words: str, expected: dict[str, Any]
):
    """And in a list lines what the flags say."""
    monkeypatch.chdir(files)
    for name in ("parse.png", "k.json"):
        (files / name).touch()
    common = {"prompt": "a woman", "person": "person.png", "assets": [{"path": "shirt.png", "phrase": "a red shirt"}]}
    (files / "r.json").write_text(json.dumps({**common, **HELD[held]}))
    given = flags_of(["--request", "r.json", *words.split()])
    request, _ = tryon.requested(given)
    assert request == TryOnRequest.from_dict({**common, **expected}, "here")
    (files / "list.jsonl").write_text(json.dumps(tryon.given_by(given)))
    [(_, make)] = tryon_pairs.read_pairs(files / "list.jsonl", {**common, **HELD[held]})
    assert make() == request


def test_what_flags_say_together_is_not_replaced(files: Path):
    (files / "r.json").write_text(json.dumps({"prompt": "a woman", "person": "person.png"}))
    shirt = f"{files / 'shirt.png'}=a red shirt"
    for words, expected in (
        (["--mask", "m.png", "--parse", "i.png"], "mask and parse each say what to repaint"),
        (["--mask", "m.png", "--hat"], "the mask says what to repaint: it leaves nothing for hat to do"),
        (["--mask", "m.png", "--raw", "--feather", "0"], "leave one out"),
    ):
        with pytest.raises(ValueError, match=expected):
            tryon.requested(flags_of(["--request", str(files / "r.json"), "--asset", shirt, *words]))


@pytest.mark.parametrize(
    ("role", "named"),
    [("person", "picture"), ("mask", "mask"), ("parse", "parse map"), ("iuv", "body map"), ("keypoints", "keypoints")],
)
def test_files_that_are_nowhere_are_told_with_the_places_searched(
    files: Path, monkeypatch: pytest.MonkeyPatch, role: str, named: str
):
    monkeypatch.chdir(files.parent)
    request = {"prompt": "a woman", "person": "person.png", "assets": [{"path": "shirt.png", "phrase": "a red shirt"}]}
    request |= {"iuv": "iuv.png"} if role in ("person", "keypoints") else {}
    (files / "r.json").write_text(json.dumps({**request, role: "nowhere.png"}))
    with pytest.raises(ValueError, match=f"^no such {named} file: {files / 'nowhere.png'} or nowhere.png$"):
        tryon.requested(tryon.Flags(request=files / "r.json"))


def flags_of(words: list[str]) -> tryon.Flags:
    found = []

    def take(flags: tryon.Flags) -> None:
        found.append(flags)

    run(take, words)
    return found[0]


def test_the_help_shows_switches_as_they_are_typed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        run(tryon.main, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "{None" not in said and "--no-raw" in said and "--no-estimate" in said
