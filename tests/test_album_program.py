"""`infer.album`: requests, turntables, frames of a file, and albums made again from what was written."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.album import Page, make_album
from fcjax.assets import Asset
from fcjax.body import Body
from fcjax.cli import run
from fcjax.composer import Composer
from infer import album as program

PROMPT = "a woman in a red shirt"


@pytest.fixture
def request_file(tmp_path: Path, tiny_model_folder: Path) -> Path:
    shirt = np.pad(np.full((12, 10, 4), (200, 20, 30, 255), np.uint8), ((2, 2), (2, 2), (0, 0)))
    Image.fromarray(shirt).save(tmp_path / "shirt.png")
    request = {
        "model": str(tiny_model_folder),
        "prompt": PROMPT,
        "assets": [{"path": "shirt.png", "phrase": "a red shirt"}],
        "body": {"framing": "upper", "gender": 0.2},
        "pages": [
            {"body": {"pose": "standing"}},
            {"body": {"pose": "walking", "view": 30}, "prompt": "a man in a red shirt"},
        ],
        "steps": 2,
        "seed": 4,
    }
    path = tmp_path / "album.json"
    path.write_text(json.dumps(request))
    return path


def assert_holds(path: Path, image: Image.Image) -> None:
    with Image.open(path) as held:
        np.testing.assert_array_equal(np.asarray(held), np.asarray(image))


def test_the_program_writes_pages_sheet_and_shares(request_file: Path, tmp_path: Path, tiny_model_folder: Path):
    # An album of more pages lies there already.
    (tmp_path / "album").mkdir()
    for name in ("album.json", "page_3.png", "page_4.png"):
        (tmp_path / "album" / name).touch()
    run(program.main, ["--request", str(request_file), "--out", str(tmp_path / "album")])
    names = sorted(path.name for path in (tmp_path / "album").iterdir())
    assert names == ["album.json", "page_1.png", "page_2.png", "sheet.png"]
    told = json.loads((tmp_path / "album" / "album.json").read_text())
    assert (
        told["request"]["seed"] == 4
        and told["request"]["guidance"] == 1.5
        and len(told["matched"]) == 2
        and told["matched"][0] == [0.0, 0.0]
    )
    asset = Asset.open(tmp_path / "shirt.png", "a red shirt")
    body = {"framing": "upper", "gender": 0.2}
    album = make_album(
        Composer.load(tiny_model_folder),
        [
            Page(Body(pose="standing", **body), PROMPT, [asset]),
            Page(Body(pose="walking", view=30, **body), "a man in a red shirt", [asset]),
        ],
        steps=2,
        seed=4,
    )
    for number, picture in enumerate(album.pictures, 1):
        assert_holds(tmp_path / "album" / f"page_{number}.png", picture.image)
    # What holds the request makes the album again, and only of the same files.
    for held in ("album.json", "page_2.png"):
        run(program.main, ["--request", str(tmp_path / "album" / held), "--out", str(tmp_path / "again")])
        for number, picture in enumerate(album.pictures, 1):
            assert_holds(tmp_path / "again" / f"page_{number}.png", picture.image)
    Image.fromarray(np.full((9, 9, 4), 90, np.uint8)).save(tmp_path / "shirt.png")
    with pytest.raises(ValueError, match="is not the file that the request was made with"):
        program.read_pages(program.AlbumRequest.read(tmp_path / "album" / "album.json"), tmp_path)


def test_a_turntable_goes_around_the_body():
    request = program.AlbumRequest.from_dict(
        {"turntable": 4, "prompt": PROMPT, "body": {"pose": "walking", "view": 30, "weight": 0.9}}, "it"
    )
    assert [page.body.view for page in request.pages] == [30, 120, 210, 300]
    assert all(page.body.pose == "walking" and page.body.weight == 0.9 for page in request.pages)
    for views in (0, 1.5, True, "8"):
        with pytest.raises(ValueError, match="it: turntable"):
            program.AlbumRequest.from_dict({"turntable": views, "prompt": PROMPT}, "it")


def test_pages_take_frames_of_a_file(tmp_path: Path):
    poses = 0.1 * np.random.default_rng(0).standard_normal((3, 72))
    np.savez(tmp_path / "walk.npz", poses=poses)
    given = {
        "prompt": PROMPT,
        "body": {"params": "walk.npz", "view": 20},
        "pages": [{}, {"body": {"frame": 2}}, {"body": {"pose": "walking"}}],
    }
    request = program.AlbumRequest.from_dict(given, "it", tmp_path)
    bodies = [page.body for page in request.pages]
    np.testing.assert_allclose([body.rotations.reshape(-1) for body in bodies[:2]], poses[[0, 2]], atol=1e-9)
    assert bodies[2] == Body(pose="walking", view=20) and {body.view for body in bodies} == {20}
    assert program.AlbumRequest.from_dict(json.loads(json.dumps(request.asdict())), "it") == request
    given["pages"].append({"body": {"frame": 3}})
    with pytest.raises(ValueError, match=r"it: pages\[3\]: .*there is no frame 3 of poses"):
        program.AlbumRequest.from_dict(given, "it", tmp_path)


def test_betas_that_shape_nothing_are_told_once(tmp_path: Path):
    np.savez(tmp_path / "walk.npz", poses=np.zeros((3, 72)), betas=np.array([0, 1.5]))
    given = {"prompt": PROMPT, "body": {"params": "walk.npz"}, "pages": [{"body": {"frame": n}} for n in range(3)]}
    with pytest.warns(UserWarning, match="betas belong to SMPL and are not used: .* from height, weight") as told:
        program.AlbumRequest.from_dict(given, "it", tmp_path)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"pages": []}, "pages must be a list of objects, one at least, such as {'body'"),
        ({"pages": [{"pose": "walking"}]}, "unknown key pages[0].pose"),
        ({"pages": [{"body": {"pose": "wlaking"}}]}, "pages[0]: "),
        ({"sharing": "some"}, "sharing is 'some'"),
        ({"align": "yes"}, "align is 'yes'; expected true or false"),
        ({"align": True, "sharing": "none"}, "with sharing 'none' leave it out"),
        ({"colour": 1}, "unknown key colour"),
        ({"pages": [{"body": {}}], "prompt": ""}, "pages[0] has no prompt"),
        ({"turntable": 4}, "turntable makes the pages"),
        ({"batch_size": 0}, "album.json: batch_size must be at least 2, the first page and another, got 0"),
        ({"batch_size": 1}, "album.json: batch_size must be at least 2"),
        ({"batch_size": 0, "pages": [{}]}, "album.json: batch_size must be at least 1, got 0"),
        ({"reference_guidance": "2"}, "reference_guidance is '2'; expected a number"),
    ],
)
def test_wrong_requests_end_in_one_line(
    request_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict, expected: str
):
    # No model is looked for.
    request = {**json.loads(request_file.read_text()), "model": "nowhere", **changed}
    request_file.write_text(json.dumps(request))
    with pytest.raises(SystemExit) as ended:
        run(program.main, ["--request", str(request_file), "--out", str(tmp_path / "album")])
    assert ended.value.code == 2 and expected in capsys.readouterr().err
    assert not (tmp_path / "album").exists()


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ({"body": {"params": "walk.npz"}}, "no such file of SMPL parameters: {folder}/walk.npz or walk.npz"),
        ({"body": {"params": "/no/walk.npz"}}, "no such file of SMPL parameters: /no/walk.npz\n"),
        ({"body": {"params": "folder.npz"}}, "{folder}/folder.npz is a folder"),
        ({"assets": [{"path": "coat.png", "phrase": "a coat"}]}, "no such asset file: {folder}/coat.png or coat.png"),
    ],
)
def test_files_that_are_missing_are_told_with_their_page(
    request_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], page: dict, expected: str
):
    (tmp_path / "folder.npz").mkdir()
    request_file.write_text(json.dumps({**json.loads(request_file.read_text()), "pages": [{}, page]}))
    with pytest.raises(SystemExit) as ended:
        run(program.main, ["--request", str(request_file), "--out", str(tmp_path / "album")])
    told = capsys.readouterr().err
    place = "pages[1]: " if "assets" in page else f"{request_file}: pages[1]: "
    assert ended.value.code == 2 and told.startswith(f"error: {place}") and told.count("\n") == 1
    assert expected.format(folder=tmp_path) in told


def test_a_folder_that_cannot_be_is_told_before_any_work(request_file: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        run(program.main, ["--request", str(request_file), "--out", str(request_file)])
    assert ended.value.code == 2 and f"cannot write into {request_file}" in capsys.readouterr().err
