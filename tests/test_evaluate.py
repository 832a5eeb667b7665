"""`python -m infer.evaluate`: arms, sets, scores and files on a tiny random model, and bad input."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from fcjax.cli import run
from fcjax.composer import Composer
from fcjax.metrics import (
    FIGURES,
    Figure,
    Target,
    asset_palette,
    nearest_palette,
    places_exchanged,
    region_palette,
    score,
)
from infer.arms import RECONSTRUCTION, TRUTH, Arm, make_arms, without_binding
from infer.drawing import draw
from infer.evaluate import main
from infer.evaluation import report, table, worst
from infer.evaluation_request import Request
from infer.figures import cell
from infer.set_evaluation import score_drawn
from infer.sets import DrawnSets, WardrobeSets

SIZE = (128, 96)


def painted(one, assets, seed):
    """A composer that does all that is asked: the truth, its garments' places filled with the assets' colours.

    It looks at phrases alone to know which asset goes where, as binding should.
    """
    picture = one.target.truth.copy() if one.target.truth is not None else np.full((*SIZE, 3), 200, np.uint8)
    by_phrase = {asset.phrase: asset.image for asset in assets}
    for index, asset in enumerate(one.assets):
        image = by_phrase[asset.phrase]
        opaque = image[image[..., 3] >= 250][:, :3]
        region = one.target.regions == index + 1
        places = np.linspace(0, len(opaque) - 1, np.count_nonzero(region)).astype(int)
        picture[region] = opaque[places]
    return picture


def careless(one, assets, seed):
    """A composer that looks at no phrase: every asset lies where the one before it belongs."""
    phrases = [asset.phrase for asset in one.assets]
    shifted = [
        dataclasses.replace(asset, phrase=phrase)
        for asset, phrase in zip(one.assets, phrases[-1:] + phrases[:-1], strict=True)
    ]
    return painted(one, shifted, seed)


TRUTHFUL = Arm(TRUTH, lambda one, assets, seed: one.target.truth, composes=False)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    request = Request(count=6, swap_count=3, seed=1)
    arms = [TRUTHFUL, Arm("painted", painted), Arm("careless", careless)]
    sets, folder = WardrobeSets("heldout", 1, *SIZE), tmp_path_factory.mktemp("drawn")
    return request, score_drawn(sets, arms, folder, 6, seed=1, swaps=3, quiet=True)


def test_what_is_drawn_stays(tmp_path):
    """A run that was killed draws nothing twice, shards share the drawing, and the pictures are found again."""
    drawn = []

    def draws(one, assets, seed):
        drawn.append(seed)
        return painted(one, assets, seed)

    sets, arms = WardrobeSets("heldout", 1, *SIZE), [TRUTHFUL, Arm("painted", draws)]
    draw(sets, arms, tmp_path, 3, 5, (1, 2), quiet=True)
    assert drawn == [6] and [path.name for path in (tmp_path / "1").iterdir()] == ["000001.png"]
    first = score_drawn(sets, arms, tmp_path, 3, seed=5, swaps=1, quiet=True)
    assert sorted(drawn[1:3]) == [5, 7] and drawn[3:].count(5 + first.swap_indices[0]) >= 1
    count = len(drawn)
    again = score_drawn(sets, arms, tmp_path, 3, seed=5, swaps=1, quiet=True)
    assert len(drawn) == count and again.summary("painted") == first.summary("painted")


def test_the_truth_is_the_ceiling(evaluated):
    summary = evaluated[1].summary(TRUTH)
    assert summary["binding_accuracy"].mean == 1 and summary["texture_correlation"].mean == pytest.approx(1)
    assert summary["silhouette_iou"].mean >= 0.95 and summary["texel_ssim"].mean == pytest.approx(1)
    assert summary["palette_distance"].mean < 0.5 * summary["other_palette_distance"].mean
    assert summary["face_distance"].mean < summary["wrong_face_distance"].mean
    assert "psnr" not in summary and "swap_test" not in summary


def test_figures_tell_binding_from_none(evaluated):
    followed, ignored = (evaluated[1].summary(arm) for arm in ("painted", "careless"))
    assert followed["told_binding_accuracy"].mean == 1 and ignored["told_binding_accuracy"].mean <= 0.3
    assert followed["binding_accuracy"].mean >= 0.95 and ignored["binding_accuracy"].mean <= 0.3
    assert followed["swap_test"].mean == 1 and ignored["swap_test"].mean == 0
    assert followed["swap_test"].count == 3 and len(evaluated[1].swap_indices) == 3
    assert followed["texel_psnr"].mean > ignored["texel_psnr"].mean
    # The colours are right, but their order is not.
    assert followed["texture_correlation"].mean < 0.6


def test_table_and_report(evaluated):
    request, evaluation = evaluated
    text = table(evaluation)
    assert all(name in text for name in (TRUTH, "painted", "careless", FIGURES["binding_accuracy"], "by pattern"))
    found = json.loads(json.dumps(report(request, evaluation, SIZE), allow_nan=False))
    assert set(found) == {"settings", "versions", "weights", "arms", "sets", "swaps"}
    assert found["settings"]["seed"] == 1 and found["settings"]["guidance"] == 1.25
    assert found["versions"]["jax"] == jax.__version__
    figure = found["arms"]["painted"]["figures"]["binding_accuracy"]
    assert figure["low"] <= figure["mean"] <= figure["high"] and figure["groups"] <= 6 <= figure["count"]
    assert len(found["sets"]) == 6 and all(one["prompt"] for one in found["sets"])
    assert [one["painted"] for one in found["swaps"]] == [True] * 3


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (Figure(0.5, 0.25, 1.0000000000000002, 8, 4), "0.500 [0.250, 1.000]"),
        (Figure(0.5, 0.5, 0.5, 2, 1), "0.500"),
        (Figure(0.5, 0.5, 0.5, 2, 2), "0.500 [0.500, 0.500]"),
        (Figure(20.0, 10.0, 30.0, 2, 2), "20.0 [10.0, 30.0]"),
        (None, "-"),
    ],
)
def test_cells(figure, said):
    assert cell(figure) == said


def test_the_worst_sets_come_first(evaluated):
    order = worst(evaluated[1], "careless", 6)
    figures = evaluated[1].figures("careless")
    scores = [np.mean(figures[index].get("binding_accuracy", [1.0])) for index in order]
    assert sorted(order) == list(range(6)) and scores == sorted(scores)


def test_garments_of_one_look_are_not_told_apart():
    [truth, red, blue] = [np.full((40, 40, size), 255, np.uint8) for size in (3, 4, 4)]
    red[..., :3], blue[..., :3] = (200, 30, 40), (30, 60, 190)
    regions = np.zeros((40, 40), np.int8)
    regions[:20], regions[20:] = 1, 2
    truth[:20], truth[20:] = (190, 30, 45), (35, 60, 180)

    def told(*assets):
        target = Target(("top", "skirt"), tuple(map(asset_palette, assets)), regions, truth=truth)
        return target.telling, score(truth, target).figures

    telling, figures = told(red, blue)
    assert telling == (True, True) and figures["told_binding_accuracy"] == figures["binding_accuracy"] == [1, 1]
    almost_red = red.copy()
    almost_red[..., 0] -= 4
    telling, figures = told(red, almost_red)
    assert telling == (False, False) and "told_binding_accuracy" not in figures


def test_sets_are_the_same_for_the_same_seed():
    first, again = (WardrobeSets("heldout", 1, *SIZE)[2] for _ in range(2))
    assert first.prompt == again.prompt and np.array_equal(first.target.truth, again.target.truth)
    assert WardrobeSets("heldout", 2, *SIZE)[2].prompt != first.prompt


def test_exchanged_phrases_keep_pictures_in_place():
    sets = WardrobeSets("heldout", 1, *SIZE)
    index = next(index for index in range(60) if sets.may_have_swatches(index) and sets[index].swatches)
    one = sets[index]
    first, second = one.swatches
    exchanged = one.exchanged((first, second))
    for place, (before, after) in enumerate(zip(one.assets, exchanged, strict=True)):
        assert np.array_equal(before.image, after.image)
        assert (before.phrase != after.phrase) == (place in (first, second))
    assert all("fabric" in one.assets[place].phrase for place in (first, second))
    # Of a picture that did not change, and of one that was right only afterwards, no places were exchanged.
    right = painted(one, one.assets, 0)
    assert places_exchanged(right, painted(one, exchanged, 0), one.target, (first, second))
    assert not places_exchanged(right, right, one.target, (first, second))
    assert not places_exchanged(painted(one, exchanged, 0), painted(one, exchanged, 0), one.target, (first, second))


def test_drawn_garments_belong_to_body_parts():
    sets = DrawnSets(0, *SIZE)
    for index in range(4):
        one = sets[index]
        assert all(asset.phrase in one.prompt for asset in one.assets)
        assert all(asset.image[0, 0, 3] == 0 and asset.image[60, 100, 3] == 255 for asset in one.assets)
        picture = painted(one, one.assets, 0)
        assert score(picture, one.target).figures["binding_accuracy"] == [1, 1]
        # The shirt's part lies above the trousers' part.
        rows = [np.nonzero(one.target.regions == part)[0].mean() for part in (1, 2)]
        assert rows[0] < rows[1]
        palette = region_palette(picture, one.target.regions == 2)
        assert nearest_palette(palette, list(one.target.palettes))[0] == 1
    assert "t-shirt" in sets[0].prompt and sets[1].assets[1].phrase == "trousers"


# ---------------------------------------------------------------------------------------------------------------------
# With a model


def test_without_binding_phrases_bind_nothing(tiny_model_folder):
    composer = Composer.load(tiny_model_folder)
    one = WardrobeSets("heldout", 1, 64, 48)[0]
    assets = one.assets[: composer.config.max_assets]
    phrases = [asset.phrase for asset in assets]
    turned = [dataclasses.replace(asset, phrase=phrase) for asset, phrase in zip(assets, phrases[::-1], strict=True)]

    def differ(model):
        pictures = [
            np.asarray(model.compose(one.prompt, given, one.maps, steps=2, size=(64, 48))[0].image, int)
            for given in (assets, turned)
        ]
        return np.abs(pictures[0] - pictures[1]).max()

    assert len(assets) > 1 and differ(composer) > 0
    assert differ(without_binding(composer)) == 0
    with pytest.raises(ValueError, match="built without binding"):
        without_binding(Composer(composer.config, {**composer.params, "binder": {}}, composer.tokenizer))


@pytest.fixture
def few_assets(monkeypatch):
    """Wardrobe's sets with no more assets than the tiny model takes."""
    few = WardrobeSets.__getitem__

    def with_few_assets(sets, index):
        one = few(sets, index)
        target = dataclasses.replace(
            one.target, kinds=one.target.kinds[:3], palettes=one.target.palettes[:3], patterns=one.target.patterns[:3]
        )
        return dataclasses.replace(one, assets=one.assets[:3], target=target)

    monkeypatch.setattr(WardrobeSets, "__getitem__", with_few_assets)


def columns(capsys) -> str:
    """The head of the table that was printed, after its title."""
    return capsys.readouterr().out.split("\n\n")[1].splitlines()[0]


def test_the_bare_command_compares_with_and_without_binding(tiny_model_folder, few_assets, tmp_path, capsys):
    bare = ["--split", "heldout", "--count", "1", "--steps", "1", "--size", "64", "48", "--swap-count", "0"]
    written = tmp_path / "out.json"
    run(main, ["--model", str(tiny_model_folder), *bare, "--json", str(written)])
    assert columns(capsys).split(f"{tiny_model_folder}")[-1].split() == [",", "binding", "off", "values"]
    names = [TRUTH, RECONSTRUCTION, str(tiny_model_folder), f"{tiny_model_folder}, binding off"]
    assert list(json.loads(written.read_text())["arms"]) == names
    # What is there of another run is not lost unasked.
    with pytest.raises(SystemExit):
        run(main, ["--model", str(tiny_model_folder), *bare, "--json", str(written)])
    assert "out.json is there, of an earlier run: name another file, or say --overwrite" in capsys.readouterr().err
    run(main, ["--model", str(tiny_model_folder), *bare, "--no-without-binding", "--json", str(written), "--overwrite"])
    assert "binding off" not in columns(capsys)
    # A model without a binder has nothing to switch off, unless that is asked for.
    read = Composer.load(tiny_model_folder)
    config = dataclasses.replace(read.config, binder=dataclasses.replace(read.config.binder, variant="none"))
    Composer(config, {**read.params, "binder": {}}, read.tokenizer).save(tmp_path / "unbound")
    run(main, ["--model", str(tmp_path / "unbound"), *bare])
    assert "binding off" not in columns(capsys)
    with pytest.raises(SystemExit):
        run(main, ["--model", str(tmp_path / "unbound"), *bare, "--without-binding"])
    assert "built without binding" in capsys.readouterr().err


def test_pictures_that_are_there_are_scored_alike(tiny_model_folder, few_assets, tmp_path, capsys):
    """A model's pictures, kept by number, get the same figures without the model; all of them, or none."""
    bare = ["--split", "alike", "--count", "2", "--size", "64", "48", "--rows", "2", "--no-without-binding"]
    kept, written = tmp_path / "kept", [tmp_path / name for name in ("a.json", "b.json")]
    run(
        main,
        ["--model", str(tiny_model_folder), *bare, "--steps", "1", "--pictures", str(kept), "--json", str(written[0])],
    )
    assert sorted(path.name for path in kept.iterdir()) == ["000000.png", "000001.png"]
    given = ["--predictions", str(kept), "--split", "alike", "--count", "2", "--labels", "ours"]
    run(
        main,
        [*given, "--json", str(written[1]), "--sheet", str(tmp_path / "sheet.png"), "--html", str(tmp_path / "p.html")],
    )
    first, second = (json.loads(path.read_text()) for path in written)
    assert list(second["arms"]) == [TRUTH, "ours"] and second["weights"] == {}
    assert (
        second["arms"]["ours"] == first["arms"][str(tiny_model_folder)]
        and second["arms"][TRUTH] == first["arms"][TRUTH]
    )
    assert (tmp_path / "sheet.png").is_file() and "ours" in (tmp_path / "p.html").read_text()
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("0.png", "000.png", "1.png"):
        Image.new("RGB", (48, 64)).save(twice / name)
    for flags, words in (
        (["--count", "3"], "has no picture of 1 of 3 sets (2)"),
        (["--also", str(tmp_path / "other"), "--labels", "a", "b"], "1 cannot be read or are not 64x48"),
        (["--labels", "a", "b"], "--labels names each of"),
        (["--also", str(kept)], "each can be scored once"),
        (["--also", str(twice), "--labels", "a", "b"], "several pictures of one number"),
        (["--steps", "3"], "--predictions with sets makes no use of --steps"),
        (["--swap-count", "3"], "makes no use of --swap-count"),
    ):
        (tmp_path / "other").mkdir(exist_ok=True)
        for name, width in (("0.png", 48), ("1.png", 40)):
            Image.new("RGB", (width, 64)).save(tmp_path / "other" / name)
        with pytest.raises(SystemExit):
            run(main, [*given[:6], *flags] if "--count" not in flags else [*given[:4], *flags])
        assert words in capsys.readouterr().err


def test_the_program_writes_what_it_says(tiny_model_folder, few_assets, tmp_path, capsys):
    """Every file and column."""
    flags = ["--model", tiny_model_folder, "--without-binding", "--count", "2", "--swap-count", "1", "--steps", "2"]
    flags += ["--size", "64", "48", "--json", tmp_path / "new" / "out.json", "--rows", "2"]
    for name in ("sheet", "worst", "swap-sheet"):
        flags += [f"--{name}", tmp_path / f"{name}.png"]
    run(main, [str(flag) for flag in (*flags, "--html", tmp_path / "page.html")])
    printed = capsys.readouterr().out
    assert f"{tiny_model_folder}, binding off" in printed and RECONSTRUCTION in printed
    written = json.loads((tmp_path / "new" / "out.json").read_text())
    assert len(written["sets"]) == 2 and len(written["swaps"]) == 1 and len(written["weights"]) == 1
    assert written["arms"][RECONSTRUCTION]["figures"]["psnr"]["count"] == 2
    # A picture without binding cannot tell whose phrase is whose.
    assert not written["swaps"][0][f"{tiny_model_folder}, binding off"]
    for name in ("sheet", "worst", "swap-sheet"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.height > 256
    page = (tmp_path / "page.html").read_text()
    assert "binding accuracy" in page and "binding off" in page and "http" not in page


def test_a_comparison_page_and_its_votes(tiny_model_folder, tmp_path, capsys):
    """On flat drawn garments, of which the tiny model takes two."""
    page = tmp_path / "page.html"
    flags = ["--model", tiny_model_folder, "--without-binding", "--split", "drawn", "--count", 2, "--steps", 1]
    run(main, [str(flag) for flag in (*flags, "--size", 64, 48, "--html", page, "--blind")])
    key = json.loads((tmp_path / "page.key.json").read_text())
    assert len(key["orders"]) == 2 and str(tiny_model_folder) not in page.read_text()
    votes = tmp_path / "votes.json"
    votes.write_text(json.dumps({"page": key["page"], "votes": [{"set": 0, "quality": 0, "fidelity": 1}]}))
    capsys.readouterr()
    run(main, ["--votes", str(votes), "--key", str(tmp_path / "page.key.json")])
    said = capsys.readouterr().out
    assert said.startswith("1 voter, 2 sets\n")
    counts = [[word[:-1] for word in line.split() if word.endswith(":")] for line in said.splitlines()[2:4]]
    assert sorted(counts) == [["0", "1"], ["1", "0"]]
    # Votes on the page that is there could no longer be counted.
    with pytest.raises(SystemExit):
        run(main, [str(flag) for flag in (*flags, "--size", 64, 48, "--html", page, "--blind")])
    assert "page.key.json is there, of an earlier run" in capsys.readouterr().err


def test_a_model_is_scored_once(tiny_model_folder):
    with pytest.raises(ValueError, match="scored once"):
        make_arms(str(tiny_model_folder), (str(tiny_model_folder),), {}, size=None, binding_off=False, truth=True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--count", "0"], "count is 0"),
        (["--split", "drawn", "--swap-count", "3"], "no fabric swatches"),
        (["--model", "no/such/model"], "no model folder"),
        (["--sheet", "sheet.jpg"], "PNG"),
        (["--json", "."], "is a folder"),
        (["--html", "."], "is a folder"),
        (["--blind"], "--blind needs --html"),
        (
            ["--blind", "--html", "a.html", "--no-without-binding"],
            "mini alone: name another with --also, or take --with",
        ),
        (
            ["--blind", "--html", "a.html", "--predictions", "p", "--split", "drawn"],
            "p alone: name another with --also\n",
        ),
        (["--without-binding", "--no-without-binding"], "one of them at most"),
        (["--votes", "a.json"], "--votes and --key belong together"),
        (["--votes", "a.json", "--key", "k.json"], "cannot read k.json"),
        (["--votes", "a.json", "--key", "k.json", "--count", "3"], "makes no use of --count"),
    ],
)
def test_bad_input_is_one_line(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run(main, flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and len(error.strip().splitlines()) == 1
