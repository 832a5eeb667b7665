"""Lists of pairs to try on: what is made, what stays, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fcjax.cli import run
from fcjax.pictures import open_rgb
from infer import tryon
from infer.request import KEY, png_metadata, read_png_metadata, weights_digest
from infer.tryon_request import TryOnRequest
from tests.tryon_model import PROMPT, a_person, refused, write_person


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_person(tmp_path)


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
        "b.png": f"no such mask file: {files / 'nowhere.png'} or nowhere.png",
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
    refused(listed(files, tryon_model), f"was made with another file {files / 'person.png'}", capsys)
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


def test_pictures_hold_how_they_were_sampled(files: Path, tryon_model: Path, capsys: pytest.CaptureFixture[str]):
    made, weights = files / "made" / "a.png", weights_digest(tryon_model)
    run(tryon.main, listed(files, tryon_model))
    held, _ = read_png_metadata(made)
    assert held["guidance"] == 1.5 and held["steps"] == 2
    # Of before these were the model's own, they hold none where they had those of every model.
    del held["guidance"], held["steps"]
    Image.open(made).save(made, pnginfo=png_metadata(held, weights))
    before = [*listed(files, tryon_model), "--steps", "20"]
    run(tryon.main, before)
    run(tryon.main, [*before, "--guidance", "1.5"])
    assert capsys.readouterr().out.count("0 pictures made, 1 were there") == 2
    refused([*before, "--guidance", "3"], "was made with another guidance:", capsys)
    refused(listed(files, tryon_model), "was made with another steps:", capsys)
    said, _, _ = TryOnRequest.read(made)
    assert said["steps"] == 20 and said["guidance"] == 1.5


def listed(files: Path, tryon_model: Path, anew: bool = True) -> list[str]:
    """The flags of a list of one pair, which is written where it is not there."""
    line = {"name": "a.png", "person": "person.png", "mask": "mask.png", "prompt": PROMPT}
    line["assets"] = [{"path": "shirt.png", "phrase": "a red shirt"}]
    if anew:
        (files / "pairs.jsonl").write_text(json.dumps(line))
    given = {"pairs": files / "pairs.jsonl", "out": files / "made", "model": tryon_model, "steps": 2}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


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


@pytest.mark.parametrize("flag", ["--request", "--sheet"])
def test_flags_of_one_picture_are_refused_beside_a_list(
    files: Path, tryon_model: Path, capsys: pytest.CaptureFixture[str], flag: str
):
    (files / "r.json").write_text('{"person": "person.png", "steps": 7}')
    refused([*listed(files, tryon_model), flag, str(files / "r.json")], f"{flag} s", capsys)
    assert not (files / "made").exists()


def test_a_list_in_another_encoding_is_told(files: Path, capsys: pytest.CaptureFixture[str]):
    (files / "pairs.jsonl").write_bytes('{"prompt": "été"}'.encode("latin-1"))
    refused(
        ["--pairs", str(files / "pairs.jsonl"), "--out", str(files / "made")], "pairs.jsonl is not in UTF-8", capsys
    )


def request_in(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.text[KEY])["request"]


def test_a_picture_of_a_list_is_made_again_from_another_folder(
    files: Path, tryon_model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """Files beside the list and in the working folder, both named by where they lie from there."""
    listed(files, tryon_model)
    work, other = (tmp_path_factory.mktemp(name) for name in ("work", "other"))
    (files / "shirt.png").rename(work / "shirt.png")
    (work / "list").symlink_to(files)
    monkeypatch.chdir(work)
    run(tryon.main, ["--pairs", "list/pairs.jsonl", "--out", "made", "--model", str(tryon_model), "--steps", "2"])
    monkeypatch.chdir(other)
    run(tryon.main, ["--request", str(work / "made" / "a.png"), "--out", "again.png"])
    np.testing.assert_array_equal(open_rgb(other / "again.png"), open_rgb(work / "made" / "a.png"))
    assert request_in(other / "again.png") == request_in(work / "made" / "a.png")


def test_a_list_goes_on_where_it_was_moved_to(
    files: Path, tryon_model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys
):
    """And where it was begun before pictures named their files by whole paths."""
    run(tryon.main, listed(files, tryon_model))
    moved = tmp_path_factory.mktemp("moved") / "set"
    shutil.copytree(files, moved)
    monkeypatch.chdir(moved)
    capsys.readouterr()
    run(tryon.main, listed(moved, tryon_model))
    run(tryon.main, [*listed(moved, tryon_model), "--pairs", "pairs.jsonl", "--out", "made"])
    assert capsys.readouterr().out.count("0 pictures made, 1 were there") == 2
    with Image.open(moved / "made" / "a.png") as image:
        told = image.text[KEY].replace(f"{files}/", "")
        assert len(told) < len(image.text[KEY])
        info = PngImagePlugin.PngInfo()
        info.add_text(KEY, told)
        image.save(moved / "old.png", pnginfo=info)
    (moved / "old.png").replace(moved / "made" / "a.png")
    assert request_in(moved / "made" / "a.png")["person"] == "person.png"
    run(tryon.main, listed(moved, tryon_model))
    assert "0 pictures made, 1 were there" in capsys.readouterr().out
    # What lies there under the same name is another file.
    Image.fromarray(np.pad(a_person().mask[1:], ((0, 1), (0, 0)))).save(moved / "mask.png")
    refused(listed(moved, tryon_model), f"was made with another file {moved / 'mask.png'}", capsys)
