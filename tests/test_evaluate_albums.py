"""Scoring albums: what pages have in common, whose regions are whose, and the program."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fcjax.composer import Composer
from fcjax.wardrobe import Wardrobe
from infer import evaluate_albums
from infer.evaluate_albums import MODES, Request, album_set, main, score_album, table

SIZE = (128, 96)


@pytest.fixture(scope="module")
def wardrobe() -> Wardrobe:
    return Wardrobe("heldout", 3, *SIZE, backgrounds=("plain",))


@pytest.fixture(scope="module")
def pages(wardrobe: Wardrobe):
    return wardrobe.pages(1, 3)


@pytest.fixture(scope="module")
def given(wardrobe: Wardrobe, pages):
    return album_set(wardrobe, 1, 3)


def test_pages_show_one_person_in_several_poses(wardrobe: Wardrobe, pages) -> None:
    again = wardrobe.pages(1, 3)
    for page, other in zip(pages, again, strict=True):
        np.testing.assert_array_equal(page.image, other.image)
        assert "seen from" not in page.caption
    assert len({page.maps.iuv.tobytes() for page in pages}) == 3
    garments = {asset.garment: asset.image for page in pages for asset in page.assets if asset.garment}
    for page in pages:
        for asset in page.assets:
            if asset.garment and asset.kind != "swatch" and asset.image.shape == garments[asset.garment].shape:
                np.testing.assert_array_equal(asset.image, garments[asset.garment])


def test_regions_are_the_first_pages_assets(given, pages) -> None:
    assert given.prompt == pages[0].caption
    assert [asset.phrase for asset in given.assets] == [asset.phrase for asset in pages[0].assets]
    np.testing.assert_array_equal(given.targets[0].regions, pages[0].regions)
    names = [asset.garment or asset.kind for asset in pages[0].assets]
    for target, page in zip(given.targets, pages, strict=True):
        own = [asset.garment or asset.kind for asset in page.assets]
        for place, name in enumerate(names, 1):
            expected = page.regions == own.index(name) + 1 if name in own else np.zeros(SIZE, bool)
            np.testing.assert_array_equal(target.regions == place, expected)


def test_the_truth_is_one_person_and_noise_is_none(given, pages) -> None:
    truth = score_album([page.image for page in pages], given)
    rng = np.random.default_rng(0)
    # Every page in colours of its own.
    tinted = [np.roll(page.image, shift, axis=-1) // (shift + 1) for shift, page in enumerate(pages)]
    noise = score_album([rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in pages], given)
    for name, better in (("face_palette", -1), ("face_texture", 1), ("garment_palette", -1), ("garment_texture", 1)):
        others = score_album(tinted, given)
        assert better * np.mean(truth[name]) > better * np.mean(others[name]), name
    assert np.mean(truth["silhouette_iou"]) > 0.9 > 0.6 > np.mean(noise["silhouette_iou"])
    assert np.mean(truth["palette_distance"]) < np.mean(noise["palette_distance"])
    same = score_album(
        [pages[0].image] * 3, given.__class__(given.prompt, given.assets, given.maps[:1] * 3, given.targets[:1] * 3)
    )
    assert max(same["face_palette"]) < 1e-6 and min(same["face_texture"]) == 100 and max(same["garment_palette"]) < 1e-6


def test_the_program(
    given, pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SimpleNamespace(height=SIZE[0], width=SIZE[1])
    monkeypatch.setattr(Composer, "load", lambda name: SimpleNamespace(config=config))
    monkeypatch.setattr(
        evaluate_albums, "compose", lambda composer, given, request, seed: {
            mode: [np.full((*SIZE, 3), 40 * number, np.uint8) for number in range(request.pages)] for mode in MODES
        },
    )  # fmt: skip
    request = Request(count=2, pages=2, rows=1, json=tmp_path / "deep" / "albums.json", sheet=tmp_path / "albums.png")
    main(request)
    said = capsys.readouterr().out
    assert all(mode in said for mode in MODES) and "identity: palette distance" in said
    content = json.loads(request.json.read_text())
    assert len(content["albums"]["cross-frame"]) == 2 and content["settings"]["size"] == list(SIZE)
    assert request.sheet.is_file()


def test_the_table_leaves_out_what_has_no_value() -> None:
    text = table({"one by one": [{"face_palette": [3.0, 5.0]}, {}], "cross-frame": [{"face_palette": [1.0]}, {}]})
    assert "4.0 [4.0, 4.0]" in text and "garments" not in text


@pytest.mark.slow
def test_the_small_model_makes_albums_that_can_be_scored(tmp_path: Path) -> None:
    request = Request(count=1, pages=2, steps=2, json=tmp_path / "albums.json")
    main(request)
    ways = json.loads(request.json.read_text())["ways"]
    assert ways.keys() == MODES.keys() and ways["one by one"]["silhouette_iou"]["mean"] > 0.3


@pytest.mark.parametrize(("name", "value"), [("count", 0), ("pages", 1), ("rows", 0), ("seed", -1), ("steps", 0)])
def test_wrong_requests(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; expected at least"):
        main(Request(**{name: value}))
