"""Evaluations on a prepared data set: its sets, what they are held against, and the program with a tiny model."""

import csv
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fcjax import pretrained
from fcjax.body import Body
from fcjax.cli import run
from fcjax.composer import Composer
from fcjax.data import Prepared
from fcjax.metrics import score
from fcjax.metrics.protocols import PROTOCOLS
from fcjax.metrics.ssim import ssim_outside
from fcjax.pictures import open_rgb
from fcjax.tokenizer import Tokenizer
from infer import predictions, set_evaluation
from infer.arms import Arm
from infer.drawing import draw
from infer.evaluate import main
from infer.evaluation import given, table
from infer.evaluation_request import Request
from infer.predictions import FolderFlags, Scored
from infer.prepared_sets import PreparedSets, completed, maps_of, renumbered, stored_regions, without_bare, worn_of
from infer.scoring import Networks
from infer.set_evaluation import by_protocol, score_drawn
from tests import miniatures
from tests.miniatures import flat, save
from tests.test_folders import mean_difference, mean_features
from train.prepare import WardrobeJob, prepare_wardrobe
from train.raw_records import RawOptions
from train.source_jobs import FolderJob, prepare_source

SIZE = (64, 48)
pytestmark = pytest.mark.filterwarnings("ignore:the model never learnt")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three people, each with two garments of their own colours."""
    root = miniatures.own_folder(tmp_path_factory.mktemp("source"))
    for name, colors in (("ben", ((30, 150, 60), (230, 200, 40))), ("cleo", ((120, 40, 150), (250, 130, 20)))):
        for file, color in zip(("a_plain_shirt", "plain_trousers"), colors, strict=True):
            save(root / f"assets/{name}/{file}.png", flat(color)[0])
        save(root / f"iuv/{name}.png", miniatures.drawn().iuv)
    return root


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "prepared"
    options = RawOptions(height=SIZE[0], width=SIZE[1], max_assets=3)
    prepare_source(FolderJob(source, out, options=options, workers=1))
    return out


@pytest.fixture(scope="module")
def tryon_model(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model for try-on, whose conv_in reads the person and the mask."""
    read = pretrained.load(tiny_model_folder, condition="tryon")
    conv_in = read.params["unet"]["conv_in"]
    weights = 0.2 * jax.random.normal(jax.random.key(1), conv_in["kernel"].shape)
    params = {**read.params, "unet": {**read.params["unet"], "conv_in": {**conv_in, "kernel": weights}}}
    folder = tmp_path_factory.mktemp("models") / "tryon"
    Composer(read.config, params, Tokenizer.load(tiny_model_folder / "tokenizer")).save(folder)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Sets


def test_a_paired_set_is_the_sample(data: Path):
    sets, records = PreparedSets(data, "compose", "paired", 0, SIZE), Prepared(data)
    assert len(sets) == 3
    one, record = sets[1], records[1]
    assert one.prompt == record["caption"] and one.target.kinds == tuple(record["kinds"]) == ("top", "pants")
    np.testing.assert_array_equal(one.target.truth, record["image"])
    np.testing.assert_array_equal(sets.picture(1), record["image"])
    np.testing.assert_array_equal(one.maps.iuv, record["iuv"])
    for number, (asset, box) in enumerate(zip(one.assets, one.boxes, strict=True), 1):
        opaque = asset.image[..., 3] == 255
        assert asset.phrase == record["phrases"][number - 1]
        assert np.count_nonzero(opaque) == np.count_nonzero(record["owners0"] == number)
        inside = record["canvas0"][box[0] : box[2], box[1] : box[3]]
        np.testing.assert_array_equal(asset.image[opaque][:, :3], inside[opaque])
    # No parse map says where the garments are: the trunk and the legs do.
    parts = record["iuv"][..., 0]
    assert set(np.unique(one.target.regions[np.isin(parts, (1, 2))])) == {1}
    assert set(np.unique(one.target.regions[np.isin(parts, range(7, 15))])) == {2}
    assert not one.target.regions[parts == 0].any()


def test_of_another_size_assets_are_laid_out_anew(data: Path):
    one = PreparedSets(data, "compose", "paired", 0, (32, 32))[0]
    assert one.boxes is None and one.target.truth is not None and one.target.truth.shape == (32, 32, 3)
    assert one.target.regions.shape == one.maps.uv.shape[:2] == (32, 32) and one.target.regions.max() == 2


@pytest.mark.parametrize("seed", range(4))
def test_unpaired_sets_take_anothers_garments(data: Path, seed: int):
    sets, records = PreparedSets(data, "compose", "unpaired", seed, SIZE), Prepared(data)
    assert sorted(sets.donors) == sets.indices == [0, 1, 2]
    for index, donor in enumerate(sets.donors):
        one = sets[index]
        assert donor != index and one.prompt == records[donor]["caption"] and one.target.truth is None
        assert one.target.regions.max() == 2
        np.testing.assert_array_equal(sets.picture(index), records[index]["image"])
    assert PreparedSets(data, "compose", "unpaired", seed, SIZE).donors == sets.donors


def test_try_on_exchanges_what_is_worn_alike(data: Path):
    """Ann wears a skirt, as nobody else does."""
    sets = PreparedSets(data, "tryon", "unpaired", 0, SIZE)
    assert sets.indices == [1, 2] and sets.donors == [2, 1] and sets.without_partner == [0]
    one, record = sets[0], Prepared(data)[1]
    assert one.person is not None
    np.testing.assert_array_equal(one.person.mask, record["mask"] > 0)
    np.testing.assert_array_equal(one.person.framed(*SIZE)[0], record["agnostic"])


def test_regions():
    regions = np.array([[0, 1, 2], [2, 0, 0]], np.uint8)
    np.testing.assert_array_equal(renumbered(regions, ("top", "pants"), ("pants", "bag")), [[0, 0, 1], [1, 0, 0]])
    # Which of two coats takes the place of one, nobody knows.
    np.testing.assert_array_equal(renumbered(regions, ("upper", "lower"), ("upper", "upper", "lower")) > 0, regions > 1)
    parts = np.array([[1, 1, 7], [7, 5, 23]], np.uint8)
    none = np.zeros_like(parts)
    np.testing.assert_array_equal(completed(none, parts, ("face", "pants", "shoes", "hat")), [[0, 0, 2], [2, 3, 1]])
    # A coat over a top: nobody knows whose the trunk is.
    np.testing.assert_array_equal(completed(none, parts, ("top", "coat", "pants")), [[0, 0, 3], [3, 0, 0]])
    # What is known stays.
    np.testing.assert_array_equal(completed(regions, parts, ("top", "skirt", "shoes")), [[0, 1, 2], [2, 3, 0]])


def test_what_a_garment_leaves_bare_is_no_place_of_it():
    """Long sleeves in place of which come short ones; of the back nothing is known."""
    front, back = (Body(pose="standing", view=view).render(128, 96).iuv for view in (0, 180))
    parts, forearms, trunk = front[..., 0], tuple(range(19, 23)), (1, 2, 15, 16, 17, 18)
    long, short = (np.isin(parts, worn).astype(np.int8) for worn in ((*trunk, *forearms), trunk))
    left = without_bare(long, front, short, front)
    assert left[np.isin(parts, forearms)].mean() < 0.15 and left[np.isin(parts, trunk)].mean() > 0.9
    assert not left[long == 0].any()
    assert without_bare(long, front, np.zeros_like(long), back)[parts == 2].mean() > 0.95


def test_try_on_of_wardrobes_people(tmp_path: Path):
    prepare_wardrobe(WardrobeJob(tmp_path, count=13, split="heldout", height=64, width=48, workers=1, tryon=True))
    paired, unpaired = (PreparedSets(tmp_path, "tryon", pairing, 0, SIZE) for pairing in ("paired", "unpaired"))
    for sets in (paired, unpaired):
        for index in range(len(sets)):
            one, own = sets[index], sets.data[sets.indices[index]]
            assert not one.target.regions[~one.person.mask].any()
            assert given(one)[-1][0] == "the person" and given(one)[-1][1] is one.person.image
            seen = np.unique(one.target.regions)
            worn = worn_of(sets.data[sets.donors[index]])
            # A swatch as well as a flat is looked for where such a thing is worn.
            assert set(seen) >= {number for number, what in enumerate(worn, 1) if worn.count(what) == 1}
            assert one.prompt == own["caption"] if sets is paired else one.prompt.startswith(own["subject"])
    swatches = 0
    for index, donor in enumerate(unpaired.donors):
        own, other = unpaired.data[unpaired.indices[index]], unpaired.data[donor]
        assert sorted(own["worn"]) == sorted(other["worn"])
        assert all(phrase in unpaired[index].prompt for phrase in other["phrases"])
        swatches += "swatch" in own["kinds"] and "swatch" not in other["kinds"]
    assert swatches


def test_maps_of_a_picture_are_those_of_the_body():
    drawn = Body(pose="walking").render(64, 48)
    maps = maps_of(drawn.iuv)
    np.testing.assert_array_equal(maps.foreground, drawn.foreground)
    np.testing.assert_allclose(maps.uv, drawn.uv, atol=0.5 / 255)
    assert np.count_nonzero(maps.face_mask != drawn.face_mask) <= 2


def test_true_garments_are_told_apart(data: Path):
    """A picture in which every region has its asset's colour."""
    one = PreparedSets(data, "compose", "unpaired", 1, SIZE)[0]
    picture = np.full((*SIZE, 3), 128, np.uint8)
    for number, asset in enumerate(one.assets, 1):
        picture[one.target.regions == number] = np.median(asset.image[asset.image[..., 3] == 255][:, :3], axis=0)
    assert score(picture, one.target).figures["binding_accuracy"] == [1, 1]
    swapped = picture.copy()
    for number in (1, 2):
        swapped[one.target.regions == number] = picture[one.target.regions == 3 - number][0]
    assert score(swapped, one.target).figures["binding_accuracy"] == [0, 0]


def test_figures_of_networks_join_the_table(data: Path, tmp_path: Path):
    sets = PreparedSets(data, "compose", "paired", 0, SIZE)
    arms = [Arm("own", lambda one, assets, seed: one.target.truth)]
    draw(sets, arms, tmp_path, 2, 0, (0, 1), quiet=True)
    further = {"clip_i": ("CLIP-I", lambda picture, one: [picture.mean() + place for place in range(len(one.assets))])}
    evaluation = score_drawn(sets, arms, tmp_path, 2, further, quiet=True)
    found = evaluation.summary("own")["clip_i"]
    expected = np.mean([sets.picture(index).mean() + 0.5 for index in range(2)])
    assert found.mean == pytest.approx(expected) and (found.count, found.groups) == (4, 2)
    assert "CLIP-I" in table(evaluation)


def test_a_smaller_count_is_scored_alone_by_a_protocol(data: Path, tmp_path: Path):
    """In a folder that holds pictures of more sets, too."""
    sets = PreparedSets(data, "compose", "paired", 0, SIZE)
    arms = [Arm("grey", lambda one, assets, seed: np.full((*SIZE, 3), 40 * (1 + len(one.prompt) % 5), np.uint8))]
    networks = Networks(mean_difference, mean_features)

    def scored(folder: Path, count: int) -> Scored:
        draw(sets, arms, folder, count, 0, (0, 1), quiet=True)
        flags = FolderFlags(protocol="ladi-512")
        return by_protocol(sets, arms, folder, count, flags, 0, networks)["grey"]

    all_three, two, anew = scored(tmp_path / "a", 3), scored(tmp_path / "a", 2), scored(tmp_path / "b", 2)
    assert two.notes == [
        "truth: the data set's pictures at 64x48 (height x width), not the files that it was made from"
    ]
    assert two.counts == {"predictions": 2, "truth": 2} and all_three.counts == {"predictions": 3, "truth": 3}
    assert two.figures == anew.figures == all_three.figures[:2]
    assert two.distances == anew.distances != all_three.distances
    assert scored(tmp_path / "a", 3).distances == all_three.distances


def test_pictures_are_known_by_the_weights_that_draw_them(monkeypatch: pytest.MonkeyPatch):
    """In the order of the columns, whatever these are called."""
    digest = {"a": "1", "b": "2", "copy of a": "1"}
    monkeypatch.setattr(
        set_evaluation, "weights", lambda one: dict(zip(one.names, map(digest.get, one.drawn_by), strict=True))
    )

    def told(model: str, *also: str, labels: tuple[str, ...] = ()) -> dict:
        return set_evaluation._drawn_by(Request(model=model, also=also, labels=labels), SIZE)

    assert told("a", "b") == told("a", "b", labels=("ours", "theirs")) == told("copy of a", "b")
    assert told("a", "b") != told("b", "a") and told("a") != told("a", "b") and told("a") != told("b", labels=("a",))


# ---------------------------------------------------------------------------------------------------------------------
# The program


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch):
    """Networks and a protocol of the tests' size."""
    monkeypatch.setattr(
        predictions, "load_networks", lambda *_: Networks(mean_difference, mean_features, {"inception": "halves"})
    )
    monkeypatch.setitem(PROTOCOLS, "ladi-512", dataclasses.replace(PROTOCOLS["ladi-512"], height=64, width=48))


def evaluated(*words: object) -> None:
    run(main, [str(word) for word in ("--steps", 1, "--size", *SIZE, *words)])


def test_composing_a_prepared_set(data: Path, tiny_model_folder: Path, tmp_path: Path, capsys):
    words = ("--model", tiny_model_folder, "--data", data, "--task", "compose", "--protocol", "ladi-512", "--rows", 2)
    words = (*words, "--work", tmp_path / "work", "--json", tmp_path / "out.json", "--csv", tmp_path / "out.csv")
    # One process draws the first picture, this one the rest.
    evaluated(*words[:6], "--work", tmp_path / "work", "--shard", 0, 3)
    drawn = sorted((tmp_path / "work").glob("*/*.png"))
    assert [path.name for path in drawn] == ["000000.png"] * 3 and "shard 0 of 3" in capsys.readouterr().out
    before = [path.stat().st_mtime_ns for path in drawn]
    pages = ("--html", tmp_path / "page.html")
    evaluated(*words, "--worst", tmp_path / "worst.png", "--sheet", tmp_path / "sheet.png", *pages)
    page = (tmp_path / "page.html").read_text()
    assert page.count('<div class="row">') == 2 and "KID, all pictures" in page
    assert "ladi-512, paired, 3 pictures" in page
    assert [path.stat().st_mtime_ns for path in drawn] == before
    printed = capsys.readouterr().out
    assert "3 sets, compose, paired" in printed and "ladi-512, paired, 3 pictures" in printed
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["counts"] == {"scored": 3, "of": 3} and len(found["sets"]) == 3
    assert found["data"]["source"] == "folder" and found["data"]["settings"]["labels"] == "viton-hd"
    assert found["arms"]["truth"]["figures"]["texture_correlation"]["mean"] == pytest.approx(1)
    own = found["protocols"][str(tiny_model_folder)]
    assert set(own["figures"]) == {"ssim", "lpips"} and set(own["distances"]) == {
        "fid",
        "kid",
        "kid_deviation",
        "kid_exact",
    }
    # The columns are the truth, its reconstruction and the model.
    people = PreparedSets(data, "compose", "paired", 0, SIZE)
    for place, name in ((1, "truth through the VAE"), (2, str(tiny_model_folder))):
        made = open_rgb(tmp_path / f"work/{place}/000001.png")
        expected = PROTOCOLS["ladi-512"].similarity(made, people.picture(1))["ssim"]
        assert found["protocols"][name]["pairs"][1]["ssim"] == pytest.approx(expected)
    assert own["name"] == str(tiny_model_folder) and own["settings"]["predictions"] is None
    assert "work/2" not in json.dumps(found) and "work/2" not in printed
    with (tmp_path / "out.csv").open() as file:
        assert [line["model"] for line in csv.DictReader(file)] == [str(tiny_model_folder)] * 3
    for name in ("worst", "sheet"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.height > 512
    # What the columns are called changes nothing of the pictures.
    drawn = [path for path in (tmp_path / "work").glob("*/*.png")]
    before = [path.stat().st_mtime_ns for path in drawn]
    evaluated(*words, "--overwrite", "--labels", "ours", "--count", 2)
    assert "ladi-512, paired, 2 pictures" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "out.json").read_text())["protocols"]) == ["truth through the VAE", "ours"]
    assert [path.stat().st_mtime_ns for path in drawn] == before and len(drawn) == 12
    with pytest.raises(SystemExit):
        evaluated(*words, "--overwrite", "--seed", 1)
    assert "with other pictures or settings" in capsys.readouterr().err


def test_trying_on_in_a_prepared_set(data: Path, tryon_model: Path, tmp_path: Path, capsys):
    words = ("--model", tryon_model, "--data", data, "--task", "tryon", "--pairing", "unpaired")
    words = (*words, "--protocol", "ladi-512")
    evaluated(*words, "--work", tmp_path / "work", "--json", tmp_path / "out.json")
    printed = capsys.readouterr().out
    assert "2 sets, tryon, unpaired, 1 left out that nobody can exchange" in printed
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["arms"]) == [str(tryon_model)]
    figures = found["arms"][str(tryon_model)]["figures"]
    # Nothing outside the mask is changed.
    assert figures["kept_outside"]["mean"] == 1 and figures["ssim_outside"]["mean"] == pytest.approx(1)
    # Which the model's own picture does not tell of itself.
    raw = open_rgb(tmp_path / "work/0-raw/000000.png")
    person = PreparedSets(data, "tryon", "unpaired", 0, SIZE)[0].person
    np.testing.assert_array_equal(person.restored(raw), open_rgb(tmp_path / "work/0/000000.png"))
    own = found["sets"][0]["figures"][str(tryon_model)]["raw_ssim_outside"]
    assert own == [pytest.approx(ssim_outside(raw, person.image, person.mask))] and own[0] < 0.9
    assert "binding_accuracy" in figures and "psnr" not in figures and "texture_correlation" not in figures
    own = found["protocols"][str(tryon_model)]
    assert own["figures"] == {} and own["distances"]["fid"] > 0
    # Outside the mask the person stays.
    record = Prepared(data)[1]
    with Image.open(tmp_path / "work/0/000000.png") as image:
        made, kept = np.asarray(image), record["mask"] == 0
    np.testing.assert_array_equal(made[kept], record["image"][kept])
    assert not np.array_equal(made[~kept], record["image"][~kept])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "DATA"], "--data needs --task"),
        (["--data", "nowhere", "--task", "compose"], "expected a prepared data set"),
        (["--data", "DATA", "--task", "tryon"], "condition is 'pose'; these sets need one that tries on"),
        (["--data", "DATA", "--task", "compose", "--count", "4"], "count is 4, "),
        (["--data", "DATA", "--task", "compose", "--split", "train"], "--data makes no use of --split"),
        (["--data", "DATA", "--task", "compose", "--metrics", "ssim"], "name it with --protocol"),
        (["--data", "DATA", "--task", "compose", "--shard", "2", "2", "--work", "w"], "I from 0 to N - 1"),
        (["--data", "DATA", "--task", "compose", "--shard", "0", "2"], "and --work"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, data: Path, tiny_model_folder: Path, capsys):
    given = [str(data) if word == "DATA" else word for word in words]
    with pytest.raises(SystemExit) as stopped:
        run(main, ["--model", str(tiny_model_folder), *given])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and len(error.strip().splitlines()) == 1


def test_a_model_that_takes_a_pose_is_not_scored_on_people_of_unknown_pose(
    data: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    index = json.loads((data / "index.json").read_text())
    folder = tmp_path / "poseless"
    folder.mkdir()
    for shard in index["shards"]:
        (folder / shard).symlink_to(data / shard)
    index["settings"]["need_pose"] = False
    (folder / "index.json").write_text(json.dumps(index))
    Composer.load(tiny_model_folder, condition="posed_tryon").save(tmp_path / "posed")
    with pytest.raises(SystemExit):
        run(main, ["--model", str(tmp_path / "posed"), "--data", str(folder), "--task", "tryon", "--count", "1"])
    assert "poseless was prepared with --no-need-pose" in capsys.readouterr().err


def test_sets_that_cannot_serve(source: Path, data: Path, tmp_path: Path):
    options = RawOptions(height=64, width=48, max_assets=3, agnostic=False, count=1)
    prepare_source(FolderJob(source, tmp_path / "one", options=options, workers=1))
    with pytest.raises(ValueError, match="no cloth-agnostic people"):
        PreparedSets(tmp_path / "one", "tryon", "paired", 0, SIZE)
    with pytest.raises(ValueError, match="no two samples .* can exchange garments"):
        PreparedSets(tmp_path / "one", "compose", "unpaired", 0, SIZE)
    index = json.loads((data / "index.json").read_text())
    for name, changed, words in (
        ("latents", {**index, "source": "latents"}, "holds latents"),
        ("swapped", {**index, "settings": {**index["settings"], "paired": False}}, "prepared with unpaired garments"),
        (
            "poseless",
            {**index, "settings": {**index["settings"], "need_pose": False}},
            "poseless was prepared with --no",
        ),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for shard in index["shards"]:
            (folder / shard).symlink_to(data / shard)
        (folder / "index.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=words):
            PreparedSets(folder, "compose", "paired", 0, SIZE)
    # Try-on sees the pose in the person's picture.
    assert len(PreparedSets(tmp_path / "poseless", "tryon", "paired", 0, SIZE)) == 3
    with pytest.raises(ValueError, match="does not say where its garments are worn: prepare the set anew"):
        stored_regions({"caption": "a man", "origins": np.zeros((4, 4, 3), np.uint8)})
    # What was prepared with another's garments keeps them.
    assert PreparedSets(tmp_path / "swapped", "compose", "unpaired", 0, SIZE).donors == [0, 1, 2]
