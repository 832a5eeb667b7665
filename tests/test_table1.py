"""The builder of multi-garment sets: what goes together, the files, and the evaluation that reads them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.cli import run
from fcjax.data import Prepared
from infer import evaluate, table1
from infer.listed_sets import ListedSets, read_sets
from infer.table1 import Catalogue, Item, Request, build, draw, prompt_of
from tests.miniatures import drawn, flat, save
from train.raw_records import RawOptions
from train.source_jobs import FolderJob, prepare_source

COLORS = ("red", "green", "blue", "black", "pink", "brown", "grey")
RGB = ((200, 30, 40), (30, 150, 60), (40, 60, 190), (30, 30, 30), (240, 150, 180), (110, 70, 40), (130, 130, 130))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven people in a shirt and trousers of one colour; the first has a face, the second a hat."""
    root = tmp_path_factory.mktemp("source")
    for name, rgb in zip(COLORS, RGB, strict=True):
        save(root / f"images/{name}.png", drawn().image)
        save(root / f"iuv/{name}.png", drawn().iuv)
        for noun in ("shirt", "trousers"):
            # Cut out edge to edge: nothing of its box is transparent.
            save(root / f"assets/{name}/{name}_{noun}.png", np.dstack([flat(rgb)[0], flat(rgb)[1]]))
    save(root / "assets/red/a_woman.png", np.dstack([flat((220, 170, 140))[0], flat((0, 0, 0))[1]]))
    save(root / "assets/green/a_green_hat.png", np.dstack([flat((20, 90, 30))[0], flat((0, 0, 0))[1]]))
    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare_source(FolderJob(root, out, options=RawOptions(height=64, width=48, max_assets=3), workers=1))
    return out


def catalogue_of(**counts: int) -> Catalogue:
    """Ten people with bodies, and garments of as many of each kind, every one of its own sample."""
    numbers = iter(range(100, 200))
    garments = {
        role: [Item(next(numbers), 1, 0, role, f"{role} {number}") for number in range(count)]
        for role, count in counts.items()
    }
    return Catalogue(list(range(10)), {3: Item(3, 1, 0, "face", "a man")}, garments)


def test_outfits_go_together():
    catalogue = catalogue_of(upper=4, lower=4, dress=4, shoes=4, hat=4, bag=4, outer=4)
    seen = set()
    for seed in range(60):
        count = 2 + seed % 3
        person, items = draw(catalogue, count, np.random.default_rng(seed))
        roles = [item.role for item in items if item.role != "face"]
        assert len(roles) == count == len(set(roles)) and (items[0].role == "face") == (person == 3)
        assert ("dress" in roles) != ({"upper", "lower"} <= set(roles))
        assert len({person, *(item.sample for item in items if item.role != "face")}) == count + 1
        assert all(item.phrase in prompt_of(items) for item in items[1:])
        seen |= set(roles)
    assert seen == {"upper", "lower", "dress", "shoes", "hat", "bag", "outer"}


def test_what_a_set_cannot_be_drawn_from():
    without = catalogue_of(upper=3, lower=3)
    for seed in range(5):
        assert len(draw(without, 2, np.random.default_rng(seed))[1]) >= 2
        with pytest.raises(ValueError, match="3 garments .* the data set shows 3 lower, 3 upper: ask for fewer"):
            draw(without, 3, np.random.default_rng(seed))
    # One top, and the person drawn is the one who wears it; or all tops are described alike as what is worn below.
    own = Catalogue([100], {}, catalogue_of(upper=1, lower=1).garments)
    alike = {"upper": [Item(1, 1, 0, "top", "a thing")], "lower": [Item(2, 1, 0, "pants", "a thing")]}
    for catalogue in (own, Catalogue([0], {}, alike)):
        with pytest.raises(ValueError, match="are not to be had"):
            draw(catalogue, 2, np.random.default_rng(0))


def test_roles_and_prompts():
    jacket, face = Item(0, 1, 0, "jacket", "a blue jacket"), Item(1, 1, 0, "face", "an old man")
    assert jacket.role == "outer" and face.role == "face" and Item(0, 1, 0, "trousers", "x").role == "lower"
    assert prompt_of([jacket, Item(0, 2, 0, "top", "a shirt")]) == "A person wearing a blue jacket and a shirt."
    assert prompt_of([face, jacket]) == "An old man wearing a blue jacket."


def test_sets_are_files_and_the_same_for_a_seed(data: Path, tmp_path: Path):
    first = build(Request(data, tmp_path / "a", count=5, garments=(2, 3), seed=1), quiet=True)
    again = build(Request(data, tmp_path / "b", count=5, garments=(2, 3), seed=1), quiet=True)
    assert first == again != build(Request(data, tmp_path / "c", count=5, garments=(2, 3), seed=2), quiet=True)
    assert read_sets(tmp_path / "a/sets.jsonl") == first
    assert sorted(path.name for path in (tmp_path / "a/iuv").iterdir()) == [f"{n:03d}.png" for n in range(5)]
    records, names = Prepared(data), sorted(COLORS)
    for number, one in enumerate(first):
        garments = [asset for asset in one.assets if asset.kind != "face"]
        assert len(garments) == 2 + number % 2 and one.seed == number
        assert ("hat" in {asset.kind for asset in one.assets}) == bool(number % 2)
        for asset in garments:
            assert asset.phrase in one.prompt and names[asset.sample] in asset.phrase
            pixels = np.asarray(Image.open(tmp_path / "a" / asset.file))
            again = np.asarray(Image.open(tmp_path / "b" / asset.file))
            np.testing.assert_array_equal(pixels, again)
            assert pixels.shape[2] == 4
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / one.iuv)), records[one.person]["iuv"])
    sets = ListedSets(tmp_path / "a/sets.jsonl", (64, 48))
    for number, one in enumerate(first):
        held = sets[number]
        assert (
            held.target.truth is None
            and held.seed == number
            and held.target.kinds == tuple(asset.kind for asset in one.assets)
        )
        shown = {held.target.kinds[region - 1] for region in np.unique(held.target.regions) if region}
        assert {"top", "pants"} <= shown <= {"top", "pants", "face"}


@pytest.mark.filterwarnings("ignore:the model never learnt")
def test_the_sets_are_evaluated(data: Path, tiny_model_folder: Path, tmp_path: Path, capsys):
    run(table1.main, ["--data", str(data), "--count", "2", "--garments", "2", "--out", str(tmp_path / "sets")])
    assert f"2 sets: {tmp_path / 'sets/sets.jsonl'}" in capsys.readouterr().out
    listed = str(tmp_path / "sets/sets.jsonl")
    words = ["--model", tiny_model_folder, "--sets", listed, "--steps", 1, "--size", 64, 48, "--rows", 1]
    run(evaluate.main, [str(word) for word in (*words, "--json", tmp_path / "o.json", "--worst", tmp_path / "w.png")])
    found = json.loads((tmp_path / "o.json").read_text())
    figures = found["arms"][str(tiny_model_folder)]["figures"]
    assert figures["binding_accuracy"]["count"] == 4 and figures["palette_distance"]["mean"] > 0
    assert "psnr" not in figures and (tmp_path / "w.png").exists()
    assert [one["prompt"] for one in found["sets"]] == [one.prompt for one in read_sets(Path(listed))]
    # Any other system's pictures get the same figures; here the model's own, under other names and as all or none.
    kept = tmp_path / "kept"
    run(evaluate.main, [str(word) for word in (*words, "--rows", 2, "--pictures", kept)])
    (kept / "000001.png").rename(kept / "1.png")
    given = ["--predictions", str(kept), "--sets", listed, "--labels", "another system"]
    run(evaluate.main, [*given, "--json", str(tmp_path / "p.json"), "--csv", str(tmp_path / "p.csv")])
    other = json.loads((tmp_path / "p.json").read_text())
    assert other["arms"] == {"another system": found["arms"][str(tiny_model_folder)]}
    assert not {"steps", "sampler", "guidance"} & other["settings"].keys() and other["settings"]["model"] == str(kept)
    assert other["counts"] == {"scored": 2, "of": 2} and len((tmp_path / "p.csv").read_text().splitlines()) == 3
    (kept / "1.png").unlink()
    with pytest.raises(SystemExit):
        run(evaluate.main, given)
    assert "has no picture of 1 of 2 sets (1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "0"], "count is 0"),
        (["--garments", "1"], r"garments is \(1,\); expected numbers from 2 to 7"),
        (["--garments", "5"], "5 garments that go together"),
        (["--out", "HERE"], "holds sets already"),
        (["--data", "nowhere"], "expected a prepared data set"),
    ],
)
def test_bad_requests_are_one_line(words: list[str], said: str, data: Path, tmp_path: Path, capsys):
    (tmp_path / "sets.jsonl").touch()
    words = [str(tmp_path) if word == "HERE" else word for word in words]
    given = {"--data": str(data), "--out": str(tmp_path / "new")} | dict(zip(words[::2], words[1::2], strict=True))
    with pytest.raises(SystemExit) as stopped:
        run(table1.main, [word for pair in given.items() for word in pair])
    # Progress bars end before the error.
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert stopped.value.code == 2 and len(error) == 1 and re.search(said, error[0])
    assert not (tmp_path / "new").exists()


GOOD = {"prompt": "p", "seed": 0, "iuv": "iuv.png", "assets": [{"file": "a.png", "phrase": "x", "kind": "top"}]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "sets.jsonl:1 is no JSON"),
        ("[]", "must be an object with prompt"),
        (json.dumps({**GOOD, "promt": ""}), r"unknown key promt \(did you mean prompt"),
        (json.dumps({**GOOD, "assets": [{"file": "a.png", "kind": "top"}]}), r"assets\[0\].phrase is missing"),
        (json.dumps({**GOOD, "assets": ["a.png"]}), r"assets\[0\] must be an object"),
        (json.dumps({**GOOD, "seed": "1"}), "seed is '1'; expected a whole number"),
        (json.dumps({**GOOD, "assets": [{"file": 1, "phrase": "x", "kind": "top"}]}), "file is 1; expected text"),
        (json.dumps(GOOD), "names 2 files that are not beside it: a.png, iuv.png"),
        ("", "holds no set"),
        (None, "no such list of sets"),
    ],
)
def test_lists_that_are_none(line: str | None, said: str, tmp_path: Path):
    if line is not None:
        (tmp_path / "sets.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=said):
        read_sets(tmp_path / "sets.jsonl")
