"""Samples of data sets as records, and what training reads of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import load_config
from fcjax import folder
from fcjax.body import atlas_uv, flip_iuv, load_densepose_symmetry
from fcjax.data import Mixed, Prepared, decode_record, training_batches
from fcjax.data.augment import Augmentation
from fcjax.data.sources import Folder
from fcjax.models.parameters import init_parameters
from fcjax.tokenizer import Tokenizer
from tests import miniatures
from tests.conftest import TOKENIZER
from tests.training import one_level
from train import run
from train.config import TrainConfig
from train.examples import example_of, pose_points
from train.latent_records import LatentsJob
from train.prepare import WardrobeJob, prepare_latents, prepare_wardrobe
from train.raw_records import RawJob, RawOptions, raw_record, within_reach
from train.shards import LeftOut, write_set
from train.tasks import make_task

RNG = np.random.default_rng(0)
SMALL = RawOptions(height=64, width=48, max_assets=3, agnostic=False, shard_size=3)


@dataclasses.dataclass
class Thing:
    """An asset as the readers of data sets give it."""

    picture: np.ndarray
    kind: str = "top"
    phrase: str | None = "a red shirt"
    region: np.ndarray | None = None


@dataclasses.dataclass
class Raw:
    """A sample as the readers of data sets give it."""

    image: np.ndarray
    assets: list[Thing]
    caption: str | None = "A woman in a red shirt and a blue skirt."
    iuv: np.ndarray | None = None
    parse: np.ndarray | None = None
    keypoints: np.ndarray | None = None


def a_sample(height: int = 100, width: int = 60) -> Raw:
    """A person of coloured noise in the middle of grey, a red flat on white, a blue one with alpha."""
    image = np.full((height, width, 3), 90, np.uint8)
    person = np.zeros((height, width), bool)
    person[height // 5 : -height // 5, width // 4 : -width // 4] = True
    image[person] = RNG.integers(0, 256, (int(person.sum()), 3), np.uint8)
    iuv = np.where(person[..., None], np.array([2, 100, 200], np.uint8), np.uint8(0))
    flat = np.full((40, 30, 3), 255, np.uint8)
    flat[8:32, 6:24] = (200, 20, 20)
    skirt = np.zeros((20, 20, 4), np.uint8)
    skirt[4:16, 4:16] = (20, 20, 200, 255)
    upper = person & (np.arange(height) < height // 2)[:, None]
    assets = [Thing(flat, region=upper), Thing(skirt, "skirt", "a blue skirt", person & ~upper)]
    return Raw(image, assets, iuv=iuv, parse=person.astype(np.uint8))


@dataclasses.dataclass(frozen=True)
class Source:
    """Samples of which some are broken, in as many ways as data sets have."""

    samples: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return f"{index:02d}"

    def __getitem__(self, index: int) -> Raw:
        sample = self.samples[index]
        if isinstance(sample, Exception):
            raise sample
        return sample


def record_of(sample: Raw, options: RawOptions = SMALL) -> dict[str, Any]:
    return decode_record(raw_record(sample, 0, options))


def test_a_sample_becomes_a_record_like_wardrobes():
    sample = a_sample()
    record = record_of(sample)
    assert record["image"].shape == record["iuv"].shape == record["canvas1"].shape == (64, 48, 3)
    assert record["caption"] == sample.caption and record["phrases"] == ["a red shirt", "a blue skirt"]
    assert record["kinds"] == ["top", "skirt"] and record["layouts"] == 2
    assert "origins" not in record and "placed" not in record
    assert set(np.unique(record["foreground"])) == {0, 255}
    # Labels are those that were given and no mixture of them, and lie where the person does.
    assert {tuple(color) for color in record["iuv"].reshape(-1, 3)} == {(0, 0, 0), (2, 100, 200)}
    assert np.array_equal(record["iuv"][..., 0] > 0, record["foreground"] > 0)
    assert np.array_equal(record["regions"] > 0, record["foreground"] > 0) and record["regions"].max() == 2
    for layout in range(2):
        canvas, owners = record[f"canvas{layout}"], record[f"owners{layout}"]
        assert set(np.unique(owners)) == {0, 1, 2}
        red, blue = np.median(canvas[owners == 1], axis=0), np.median(canvas[owners == 2], axis=0)
        assert red[0] > 180 > 60 > red[2] and blue[2] > 180 > 60 > blue[0]
    assert not np.array_equal(record["owners0"], record["owners1"])


def test_without_a_parse_map_the_body_is_the_foreground():
    sample = a_sample()
    sample.parse = None
    record = record_of(sample)
    assert np.array_equal(record["foreground"] > 0, record["iuv"][..., 0] > 0)
    sample.iuv = None
    with pytest.raises(ValueError, match="its body map is unknown"):
        record_of(sample)
    record = record_of(sample, dataclasses.replace(SMALL, need_pose=False))
    assert record["foreground"].min() == 255 and record["iuv"].max() == 0


def test_phrases_come_before_what_a_prompt_cuts_off():
    long = " ".join(["very"] * 60)
    assert within_reach(f"{long} a red shirt", ["a red shirt"])[0] == f"a red shirt: {long} a red shirt"
    for caption in (f"A red shirt, {long}", "a coat", ""):
        assert within_reach(caption, ["a red shirt"])[0] == caption


def broken_samples() -> list[Any]:
    odd = a_sample()
    odd.iuv = np.zeros((5, 5, 3), np.uint8)
    bare = dataclasses.replace(a_sample(), assets=[])
    crowd = dataclasses.replace(a_sample(), assets=[a_sample().assets[0]] * 4)
    backed = a_sample()
    backed.assets[0].picture = RNG.integers(0, 99, (40, 30, 3), np.uint8)
    bodiless = dataclasses.replace(a_sample(), iuv=None)
    return [
        odd,
        ValueError("no person"),
        bare,
        OSError("broken file"),
        crowd,
        SyntaxError("not a PNG"),
        backed,
        bodiless,
    ]


def test_broken_samples_are_left_out_with_their_reasons(tmp_path: Path):
    job = RawJob(Source((a_sample(), *broken_samples(), a_sample(40, 40))), "fake", SMALL)
    index = write_set(job, tmp_path / "out")
    assert (index["count"], index["left_out"], len(index["shards"])) == (2, 8, 2)
    left_out = json.loads((tmp_path / "out/report.json").read_text())["left_out"]
    assert [one["name"] for one in left_out] == [f"{number:02d}" for number in range(1, 9)]
    expected = ["picture is 100x60, its map 5x5", "no person", "no asset", "OSError: broken file", "at most 3 assets"]
    expected += ["SyntaxError: not a PNG", "background", "body map is unknown"]
    for one, words in zip(left_out, expected, strict=True):
        assert words in one["reason"], one
    with pytest.raises(ValueError, match="all 8 samples were left out"):
        write_set(RawJob(Source(tuple(broken_samples())), "fake", SMALL), tmp_path / "none")


def test_another_source_does_not_continue_a_set(tmp_path: Path):
    write_set(RawJob(Source((a_sample(),)), "fake", SMALL), tmp_path / "out")
    with pytest.raises(ValueError, match=r"begun with other settings \(fit, names\)"):
        other = dataclasses.replace(SMALL, fit="crop")
        write_set(RawJob(Source((a_sample(), a_sample())), "fake", other), tmp_path / "out")


def test_a_models_parse_maps_stand_for_the_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Also where there are photographs alone: what is worn and the face are cut out by them."""

    class Left:
        """Says that the left half is the person: a face above a shirt."""

        def parse(self, picture: np.ndarray, parts: dict[str, int]) -> np.ndarray:
            rows, columns = np.indices(picture.shape[:2])
            part = np.where(rows < picture.shape[0] // 4, parts["face"], parts["upper"])
            return np.where(columns < picture.shape[1] // 2, part, 0).astype(np.uint8)

    monkeypatch.setattr("train.raw_records.load_parser", lambda name: Left())
    root = tmp_path / "photographs"
    miniatures.save(root / "images/anna.png", a_sample(64, 48).image)
    options = dataclasses.replace(SMALL, parse_by="model", need_pose=False, agnostic=True)
    [record] = RawJob(Folder(root), "folder", options).records(0)
    assert isinstance(record, bytes)
    sample = decode_record(record)
    assert sample["kinds"] == ["top", "face"]
    assert sample["foreground"][:, :24].min() == 255 and sample["foreground"][:, 24:].max() == 0
    assert (sample["regions"][20:, :24] == 1).all() and (sample["regions"][:16, :24] == 2).all()
    assert sample["mask"][30:, :20].min() == 255 and sample["mask"][:14].max() == 0


@pytest.fixture
def agnostic(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is asked of `fcjax.agnostic`, which greys the upper half."""
    asked = []

    def agnostic_mask(**given: Any) -> np.ndarray:
        asked.append(given)
        height, width = given["iuv"].shape[:2]
        return np.broadcast_to(np.arange(height)[:, None] < height / 2, (height, width))

    def agnostic_image(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.where(mask[..., None], np.uint8(128), image)

    monkeypatch.setattr("train.raw_records.agnostic_mask", agnostic_mask)
    monkeypatch.setattr("train.raw_records.agnostic_image", agnostic_image)
    return asked


@pytest.mark.parametrize(
    ("kinds", "category"),
    [(["top"], "upper"), (["skirt", "face"], "lower"), (["top", "skirt"], "outfit"), (["top", "shoes"], "upper")],
)
def test_try_on_reads_the_person_without_what_is_tried_on(
    agnostic: list[dict[str, Any]], kinds: list[str], category: str
):
    sample = a_sample()
    sample.assets = [dataclasses.replace(asset, kind=kind) for asset, kind in zip(sample.assets, kinds, strict=False)]
    sample.keypoints = np.array([[30.0, 50.0, 0.9]])
    options = dataclasses.replace(SMALL, agnostic=True)
    record = record_of(sample, options)
    (asked,) = agnostic
    assert asked["category"] == category and asked["shoes"] == ("shoes" in kinds) and not asked["hat"]
    # At the size of the picture itself, as where the model is used.
    assert asked["parse"].shape == (100, 60) and asked["iuv"].shape == (100, 60, 3)
    np.testing.assert_allclose(asked["keypoints"], [[30, 50, 0.9]])
    # The picture's upper half, of its 38 columns on 48.
    expected = np.zeros((64, 48), np.uint8)
    expected[:32, 5:43] = 255
    np.testing.assert_array_equal(record["mask"], expected)
    hidden = np.where(expected[..., None] > 0, np.uint8(128), record["image"])
    np.testing.assert_array_equal(record["agnostic"], hidden)
    sample.assets[0].kind = sample.assets[-1].kind = "bag"
    with pytest.raises(ValueError, match="nothing to try on among bag"):
        record_of(sample, options)


def test_latents_know_the_person_without_what_is_tried_on(
    agnostic: list[dict[str, Any]], prepared: Path, tmp_path: Path
):
    options = dataclasses.replace(SMALL, agnostic=True)
    write_set(RawJob(Source((a_sample(), a_sample(70, 60))), "fake", options), tmp_path / "pictures")
    job = LatentsJob(tmp_path / "pictures", prepared / "model", tmp_path / "latents", batch_size=4)
    prepare_latents(job, load_config("tiny").model)
    picture, latent = Prepared(tmp_path / "pictures")[1], Prepared(tmp_path / "latents")[1]
    assert latent["agnostic"].shape == latent["image"].shape and latent["agnostic"].dtype == np.float16
    assert not np.array_equal(latent["agnostic"], latent["image"])
    assert np.array_equal(latent["mask"], picture["mask"])


def test_what_no_sample_can_do_without_ends_a_run_at_once(tmp_path: Path):
    """A tokenizer that is none is no reason to leave samples out."""
    job = RawJob(Source((a_sample(),)), "fake", dataclasses.replace(SMALL, tokenizer=tmp_path / "nowhere"))
    with pytest.raises((ValueError, OSError), match="nowhere"):
        write_set(job, tmp_path / "out")
    assert not (tmp_path / "out/report.json").exists()


def test_phrases_that_do_not_fit_a_prompt_are_left_out():
    options = dataclasses.replace(SMALL, tokenizer=TOKENIZER)
    long = dataclasses.replace(a_sample(), caption="Somebody.")
    long.assets[0].phrase = "a shirt " + "of many colours " * 30
    kept, left_out = RawJob(Source((a_sample(), long)), "fake", options).records(0)
    assert isinstance(kept, bytes)
    assert isinstance(left_out, LeftOut) and "does not fit" in left_out.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"height": 100}, "height must be a positive multiple of 8, got 100"),
        ({"width": 0}, "width must be"),
        ({"layouts": 0}, "layouts must be at least 1"),
        ({"count": -1}, "count must be 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, int], words: str):
    with pytest.raises(ValueError, match=words):
        RawOptions(**options)  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------------------------------------------------------------
# Training


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four samples as pictures and as latents of an untrained autoencoder."""
    root = tmp_path_factory.mktemp("prepared")
    write_set(RawJob(Source(tuple(a_sample() for _ in range(4))), "fake", SMALL), root / "pictures")
    model = load_config("tiny").model
    vae = init_parameters(model, jax.random.key(0))["vae"]
    folder.save_part(root / "model", "vae", vae, model.vae)
    prepare_latents(LatentsJob(root / "pictures", root / "model", root / "latents", batch_size=4), model)
    return root


def composing(prepared: Path, kind: str) -> TrainConfig:
    config = load_config("tiny")
    return dataclasses.replace(
        config,
        model=one_level(config.model),
        data=prepared / kind,
        vae=prepared / "model",
        steps=1,
        batch_size=2,
        log_every=1,
        workers=1,
    )


def test_latents_of_them_know_no_matches(prepared: Path):
    data = Prepared(prepared / "latents")
    assert len(data) == 4
    for layout in range(2):
        assert (data[0][f"matches{layout}"] == -1).all() and data[0][f"masks{layout}"].max() > 200
    assert 0 < data[0]["foreground"].mean() < 255


def test_training_takes_a_step_on_latents_of_them(prepared: Path, tmp_path: Path):
    assert run.train(composing(prepared, "latents"), tmp_path)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert np.isfinite(line["loss"]) and line["step"] == 1


def test_training_reads_their_pictures_changed_at_random(prepared: Path, tmp_path: Path):
    symmetry = miniatures.symmetry(tmp_path / "UV_symmetry_transforms.mat")
    augment = Augmentation(flip=0.5, crop=0.2, drop_asset=0.3, symmetry=symmetry)
    config = dataclasses.replace(composing(prepared, "pictures"), augment=augment)
    task = make_task(config)
    batch = next(training_batches(task.data, task.transform, 2, seed=0, workers=1))
    latents = make_task(composing(prepared, "latents"))
    other = next(training_batches(latents.data, latents.transform, 2, seed=0, workers=1))
    assert batch["images"].shape == batch["canvases"].shape == (2, 64, 48, 3)
    shared = batch.keys() - {"images", "canvases"}
    assert shared == other.keys() - {"latents", "canvas"}
    for name in shared:
        assert batch[name].shape == other[name].shape and batch[name].dtype == other[name].dtype


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people of Wardrobe as pictures of the same size."""
    job = WardrobeJob(out=tmp_path_factory.mktemp("wardrobe"), count=2, height=64, width=48, workers=1)
    prepare_wardrobe(job)
    return job.out


def test_a_set_says_whose_charts_its_maps_follow(prepared: Path, wardrobe: Path):
    sets = [Prepared(wardrobe), Prepared(prepared / "pictures"), Prepared(prepared / "latents")]
    assert [one.charts for one in sets] == ["own", "densepose", None]
    mixed = Mixed(sets[:2])
    assert mixed[1]["charts"] == "own" and mixed[2]["charts"] == "densepose"
    sets[0].require_own_charts()


def test_composing_does_not_flip_densepose_charts_without_their_table(
    prepared: Path, wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, pictures = tmp_path / "run", str(prepared / "pictures")
    composing = ["--config", "tiny", "--out", str(out), "--vae", str(prepared / "model"), "--augment.flip", "0.5"]
    mat = str(tmp_path / "absent.mat")
    for sets, message in (
        (["--data", pictures], f"the body maps in {pictures} follow DensePose's own charts"),
        (["--data", pictures], "give --augment.symmetry FILE, which is DensePose's UV_symmetry_transforms.mat"),
        (["--data", str(wardrobe), "--mixed-with", pictures], f"the body maps in {pictures} follow DensePose's"),
        (["--data", pictures, "--augment.symmetry", mat], f"{mat}: no such file"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run.main([*composing, *sets])
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and message in error and error.count("\n") == 1, error
        assert not out.exists()


def test_each_of_mixed_sets_is_mirrored_as_its_charts_are(prepared: Path, wardrobe: Path, tmp_path: Path):
    """Wardrobe's by the rule, whether a table is given or not; the others' by the table."""
    table = miniatures.symmetry(tmp_path / "UV_symmetry_transforms.mat")
    config = composing(prepared, "pictures")
    mixed = dataclasses.replace(config, data=wardrobe, mixed_with=(prepared / "pictures",))
    # A sample of Wardrobe, one of the others.
    for number, charts in ((0, None), (2, load_densepose_symmetry(table))):
        task = make_task(dataclasses.replace(mixed, augment=Augmentation(flip=1.0, symmetry=table)))
        sample, rng = task.data[number], np.random.default_rng(0)
        expected = atlas_uv(pose_points(flip_iuv(sample["iuv"], charts), config.model))
        np.testing.assert_array_equal(task.transform(sample, rng)["uv"], expected)
        ruled = atlas_uv(pose_points(flip_iuv(sample["iuv"]), config.model))
        assert np.array_equal(expected, ruled) == (charts is None)
    alone = make_task(dataclasses.replace(config, data=wardrobe, augment=Augmentation(flip=1.0)))
    sample = alone.data[0]
    expected = atlas_uv(pose_points(flip_iuv(sample["iuv"]), config.model))
    np.testing.assert_array_equal(alone.transform(sample, np.random.default_rng(0))["uv"], expected)
    make_task(config)  # as it is, without a table


def test_try_on_flips_any_set_as_it_reads_no_map(tmp_path: Path):
    options = dataclasses.replace(SMALL, agnostic=True)
    write_set(RawJob(Source((a_sample(),)), "fake", options), tmp_path)
    data, model = Prepared(tmp_path), load_config("tiny").model.conditioned("tryon")
    transform = example_of(model, Tokenizer.load(TOKENIZER), data.index, Augmentation(flip=1.0))
    example, sample = transform(data[0], np.random.default_rng(0)), data[0]
    for name, picture in (("images", "image"), ("persons", "agnostic")):
        np.testing.assert_array_equal(example[name], sample[picture][:, ::-1])


def test_try_on_that_takes_a_pose_flips_person_mask_and_map_together(tmp_path: Path):
    options = dataclasses.replace(SMALL, agnostic=True)
    write_set(RawJob(Source((a_sample(),)), "fake", options), tmp_path / "data")
    data, model = Prepared(tmp_path / "data"), load_config("tiny").model.conditioned("posed_tryon")
    table = miniatures.symmetry(tmp_path / "UV_symmetry_transforms.mat")
    transform = example_of(model, Tokenizer.load(TOKENIZER), data.index, Augmentation(flip=1.0, symmetry=table))
    example, sample = transform(data[0], np.random.default_rng(0)), data[0]
    np.testing.assert_array_equal(example["persons"], sample["agnostic"][:, ::-1])
    np.testing.assert_array_equal(example["person_masks"], sample["mask"][:, ::-1] / np.float32(255))
    flipped = flip_iuv(sample["iuv"], load_densepose_symmetry(table))
    np.testing.assert_array_equal(example["uv"], atlas_uv(pose_points(flipped, model)))
