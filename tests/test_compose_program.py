"""`infer.compose`: pictures made again from themselves, requests, and what the program tells."""

import base64
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcjax
from fcjax.cli import run
from fcjax.samplers import SAMPLERS
from infer import compose
from infer.request import KEY, ComposeRequest

PROMPT = "a woman in a red shirt and blue jeans"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with two assets as files: one transparent, one on white."""
    shirt = np.pad(np.full((12, 10, 4), (200, 20, 30, 255), np.uint8), ((2, 2), (2, 2), (0, 0)))
    Image.fromarray(shirt).save(tmp_path / "shirt.png")
    on_white = np.full((30, 30, 3), 255, np.uint8)
    on_white[6:24, 10:20] = (30, 40, 160)
    Image.fromarray(on_white).save(tmp_path / "jeans.png")
    return tmp_path


def opened(path: Path) -> tuple[np.ndarray, dict]:
    """A picture file's pixels and its metadata of ours."""
    with Image.open(path) as image:
        return np.asarray(image), json.loads(image.text[KEY])


def arguments(model: Path, files: Path, *others: object) -> list[str]:
    words = ["--model", model, "--prompt", PROMPT, "--asset", f"{files}/shirt.png=a red shirt"]
    words += ["--asset", f"{files}/jeans.png=blue jeans", "--pose", "walking", "--steps", 2, *others]
    return list(map(str, words))


def test_an_image_is_made_again_from_itself(tiny_model_folder: Path, files: Path, capsys) -> None:
    out, again = files / "out.png", files / "new" / "again.png"
    run(compose.main, arguments(tiny_model_folder, files, "--out", out, "--seed", 3, "--sheet", files / "sheet.png"))
    shown = capsys.readouterr()
    assert shown.out.split() == [str(out), str(files / "sheet.png")] and "composing" in shown.err
    held = opened(out)[1]["request"]
    assert held["seed"] == 3 and held["body"] == {"pose": "walking"} and held["guidance"] == 1.5
    assert held["assets"][0]["sha256"] == hashlib.sha256((files / "shirt.png").read_bytes()).hexdigest()

    run(compose.main, ["--request", str(out), "--out", str(again)])
    np.testing.assert_array_equal(opened(again)[0], opened(out)[0])
    assert opened(again)[1] == opened(out)[1]
    run(compose.main, ["--request", str(out), "--out", str(again), "--seed", "4"])
    assert np.abs(opened(again)[0].astype(int) - opened(out)[0]).max() > 0
    (files / "shirt.png").unlink()
    with pytest.raises(SystemExit):
        run(compose.main, ["--request", str(out), "--out", str(again)])
    assert (
        "shirt.png; find it, or give all assets anew with --asset (pictures of --embed-assets"
        in capsys.readouterr().err
    )


def test_embedded_assets_need_no_files(tiny_model_folder: Path, files: Path) -> None:
    out = files / "out.png"
    run(compose.main, arguments(tiny_model_folder, files, "--out", out, "--embed-assets"))
    held = opened(out)[1]["request"]["assets"]
    assert base64.b64decode(held[1]["data"]) == (files / "jeans.png").read_bytes()
    (files / "shirt.png").unlink()
    (files / "jeans.png").unlink()
    for before, after in (("out.png", "again.png"), ("again.png", "third.png")):
        run(compose.main, ["--request", str(files / before), "--out", str(files / after)])
        np.testing.assert_array_equal(opened(files / after)[0], opened(out)[0])


def test_embedded_assets_are_taken_out_again(tiny_model_folder: Path, files: Path) -> None:
    out, again = files / "out.png", files / "again.png"
    run(compose.main, arguments(tiny_model_folder, files, "--out", out, "--embed-assets"))
    for words, embedded in (([], True), (["--no-embed-assets"], False)):
        run(compose.main, ["--request", str(out), "--out", str(again), *words])
        assets = opened(again)[1]["request"]["assets"]
        assert [("data" in asset, "sha256" in asset) for asset in assets] == [(embedded, True)] * 2
        np.testing.assert_array_equal(opened(again)[0], opened(out)[0])


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([], True),
        (["--seed", "3", "--layout-seed", "0"], False),
        (["--asset", "a.png=a coat"], False),
        (["--asset", "a.png=a coat", "--swatch", "b.png=a skirt"], True),
    ],
)
def test_flags_take_back_a_requests_boxes(files: Path, words: list[str], kept: bool) -> None:
    """Which flags cannot say: those of other assets, and where assets are to be laid out."""
    boxes = [[0, 0, 16, 16], [16, 16, 32, 32]]
    assets = [{"path": "shirt.png", "phrase": "a red shirt"}, {"path": "jeans.png", "phrase": "blue jeans"}]
    (files / "r.json").write_text(json.dumps({"prompt": PROMPT, "assets": assets, "boxes": boxes}))
    request, _ = compose.requested(_flags(["--request", str(files / "r.json"), *words]))
    assert request.boxes == (((0, 0, 16, 16), (16, 16, 32, 32)) if kept else None)


def test_assets_beside_a_request_are_not_written_over(files: Path, capsys) -> None:
    before = (files / "shirt.png").read_bytes()
    request = {"prompt": PROMPT, "assets": [{"path": "shirt.png", "phrase": "a red shirt"}]}
    (files / "r.json").write_text(json.dumps(request))
    with pytest.raises(SystemExit):
        run(compose.main, ["--request", str(files / "r.json"), "--out", str(files / "shirt.png")])
    assert "shirt.png is read and would be written over" in capsys.readouterr().err
    assert (files / "shirt.png").read_bytes() == before


def test_a_request_is_not_written_over_by_what_it_makes(tiny_model_folder: Path, files: Path, capsys) -> None:
    run(compose.main, arguments(tiny_model_folder, files, "--out", files / "out.png"))
    before = (files / "out.png").read_bytes()
    with pytest.raises(SystemExit):
        run(compose.main, ["--request", str(files / "out.png"), "--seed", "4", "--out", str(files / "out.png")])
    assert "out.png is read and would be written over" in capsys.readouterr().err
    assert (files / "out.png").read_bytes() == before


def test_assets_too_large_to_embed_are_told_before_any_work(
    tiny_model_folder: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infer.request.MOST_TEXT", 500)
    monkeypatch.setattr(fcjax.Composer, "compose", None)
    with pytest.raises(SystemExit):
        run(compose.main, arguments(tiny_model_folder, files, "--out", files / "out.png", "--embed-assets"))
    assert not (files / "out.png").exists()


def test_every_image_of_several_is_made_again_alone(tiny_model_folder: Path, files: Path) -> None:
    run(compose.main, arguments(tiny_model_folder, files, "--out", files / "out.png", "--num-images", 2, "--seed", 7))
    assert not (files / "out.png").exists()
    for index, seed in enumerate((7, 8)):
        made, held = opened(files / f"out_{index}.png")
        assert held["request"]["seed"] == seed
        run(compose.main, ["--request", str(files / f"out_{index}.png"), "--out", str(files / "again.png")])
        np.testing.assert_array_equal(opened(files / "again.png")[0], made)


def test_pictures_do_not_replace_each_other_or_what_is_read(tiny_model_folder: Path, files: Path, capsys) -> None:
    (files / "a_0.png").write_bytes((files / "shirt.png").read_bytes())
    words = arguments(tiny_model_folder, files, "--num-images", 2, "--out", files / "a.png")
    for more, expected in (
        (["--sheet", files / "a_1.png"], "a_1.png is named for two pictures"),
        (["--asset", f"{files}/a_0.png=a shirt"], "a_0.png is read and would be written over"),
    ):
        with pytest.raises(SystemExit):
            run(compose.main, [*words, *map(str, more)])
        assert expected in capsys.readouterr().err


def test_many_pictures_cost_a_look_at_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every pair of them, nor a file that is tried out for each."""
    looked, resolve, prepare = [], Path.resolve, compose.prepare_folder
    monkeypatch.setattr(Path, "resolve", lambda path: looked.append(path) or resolve(path))
    monkeypatch.setattr(compose, "prepare_folder", lambda path: looked.append(path) or prepare(path))
    pictures = compose.files_of(tmp_path / "new" / "out.png", 300)
    compose.prepare_outputs([*pictures, tmp_path / "sheet.png"], [tmp_path / "shirt.png"])
    assert len(looked) == 301 + 1 + 2 and looked.count(tmp_path / "new") == 1
    with pytest.raises(ValueError, match=r"out_7\.png is named for two pictures"):
        compose.prepare_outputs([*pictures, tmp_path / "new" / ".." / "new" / "out_7.png"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--num-images", 10**9], "num_images must be at most 1000, got 1000000000: ask for the others apart"),
        (["--num-images", 2, "--seed", 2**32 - 1], "between 0 and 4294967295, got 4294967295 for 2 images"),
    ],
)
def test_numbers_of_pictures_are_looked_at_before_their_files(
    asked: list[object], message: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(compose, "files_of", None)
    with pytest.raises(SystemExit) as ended:
        run(compose.main, arguments(files / "nowhere", files, "--out", files / "out.png", *asked))
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_request_file_finds_assets_beside_it(tiny_model_folder: Path, files: Path) -> None:
    request = {"prompt": PROMPT, "model": str(tiny_model_folder), "steps": 1, "body": {"pose": "waving", "view": 20}}
    request["assets"] = [{"path": "shirt.png", "phrase": "a red shirt"}]
    (files / "request.json").write_text(json.dumps(request))
    out = files / "elsewhere" / "out.png"
    run(compose.main, ["--request", str(files / "request.json"), "--out", str(out), "--pose", "walking"])
    held = opened(out)[1]["request"]
    assert held["body"] == {"pose": "walking", "view": 20.0}
    assert held["assets"][0]["path"] == str(files / "shirt.png")
    run(compose.main, ["--request", str(out), "--out", str(files / "again.png")])
    np.testing.assert_array_equal(opened(files / "again.png")[0], opened(out)[0])


def test_other_weights_are_warned_of(tiny_model_folder: Path, files: Path, capsys) -> None:
    out = files / "out.png"
    run(compose.main, arguments(tiny_model_folder, files, "--out", out))
    request = ComposeRequest.from_dict(opened(out)[1]["request"])
    Image.new("RGB", (8, 8)).save(out, pnginfo=request.metadata("0" * 64))
    run(compose.main, ["--request", str(out), "--out", str(files / "again.png")])
    assert "are not those that made this picture before" in capsys.readouterr().err


def test_words_that_the_model_never_learnt_are_a_warning(tiny_model_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.png"
    run(
        compose.main,
        ["--model", str(tiny_model_folder), "--steps", "1", "--prompt", "a xylophone in tulle", "--out", str(out)],
    )
    assert "warning: the model never learnt: xylophone, tulle\n" in capsys.readouterr().err
    assert out.exists()


def test_pose_parameters_of_smpl_become_part_of_the_request(tiny_model_folder: Path, files: Path) -> None:
    poses = np.zeros((2, 72), np.float32)
    poses[1, 3:6] = (-0.6, 0, 0)
    np.savez(files / "pose.npz", poses=poses)
    given = ["--model", str(tiny_model_folder), "--prompt", "a woman", "--params", str(files / "pose.npz")]
    request, _ = compose.requested(_flags([*given, "--frame", "1"]))
    np.testing.assert_allclose(request.body.rotations.reshape(-1), poses[1], atol=1e-6)
    with pytest.raises(ValueError, match="--pose and --params both give a pose"):
        compose.requested(_flags([*given, "--pose", "walking"]))
    with pytest.raises(ValueError, match="--frame, --up tell how --params are to be read: give --params"):
        compose.requested(_flags(["--prompt", "a woman", "--frame", "12", "--up", "z"]))
    people = {name: {"pose": poses + number} for number, name in enumerate(("ann", "ben"))}
    (files / "pose.pkl").write_bytes(pickle.dumps(people, 2))
    given[-1] = str(files / "pose.pkl")
    request, _ = compose.requested(_flags([*given, "--subject", "ben"]))
    np.testing.assert_allclose(request.body.rotations, 1, atol=1e-6)
    with pytest.raises(ValueError, match="choose one of the subjects ann, ben"):
        compose.requested(_flags(given))


def test_a_picture_holds_how_it_was_sampled(tiny_model_folder: Path, files: Path) -> None:
    """The model's own may be another later."""
    model, out = files / "model", files / "out.png"
    shutil.copytree(tiny_model_folder, model)
    index = json.loads((model / "model_index.json").read_text())
    first = {"guidance": 3.0, "steps": 2}
    for own in (first, {"guidance": 2.0, "steps": 3}):
        index["fcjax"] |= own
        (model / "model_index.json").write_text(json.dumps(index))
        if own is first:
            given = arguments(model, files, "--out", out)
            place = given.index("--steps")
            run(compose.main, [*given[:place], *given[place + 2 :]])
    assert first.items() <= opened(out)[1]["request"].items()
    run(compose.main, ["--request", str(out), "--out", str(files / "again.png")])
    np.testing.assert_array_equal(opened(files / "again.png")[0], opened(out)[0])


def test_a_request_names_a_file_of_parameters_beside_it(files: Path) -> None:
    poses = np.zeros((2, 72))
    poses[1, 3:6] = (-0.6, 0, 0)
    np.savez(files / "pose.npz", poses=poses)
    path = files / "request.json"

    def read(**body: object) -> np.ndarray:
        path.write_text(json.dumps({"prompt": "a woman", "body": {"weight": 0.8, **body}}))
        request, _ = ComposeRequest.read(path)
        assert request.body.weight == 0.8
        # A picture's own request needs no file.
        assert ComposeRequest.from_dict(json.loads(json.dumps(request.asdict()))) == request
        return request.body.rotations

    np.testing.assert_allclose(read(params="pose.npz", frame=1).reshape(-1), poses[1], atol=1e-9)
    upright = read(params="pose.npz", up="z")
    np.testing.assert_allclose(upright[0], (-np.pi / 2, 0, 0), atol=1e-6)
    for body, expected in (
        ({"params": "pose.npz", "pose": "walking"}, "params and pose both give a pose"),
        ({"frame": 1}, "frame: of a file of SMPL parameters, which must be named as params"),
        ({"params": "pose.npz", "frame": 2}, "there is no frame 2 of poses"),
        ({"params": "pose.npz", "frame": 1.5}, "frame is 1.5; expected a whole number"),
        ({"params": "pose.npz", "up": "x"}, "up is 'x'; expected one of y, -y, z"),
        ({"params": "pose.npz", "up": ["y"]}, r"up is \['y'\]; expected one of y, -y, z"),
        ({"params": "pose.npz", "subject": 0}, "subject is 0; expected a name"),
        ({"params": 3}, "params is 3; expected a file's name"),
        ({"params": "none.npz"}, f"request.json: no such file of SMPL parameters: {files}/none.npz or none.npz"),
    ):
        with pytest.raises(ValueError, match=expected):
            read(**body)


def test_betas_that_shape_nothing_are_told(files: Path) -> None:
    """A PNG's own request has no file any more, and says nothing of them."""
    np.savez(files / "pose.npz", poses=np.zeros((1, 72)), betas=np.array([0, 1.5]))
    np.savez(files / "average.npz", poses=np.zeros((1, 72)), betas=np.zeros(10))
    (files / "request.json").write_text(json.dumps({"prompt": "a woman", "body": {"params": "pose.npz"}}))
    for words in (["--params", str(files / "pose.npz")], ["--request", str(files / "request.json")]):
        flags = _flags(["--prompt", "a woman", *words])
        with pytest.warns(UserWarning, match="betas belong to SMPL and are not used: .* from height, weight") as told:
            request, _ = compose.requested(flags)
        assert len(told) == 1
        ComposeRequest.from_dict(request.asdict())
    compose.requested(_flags(["--prompt", "a woman", "--params", str(files / "average.npz")]))


def _flags(words: list[str]) -> compose.Flags:
    found = []

    def take(flags: compose.Flags) -> None:
        found.append(flags)

    run(take, words)
    return found[0]


def test_in_a_process_of_its_own(tiny_model_folder: Path, files: Path) -> None:
    """The module as a user starts it: without assets, and with a mistake, which costs no traceback."""
    command = [sys.executable, "-m", "infer.compose", "--model", str(tiny_model_folder), "--steps", "1"]
    root = Path(fcjax.__file__).parents[1]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiles faster
    good = [*command, "--prompt", "a woman", "--out", str(files / "out.png")]
    done = subprocess.run(good, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert opened(files / "out.png")[0].shape == (32, 32, 3)
    done = subprocess.run([*good, "--size", "50", "32"], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if line and "composing" not in line]
    assert line == "error: height and width must be multiples of 8 for this model, got 50x32; 48x32 would do"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "heun"}, "sampler must be one of"),
        ({"steps": 101}, "steps must lie"),
        ({"eta": 2.0}, "eta must lie"),
    ],
)
def test_a_sampler_is_looked_at_before_a_model_is_loaded(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose.make(ComposeRequest(PROMPT, model="nowhere", **settings))


def test_the_help_names_every_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(compose.main, ["--help"])
    assert set(SAMPLERS) <= set(re.findall(r"\w+", capsys.readouterr().out))
