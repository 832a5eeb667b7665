"""Bodies guessed from photographs: parts by the nearest bone, keypoints, programs; the model where it is there."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax import estimate
from fcjax.agnostic import agnostic_mask
from fcjax.cli import run
from infer.mask import Request, main
from infer.tryon_fit import person_of
from infer.tryon_request import TryOnRequest

HEIGHT, WIDTH = 160, 120
# x and y of MediaPipe's landmarks in a person who faces the camera: their left is on the right.
PLACES = {
    "face": (60, 20), "shoulder": (12, 45), "elbow": (24, 65), "wrist": (28, 88), "hip": (8, 90), "knee": (10, 118),
    "ankle": (11, 145),
}  # fmt: skip


def landmarks() -> np.ndarray:
    points = np.zeros((33, 3))
    points[:11] = (*PLACES["face"], 1)
    numbers = {"shoulder": 11, "elbow": 13, "wrist": 15, "hip": 23, "knee": 25, "ankle": 27}
    for name, number in numbers.items():
        across, down = PLACES[name]
        points[number], points[number + 1] = (60 + across, down, 1), (60 - across, down, 1)
    for hand in (17, 19, 21):
        points[hand], points[hand + 1] = (89, 97, 1), (31, 97, 1)
    for foot in (29, 31):
        points[foot], points[foot + 1] = (72, 152, 1), (48, 152, 1)
    return points


@pytest.fixture
def guessed(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    outline = np.zeros((HEIGHT, WIDTH), bool)
    outline[8:156, 25:95] = True
    monkeypatch.setattr(estimate, "_look", lambda image: (landmarks(), outline))
    return np.full((HEIGHT, WIDTH, 3), 90, np.uint8)


def test_parts_lie_around_their_bones(guessed: np.ndarray) -> None:
    found = estimate.estimate(guessed)
    parts = found.iuv[..., 0]
    for (x, y), part in (
        ((60, 15), 24), ((60, 60), 2), ((84, 68), 19), ((36, 68), 20), ((76, 52), 15), ((44, 52), 16),
        ((89, 97), 4), ((31, 97), 3), ((69, 105), 10), ((51, 105), 9), ((71, 132), 14), ((49, 132), 13),
        ((72, 152), 5), ((48, 152), 6), ((5, 5), 0),
    ):  # fmt: skip
        assert parts[y, x] == part, (x, y, parts[y, x])
    assert not found.iuv[..., 1:].any()
    # OpenPose counts the person's right first.
    np.testing.assert_allclose(found.keypoints[[0, 1, 2, 5, 8, 11], 0], [60, 60, 48, 72, 52, 68])
    upper = agnostic_mask(iuv=found.iuv, keypoints=found.keypoints, category="upper")
    assert upper[60, 60] and upper[68, 84] and not upper[15, 60] and not upper[132, 71] and not upper[97, 89]


def test_limbs_that_are_not_seen_are_left_out() -> None:
    points, outline = landmarks(), np.ones((HEIGHT, WIDTH), bool)
    points[25, 2], points[26, 1] = 0.1, HEIGHT + 30
    parts = np.unique(estimate.body_parts(points, outline)[..., 0])
    assert not {9, 10, 13, 14} & set(parts.tolist()) and {2, 24, 15, 16} <= set(parts.tolist())
    assert not estimate.body_parts(points, ~outline).any()


def test_programs_guess_where_they_are_told_to(guessed: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(guessed).save(tmp_path / "person.png")
    with pytest.warns(UserWarning, match="second best: give a parse map or a DensePose map"):
        main(Request(tmp_path / "person.png", estimate=True, category="upper", out=tmp_path / "mask.png"))
    mask = np.asarray(Image.open(tmp_path / "mask.png")) > 0
    asked = {
        "prompt": "a shirt",
        "person": str(tmp_path / "person.png"),
        "assets": [{"path": "a", "phrase": "a shirt"}],
    }
    request = TryOnRequest.from_dict({**asked, "estimate": True, "category": "upper"}, "here")
    with pytest.warns(UserWarning, match="second best: give a parse map or a DensePose map"):
        np.testing.assert_array_equal(person_of(request).mask, mask)
    with pytest.raises(ValueError, match="estimate and iuv each say what to repaint"):
        TryOnRequest.from_dict({**asked, "estimate": True, "iuv": "b"}, "here")
    with pytest.raises(ValueError, match="guesses what --keypoints says"):
        main(Request(tmp_path / "person.png", estimate=True, keypoints=tmp_path / "k", out=tmp_path / "mask.png"))


def test_without_the_model_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "fcjax\[estimate\]" && pip install --no-deps mediapipe'):
        estimate.estimate(np.zeros((64, 48, 3), np.uint8))


def test_a_photograph_without_a_person_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the model says of one: a certainty near 0."""

    def unsure(square: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        assert square.shape == (1, 256, 256, 3) and square.min() >= 0 and square.max() <= 1
        return np.zeros((39, 5)), 0.02, np.full((256, 256), -9.0)

    monkeypatch.setattr(estimate, "_model", lambda: unsure)
    Image.new("RGB", (96, 128), (120, 130, 140)).save(tmp_path / "wall.png")
    with pytest.raises(SystemExit) as ended:
        run(main, ["--image", str(tmp_path / "wall.png"), "--estimate", "--out", str(tmp_path / "mask.png")])
    assert ended.value.code == 2 and not (tmp_path / "mask.png").exists()
    warned, refused = capsys.readouterr().err.splitlines()
    assert warned.startswith("warning: the body is estimated from the photograph alone, which is second best")
    assert refused.startswith("error: no person is found in the picture")
    with pytest.raises(ValueError, match="no person is found in the picture"):
        estimate.estimate(np.full((128, 96, 3), 127, np.uint8))


@pytest.mark.parametrize(("height", "width", "left"), [(300, 200, 20), (200, 300, 170), (96, 96, 8)])
def test_what_a_model_sees_in_a_square_is_told_in_the_pictures_pixels(
    height: int, width: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that finds a red nose, a blue foot and a green body; the person stands aside, seen closer each time."""
    image = np.zeros((height, width, 3), np.uint8)
    body, size = np.zeros((height, width), bool), height // 3
    body[size : 2 * size, left : left + size] = True
    image[body, 1] = 255
    nose, foot = (left + size // 2, size - 6), (left + size // 3, 2 * size + 6)
    for (x, y), channel in ((nose, 0), (foot, 2)):
        image[y - 2 : y + 3, x - 2 : x + 3, channel] = 255
    sides = []

    def model(square: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        middles = [np.argwhere(square[0, ..., channel] > 0.5).mean(axis=0)[::-1] + 0.5 for channel in (0, 2)]
        green = np.argwhere(square[0, ..., 1] > 0.5)
        sides.append(np.ptp(green[:, 0]))
        points = np.zeros((39, 5))
        points[0, :2], points[28, :2] = middles
        points[[0, 28], 3] = 9
        points[33, :2] = green.mean(axis=0)[::-1]
        points[34, :2] = points[33, :2] + (0, np.ptp(green[:, 0]))
        return points, 0.9, np.where(square[0, ..., 1] > 0.5, 9.0, -9.0)

    monkeypatch.setattr(estimate, "_model", lambda: model)
    landmarks, outline = estimate._look(image)
    for number, place in ((0, nose), (28, foot)):
        np.testing.assert_allclose(landmarks[number, :2], np.array(place) + 0.5, atol=1.5)
        assert landmarks[number, 2] > 0.99
    assert landmarks[1, 2] == 0.5
    assert (outline & body).sum() / (outline | body).sum() > 0.9
    # Of the square's 256 rows: 2.5 times what the person takes.
    assert len(sides) == 3 and sides[-1] == pytest.approx(256 / 2.5, abs=6)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="MediaPipe's package with the model is for 3.11 and 3.12")
def test_the_model_finds_a_drawn_person() -> None:
    from fcjax.wardrobe import Wardrobe

    sample = Wardrobe("train", 0, 512, 384)[0]
    found = estimate.estimate(sample.image)
    on_person = found.iuv[..., 0] > 0
    assert (on_person & sample.foreground).sum() / (on_person | sample.foreground).sum() > 0.85
    truth = sample.maps.part
    for groups in ((23, 24), (1, 2), tuple(range(7, 15)), tuple(range(15, 23))):
        both = np.isin(truth, groups) & on_person
        assert np.isin(found.iuv[..., 0], groups)[both].mean() > 0.6, groups
    with pytest.raises(ValueError, match="no person is found"):
        estimate.estimate(np.full((256, 192, 3), 127, np.uint8))
