"""Scoring albums: what pages have in common, whose regions are whose, and the program."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fcjax.composer import Composer
from fcjax.wardrobe import Wardrobe
from infer import evaluate_albums
from infer.album_scores import album_set, score_album
from infer.evaluate_albums import MODES, Made, Request, comparisons, main, table, verdict

SIZE = (128, 96)


@pytest.fixture(scope="module")
def wardrobe() -> Wardrobe:
    return Wardrobe("heldout", 3, *SIZE, backgrounds=("plain",))


@pytest.fixture(scope="module")
def pages(wardrobe: Wardrobe):
    return wardrobe.pages(1, 3)


@pytest.fixture(scope="module")
def given(wardrobe: Wardrobe):
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
    names = [asset.garment or asset.kind for asset in pages[0].assets]
    for one, page in zip(given, pages, strict=True):
        assert one.prompt == pages[0].caption and one.outfit == 0
        assert [asset.phrase for asset in one.assets] == [asset.phrase for asset in pages[0].assets]
        np.testing.assert_array_equal(one.truth, page.image)
        own = [asset.garment or asset.kind for asset in page.assets]
        for place, name in enumerate(names, 1):
            expected = page.regions == own.index(name) + 1 if name in own else np.zeros(SIZE, bool)
            np.testing.assert_array_equal(one.target.regions == place, expected)
    np.testing.assert_array_equal(given[0].target.regions, pages[0].regions)


def test_the_last_pages_show_the_person_in_other_clothes(wardrobe: Wardrobe, pages) -> None:
    made, samples = album_set(wardrobe, 1, 3, 2), wardrobe.pages(1, 3, 2)
    np.testing.assert_array_equal(samples[0].image, pages[0].image)
    assert [page.outfit for page in made] == [0, 1, 1]
    first, *others = made
    worn = [{asset.phrase for asset in page.assets if asset.kind != "face"} for page in made]
    assert worn[1] == worn[2] and not worn[0] & worn[1]
    faces = [[asset.image for asset in page.assets if asset.kind == "face"] for page in made]
    for page, face in zip(others, faces[1:], strict=True):
        assert all(phrase in page.prompt for phrase in worn[1]) and page.prompt.startswith(samples[0].subject)
        np.testing.assert_array_equal(face, faces[0])
        # Other clothes on the same body.
        assert not np.array_equal(page.truth, pages[made.index(page)].image)
        np.testing.assert_array_equal(page.maps.faces, first.maps.faces)
    first_outfit, other_outfit = wardrobe.outfit(1), wardrobe.other_outfit(1)
    assert first_outfit.person is other_outfit.person and first_outfit.wears != other_outfit.wears
    truth = [page.truth for page in made]
    found = score_album(truth, made)
    # Faces of all pairs of pages, garments of the one pair in one outfit.
    assert len(found["face_palette"]) == 3 and 1 <= len(found["garment_palette"]) <= len(worn[1])


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
    same = score_album([pages[0].image] * 3, [given[0]] * 3)
    assert max(same["face_palette"]) < 1e-6 and min(same["face_texture"]) == 100
    assert max(same["garment_palette"]) < 1e-6 and min(same["garment_texture"]) == 100


def test_identity_is_told_by_the_face_alone(given, pages) -> None:
    """Hair and clothes of another colour change nothing, a face of another one does."""
    plain = score_album([page.image for page in pages], given)
    for inside in (False, True):
        painted = [
            np.where((page.maps.face_mask == inside)[..., None], 255 - page.image, page.image) for page in pages[1:]
        ]
        found = score_album([pages[0].image, *painted], given)
        for name in ("face_palette", "face_texture"):
            assert (found[name] == plain[name]) != inside, name


def test_garments_are_compared_where_both_pages_show_them(given, pages) -> None:
    """Skin is no garment: what is painted beside the first page's assets changes no texture of garments."""
    plain = score_album([page.image for page in pages], given)
    worn = [np.isin(one.target.regions, _garments(one)) for one in given]
    for inside in (False, True):
        painted = [
            np.where((region == inside)[..., None], 255 - page.image, page.image)
            for page, region in zip(pages[1:], worn[1:], strict=True)
        ]
        found = score_album([pages[0].image, *painted], given)
        assert (found["garment_texture"] == plain["garment_texture"]) != inside


def _garments(page) -> list[int]:
    return [place for place, kind in enumerate(page.target.kinds, 1) if kind != "face"]


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the albums composed, each page a grey of its own, by a model that is none."""
    config, seeds = SimpleNamespace(height=SIZE[0], width=SIZE[1]), []

    def compose(composer, given, request, seed):
        seeds.append(seed)
        pictures = [np.full((*SIZE, 3), 40 * page + seed, np.uint8) for page in range(request.pages)]
        return {mode: Made(pictures, [0.25]) for mode in MODES}

    monkeypatch.setattr(Composer, "load", lambda name: SimpleNamespace(config=config))
    monkeypatch.setattr(evaluate_albums, "compose", compose)
    return seeds


def test_a_killed_run_goes_on(tmp_path: Path, composed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(count=3, pages=2, changed=1, seed=5, json=tmp_path / "albums.json")
    whole = evaluate_albums.compose

    def killed(composer, given, request, seed):
        if seed == 7:
            raise KeyboardInterrupt
        return whole(composer, given, request, seed)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate_albums, "compose", killed)
        main(request)
    assert composed == [5, 6]
    with pytest.raises(ValueError, match="other pictures or settings"):
        main(replace(request, guidance=2.0))
    main(request)
    assert composed == [5, 6, 7] and not list(tmp_path.glob("*.partial"))
    uninterrupted = replace(request, json=tmp_path / "again.json", work=tmp_path / "work")
    main(uninterrupted)
    figures = [json.loads(path.read_text())["albums"] for path in (request.json, uninterrupted.json)]
    assert figures[0] == figures[1] and len(list((tmp_path / "work").glob("*.png"))) == 3 * 2 * len(MODES)


def test_the_program(tmp_path: Path, composed: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    request = Request(
        count=2, pages=2, changed=1, rows=1, json=tmp_path / "deep" / "albums.json", sheet=tmp_path / "albums.png"
    )
    main(request)
    said = capsys.readouterr().out
    assert all(mode in said for mode in (*MODES, "truth")) and "identity: palette distance" in said
    assert "2 albums of 2 pages, the last 1 in another outfit" in said and "Figure 8 is not shown: 0 of " in said
    content = json.loads(request.json.read_text())
    assert len(content["albums"]["cross-frame"]) == 2 and content["settings"]["size"] == list(SIZE)
    # The model's own.
    assert content["settings"]["guidance"] == 1.25 and content["settings"]["steps"] == 4
    assert content["ways"]["cross-frame"]["matched"]["mean"] == 0.25 and "matched" not in content["ways"]["truth"]
    # Albums that are the same by every way cannot be told apart.
    assert {one["verdict"] for one in content["comparisons"]} == {"not told apart"}
    assert request.sheet.is_file()


def test_what_cannot_be_written_is_told_before_anything_is_composed(tmp_path: Path, composed: list[int]) -> None:
    request = Request(count=1, pages=2, changed=1, json=tmp_path / "albums.json", sheet=tmp_path / "albums.png")
    request.json.write_text("{}")
    for refused, words in ((request, "say --overwrite"), (replace(request, sheet=tmp_path / "a.jpg"), "end in .png")):
        with pytest.raises(ValueError, match=words):
            main(replace(refused, overwrite=refused is not request))
    assert not composed
    main(replace(request, overwrite=True))
    assert json.loads(request.json.read_text())["albums"] and request.sheet.is_file()


def test_figures_are_told_whatever_becomes_of_the_sheet(
    tmp_path: Path, composed: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(rows):
        raise OSError("no space left")

    monkeypatch.setattr(evaluate_albums, "sheet", full)
    request = Request(count=1, pages=2, changed=1, sheet=tmp_path / "albums.png")
    with pytest.raises(OSError, match="no space left"):
        main(request)
    assert "1 albums of 2 pages" in capsys.readouterr().out and (tmp_path / "albums.png.partial").is_dir()


def test_what_figure_8_shows_is_told_of_the_same_albums() -> None:
    """Differences within albums, whatever these have in common; less distance is better."""
    rng = np.random.default_rng(0)
    common = rng.normal(10, 5, 30)
    better = {"one by one": 0, "cross-frame": 3, "correspondence": 1, "correspondence + alignment": 2}
    values = {
        mode: [
            {
                "face_palette": [base - gain],
                "face_texture": [base + gain, base + gain],
                "palette_distance": [base + gain],
                "silhouette_iou": [0.5],
            }
            for base in common
        ]
        for mode, gain in better.items()
    }
    found = {(one.better, one.worse, one.figure): one for one in comparisons(values)}
    assert found["cross-frame", "one by one", "face_palette"].difference.mean == pytest.approx(3)
    assert found["cross-frame", "correspondence", "face_texture"].difference.mean == pytest.approx(2)
    assert found["one by one", "cross-frame", "palette_distance"].difference.mean == pytest.approx(3)
    assert found["one by one", "cross-frame", "silhouette_iou"].verdict == "not told apart"
    others = [one for key, one in found.items() if key[2] != "silhouette_iou"]
    assert {one.verdict for one in others} == {"yes"} and verdict(others).endswith("comparisons say so, 0 the reverse")
    assert "Figure 8 is shown" in verdict(others) and "Figure 8 is not shown" in verdict(list(found.values()))
    for ones in values.values():
        for one in ones:
            one["face_palette"] = [-one["face_palette"][0]]
    assert {one.verdict for one in comparisons(values) if one.figure == "face_palette"} == {"no, the reverse"}


def test_the_table_leaves_out_what_has_no_value() -> None:
    text = table({"one by one": [{"face_palette": [3.0, 5.0]}, {}], "cross-frame": [{"face_palette": [1.0]}, {}]})
    # One album with a value has no interval.
    assert text.splitlines()[1].split()[-3:] == ["4.0", "1.000", "2"] and "garments" not in text


@pytest.mark.slow
def test_the_small_model_makes_albums_that_can_be_scored(tmp_path: Path) -> None:
    request = Request(count=1, pages=2, changed=1, steps=2, json=tmp_path / "albums.json")
    main(request)
    ways = json.loads(request.json.read_text())["ways"]
    assert ways.keys() == {*MODES, "truth"} and ways["one by one"]["silhouette_iou"]["mean"] > 0.3


@pytest.mark.parametrize(
    ("name", "value"), [("count", 0), ("pages", 1), ("rows", 0), ("seed", -1), ("steps", 0), ("changed", -1)]
)
def test_wrong_requests(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; expected at least"):
        main(Request(**{name: value}))
    with pytest.raises(ValueError, match="changed is 4 of 4 pages; expected fewer"):
        main(Request(changed=4))
