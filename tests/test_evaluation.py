"""What is said of sets that several arms drew: whom they show, which are the worst, and whose garments were put on."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from fcjax.cli import run
from fcjax.composer import Composer
from fcjax.metrics import Scores, asset_palette, face_scores
from infer.arms import Arm, make_arms, picture_arms
from infer.evaluate import main
from infer.evaluation import Evaluation, Results, report, settings, worst
from infer.evaluation_request import Request
from infer.figures import prepare_pictures
from infer.predictions import FolderFlags, working_folder
from infer.prepared_sets import PreparedSets
from infer.set_evaluation import _drawn_by, keep_pictures, score_drawn, title
from infer.sets import DrawnSets, WardrobeSets
from tests.miniatures import viton_hd
from train.prepare import WardrobeJob, prepare_wardrobe
from train.raw_records import RawOptions
from train.source_jobs import VitonHDJob, prepare_source

SIZE = (128, 96)
TRUE = Arm("true", lambda one, assets, seed: one.target.truth, composes=False)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of Wardrobe's people for training, the first in three poses."""
    out = tmp_path_factory.mktemp("people")
    prepare_wardrobe(WardrobeJob(out, count=4, split="train", height=64, width=48, workers=1))
    return out


@pytest.mark.parametrize("split", ["alike", "train"])
def test_sets_of_one_person_are_one_group(split: str, tmp_path: Path):
    evaluation = score_drawn(WardrobeSets(split, 1, *SIZE), [TRUE], tmp_path, 4, quiet=True)
    assert evaluation.summary("true")["binding_accuracy"].groups == 2
    assert all(figure.groups <= 2 for figure in evaluation.textures("true").values())


def test_prepared_sets_of_one_person_are_one_group(people: Path):
    """Of an exchange those that wear one person's garments."""
    paired, unpaired = (PreparedSets(people, "compose", pairing, 0, (64, 48)) for pairing in ("paired", "unpaired"))
    assert [paired[index].group for index in range(4)] == [0, 0, 0, 1]
    assert [unpaired[index].group for index in range(4)] == [int(donor == 3) for donor in unpaired.donors]


def test_the_title_tells_the_split_of_a_data_set(people: Path):
    request, sets = Request(data=people, task="compose"), PreparedSets(people, "compose", "paired", 0, (64, 48))
    assert title(request, sets, [], 3) == f"{people}, split train, 3 sets, compose, paired, A SUBSET of 4"
    assert sets.made_from["settings"]["split"] == "train" and "shards" not in sets.made_from


def test_swaps_of_one_person_are_one_group():
    evaluation = Evaluation({"model": Results(swaps=[True, True, False])}, swap_groups=[0, 0, 4])
    assert evaluation.summary("model")["swap_test"][3:] == (3, 2)


def test_a_persons_other_picture_shows_no_wrong_face():
    own, other = (
        asset_palette(np.full((20, 20, 4), (*color, 255), np.uint8)) for color in ((90, 60, 40), (230, 190, 170))
    )
    alone = face_scores([own, own, other], [own, own, other])
    grouped = face_scores([own, own, other], [own, own, other], [0, 0, 1])
    assert alone[0]["face_recognised"] == [0.5] and grouped[0]["face_recognised"] == [1]
    assert grouped[0]["wrong_face_distance"] == alone[2]["wrong_face_distance"] == grouped[2]["wrong_face_distance"]
    assert face_scores([own, own], [own, own], [7, 7]) == [{}, {}]


@pytest.mark.parametrize("names", [("json", "html"), ("sheet", "worst"), ("pictures",)])
def test_what_is_done_lies_beside_the_first_output(names: tuple[str, ...], tmp_path: Path):
    """Until all is written."""
    outputs = Request(**{name: tmp_path / name for name in names}).outputs
    with pytest.raises(KeyboardInterrupt), working_folder(None, outputs) as folder:
        folder.mkdir()
        raise KeyboardInterrupt
    assert folder == tmp_path / f"{names[0]}.partial" and folder.is_dir()
    with working_folder(None, outputs) as again:
        assert again == folder
    assert not folder.exists()


def test_how_pictures_were_sampled_is_told(tiny_model_folder: Path, tmp_path: Path):
    """Each model's own where none is asked for; what is drawn is known by it, whatever columns are called."""
    other = Path(shutil.copytree(tiny_model_folder, tmp_path / "other"))
    index = json.loads((other / "model_index.json").read_text())
    index["fcjax"] |= {"guidance": 3.0, "steps": 8}
    (other / "model_index.json").write_text(json.dumps(index))
    one, both = Request(model=str(tiny_model_folder)), Request(model=str(tiny_model_folder), also=(str(other),))
    named = dataclasses.replace(both, labels=("ours", "theirs"))
    assert settings(one)["guidance"] == 1.5 and settings(named)["guidance"] == {"ours": 1.5, "theirs": 3.0}
    assert settings(one)["steps"] == 20 and settings(named)["steps"] == {"ours": 20, "theirs": 8}
    assert settings(dataclasses.replace(both, guidance=2.0))["guidance"] == 2.0
    assert _drawn_by(one, SIZE) == _drawn_by(dataclasses.replace(one, guidance=1.5, steps=20), SIZE)
    assert _drawn_by(both, SIZE) == _drawn_by(named, SIZE) != _drawn_by(dataclasses.replace(both, guidance=1.5), SIZE)
    scored = settings(Request(split="drawn", folders=FolderFlags(predictions=tmp_path)))
    assert not {"guidance", "steps"} & scored.keys()


def test_pictures_of_no_set_are_told(tmp_path: Path):
    for name in ("0.png", "1.png", "2.jpg", "sheet.png"):
        Image.new("RGB", (48, 64)).save(tmp_path / name)
    (tmp_path / "odd.gif").touch()
    with pytest.raises(ValueError, match=r"has 2 pictures of no set \(odd.gif, sheet.png\)"):
        picture_arms([tmp_path], ["ours"], 2, truth=False)
    for name in ("odd.gif", "sheet.png"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"has 1 picture of no set \(2.jpg\)"):
        picture_arms([tmp_path], ["ours"], 2, truth=False, sets=2)
    columns, size = picture_arms([tmp_path], ["ours"], 2, truth=False)
    request = Request(split="drawn", count=2, folders=FolderFlags(predictions=tmp_path))
    assert title(request, DrawnSets(0, *size), columns, 2) == "2 drawn sets, A SUBSET of 3"


def test_pictures_of_two_runs_are_not_mixed(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, ("000000.png", "000007.jpg", "notes.txt")), (second, ("000000.png", "000001.png"))):
        prepare_pictures(folder, overwrite=False)
        for name in names:
            (folder / name).write_text(folder.name)
    with pytest.raises(
        ValueError, match="first is not empty: name another folder for the pictures, or say --overwrite"
    ):
        prepare_pictures(first, overwrite=False)
    prepare_pictures(first, overwrite=True)
    keep_pictures(sorted(second.iterdir()), first)
    found = {path.name: path.read_text() for path in first.iterdir()}
    assert found == {"000000.png": "second", "000001.png": "second", "notes.txt": "first"}


def test_a_set_tells_whose_garments_were_put_on(tmp_path: Path):
    """By the data set's own names, so that any other method can be run on the same pairs; VITON-HD has no body maps."""
    names = ("00001_00", "00002_00", "00003_00")
    root, options = viton_hd(tmp_path / "source", names), RawOptions(height=64, width=48, need_pose=False)
    shutil.rmtree(root / "test/image-densepose-iuv")
    for out, paired in (("own", True), ("others", False)):
        prepare_source(VitonHDJob(root, tmp_path / out, options, split="test", paired=paired, worn=False, workers=1))
    sets = PreparedSets(tmp_path / "own", "tryon", "unpaired", 0, (64, 48))
    for index, donor in enumerate(sets.donors):
        garments = {"sample": donor, "name": names[donor]}
        assert sets[index].samples == {"person": {"sample": index, "name": names[index]}, "garments": garments}
        assert index != donor
    arms = [Arm("person", lambda one, *_: one.person.image)]
    paired = PreparedSets(tmp_path / "own", "tryon", "paired", 0, (64, 48))
    assert paired[1].samples["person"] == paired[1].samples["garments"] == {"sample": 1, "name": names[1]}
    figures = score_drawn(paired, arms, tmp_path / "paired", 2, quiet=True).summary("person")
    assert figures["texture_correlation"].mean == pytest.approx(1) and "binding_accuracy" not in figures
    evaluation = score_drawn(sets, arms, tmp_path / "drawn", 2, quiet=True)
    told = report(Request(count=2, folders=FolderFlags(predictions=tmp_path), split="drawn"), evaluation, (64, 48))
    assert told["sets"][1]["garments"] == {"sample": sets.donors[1], "name": names[sets.donors[1]]}
    # The official list's garments, each on the next person.
    listed = PreparedSets(tmp_path / "others", "tryon", "unpaired", 0, (64, 48))
    assert len(listed) == 3 and listed[0].samples == {"person": {"sample": 0, "name": names[0]}}
    colors = [np.median(listed[index].assets[0].image[..., 1]) for index in range(3)]
    assert colors[2] < colors[0] < colors[1]


def test_the_worst_sets_are_those_of_the_figures_that_there_are():
    def evaluation(*figures: dict[str, list[float]]) -> Evaluation:
        groups = list(range(len(figures)))
        return Evaluation(
            {"model": Results([Scores(one) for one in figures])}, faces=[None for _ in figures], groups=groups
        )

    far = evaluation(*({"palette_distance": values} for values in ([1.0], [5.0, 7.0], [3.0])))
    assert worst(far, "model", 2) == [1, 2]
    scored: Any = SimpleNamespace(metrics=("lpips", "fid"), figures=[{"lpips": value} for value in (0.1, 0.2, 0.9)])
    assert worst(far, "model", 2, scored) == [2, 1]
    assert worst(far, "model", 1, SimpleNamespace(metrics=("fid",))) == [1]
    bound = evaluation({"binding_accuracy": [0.5]}, {"binding_accuracy": [1.0]}, {"texture_correlation": [0.1]})
    assert worst(bound, "model", 2, scored) == [0, 2]
    with pytest.raises(ValueError, match="no figure that tells which are worst: leave --worst out"):
        worst(evaluation({"kept_outside": [1.0]}), "model", 1)


@pytest.mark.filterwarnings("ignore:the model never learnt")
def test_a_truth_that_becomes_no_number_is_no_picture(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    composer = Composer.load(tiny_model_folder)
    composer.params["vae"] = jax.tree.map(lambda leaf: leaf * np.nan, composer.params["vae"])
    monkeypatch.setattr(Composer, "load", lambda name: composer)
    (truth, through_vae, *_), _ = make_arms("large", (), {}, size=(64, 48), binding_off=False, truth=True)
    one = WardrobeSets("heldout", 1, 64, 48)[0]
    assert truth.draw(one, one.assets, 0) is one.target.truth
    with pytest.raises(ValueError, match="drew NaN or infinite numbers"):
        through_vae.draw(one, one.assets, 0)


def test_help_shows_commands_and_defaults_as_they_are_typed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        run(main, ["--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m infer.evaluate ") and "None}" not in said and "(default: None)" not in said
    assert "python -m infer.evaluate --votes votes-*.json --key page.key.json" in said.splitlines()
