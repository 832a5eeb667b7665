"""Try-on as a task of training: its records, its examples, and a run that starts from a composing model."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import load_config
from fcjax import folder, presets, trees
from fcjax.agnostic import agnostic_image
from fcjax.composer import Composer
from fcjax.config import Condition
from fcjax.data import Prepared
from fcjax.data.records import decode_record
from fcjax.generation import PictureInputs, conditions_of_pictures
from fcjax.models.parameters import abstract_parameters, init_parameters
from fcjax.person import Person
from fcjax.preparation import prepare
from fcjax.pretrained import for_tryon
from fcjax.sampling import FULL
from fcjax.tokenizer import Tokenizer
from fcjax.wardrobe import Wardrobe
from tests.conftest import TOKENIZER
from tests.training import one_level
from train import run
from train.config import TrainConfig
from train.examples import example_of
from train.prepare import LatentsJob, WardrobeJob, prepare_latents, prepare_wardrobe, wardrobe_record
from train.tasks import make_task


def record(index: int, **changes) -> dict:
    job = WardrobeJob(out=Path("nowhere"), height=128, width=96, tryon=True, **changes)
    return decode_record(wardrobe_record(Wardrobe("heldout", height=128, width=96)[index], index, job))


@pytest.mark.parametrize("index", range(6))
def test_records_hold_the_person_without_what_the_canvas_shows(index: int):
    made, whole = record(index), Wardrobe("heldout", height=128, width=96)[index]
    mask = made["mask"] > 0
    assert set(np.unique(made["mask"])) <= {0, 255} and 0.02 < mask.mean() < 0.6
    np.testing.assert_array_equal(made["agnostic"], agnostic_image(made["image"], mask))
    assert made["kinds"] and "face" not in made["kinds"] and set(made["phrases"]) <= {a.phrase for a in whole.assets}
    for phrase in made["phrases"]:
        [number] = [number for number, asset in enumerate(whole.assets, 1) if asset.phrase == phrase]
        # What is put on is hidden, but for what hands and hair cover anyhow.
        assert mask[whole.regions == number].mean() > 0.9
    assert not mask[np.isin(made["iuv"][..., 0], (23, 24)) & (whole.regions == 0)].mean() > 0.2
    assert made["origins"][..., 0].max() <= len(made["phrases"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few samples for try-on, as pictures and as latents, a set without, and a composing model to start from."""
    root = tmp_path_factory.mktemp("data")
    job = WardrobeJob(out=root / "pictures", count=4, height=64, width=48, shard_size=4, workers=1, tryon=True)
    prepare_wardrobe(job)
    prepare_wardrobe(dataclasses.replace(job, out=root / "plain", tryon=False))
    model = one_level(load_config("tiny").model)
    params = init_parameters(model, jax.random.key(0))
    folder.save(root / "composer", params, model)
    prepare_latents(LatentsJob(data=job.out, model=root / "composer", out=root / "latents", batch_size=2), model)
    return root


def config_of(data: Path, **changes) -> TrainConfig:
    config = load_config("tiny")
    config = dataclasses.replace(
        config,
        task="tryon",
        model=one_level(config.model),
        data=data / "latents",
        vae=data / "composer",
        start=data / "composer",
    )
    return dataclasses.replace(config, **{"steps": 2, "batch_size": 2, "log_every": 1, "workers": 1, **changes})


def test_examples_of_latents_and_pictures_agree(data: Path):
    config, tokenizer = config_of(data), Tokenizer.load(TOKENIZER)
    made = []
    for name in ("latents", "pictures"):
        prepared = Prepared(data / name)
        made.append(example_of(config.model, tokenizer, prepared.index)(prepared[1], np.random.default_rng(0)))
    assert config.model.condition == "tryon" and "uv" not in made[0]
    np.testing.assert_array_equal(made[0]["person_masks"], made[1]["person_masks"])
    np.testing.assert_array_equal(made[0]["foreground"], made[1]["foreground"])
    assert made[0]["person_latents"].shape == made[0]["latents"].shape and made[1]["persons"].shape == (64, 48, 3)
    # What is painted over counts in the loss.
    assert (
        made[0]["foreground"].max() == 1 and abs(made[0]["foreground"].mean() - made[0]["person_masks"].mean()) < 0.02
    )


def test_examples_of_a_model_that_takes_a_pose_hold_it_as_well(data: Path):
    tokenizer, model = Tokenizer.load(TOKENIZER), config_of(data).model.conditioned("posed_tryon")
    for name in ("latents", "pictures"):
        prepared = Prepared(data / name)
        both, worn, posed = (
            example_of(one, tokenizer, prepared.index)(prepared[1], np.random.default_rng(0))
            for one in (model, model.conditioned("tryon"), model.conditioned("pose"))
        )
        assert both.keys() == worn.keys() | posed.keys() and posed["uv"].max() > 0
        # What is to be painted counts in the loss.
        expected = {**posed, **worn}
        assert all(np.array_equal(both[key], expected[key]) for key in both)


@pytest.mark.parametrize("condition", [pytest.param("tryon", marks=pytest.mark.slow), "posed_tryon"])
def test_a_run_starts_from_a_composing_model_and_its_result_tries_on(data: Path, tmp_path: Path, condition: Condition):
    config = config_of(data, heldout=data / "latents", watch_every=2)
    config = dataclasses.replace(config, model=config.model.conditioned(condition))
    assert run.train(config, tmp_path)
    composer = Composer.load(tmp_path / "model")
    assert composer.config.condition == condition
    page = np.asarray(Image.open(tmp_path / "samples/00000002.png"))
    # Canvas, cloth-agnostic person, picture, truth.
    assert page.shape == (2 * 64, 4 * 48, 3)
    sample = record(0)
    person = Person(sample["image"], sample["mask"] > 0, sample["iuv"])
    [fitting] = composer.try_on("a person", [], person, steps=1)
    assert fitting.image.size == (96, 128)


def test_the_pose_is_seen_and_may_be_missing(tiny_model_folder: Path):
    composer = Composer.load(tiny_model_folder, condition="posed_tryon")
    sample = record(0)
    posed, unposed = (Person(sample["image"], sample["mask"] > 0, iuv) for iuv in (sample["iuv"], None))
    [seen] = composer.try_on("a person", [], posed, steps=1, raw=True)
    with pytest.warns(UserWarning, match=r"no body map of the person with u and v.*--iuv"):
        [guessed] = composer.try_on("a person", [], unposed, steps=1, raw=True)
    assert not np.array_equal(seen.image, guessed.image)
    with pytest.raises(ValueError, match="PictureInputs of a model that reads posed_tryon lack uv and places"):
        given = prepare(composer.config, composer.tokenizer, "a person", shown=posed).arrays
        inputs = PictureInputs(**{name: given[name] for name in given if name not in ("uv", "places")})
        conditions_of_pictures(
            composer.params, inputs, config=composer.config, branches=(FULL,), images=1, dtype=composer.dtype
        )


def test_hidden_poses_are_background(data: Path):
    """All of them hidden, the loss is that of maps that show nobody."""
    seeing = config_of(data)
    seeing = dataclasses.replace(seeing, start=None, model=seeing.model.conditioned("posed_tryon"))
    hiding = dataclasses.replace(seeing, loss=dataclasses.replace(seeing.loss, drop_pose=1.0))
    task = make_task(seeing)
    rows = [task.plain_transform(task.data[place], np.random.default_rng(place)) for place in (0, 1)]
    batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    nobody = {**batch, "uv": jnp.full_like(batch["uv"], -1.0)}
    # Its last convolution is zero at first, so that nothing would be seen.
    params = jax.tree.map(lambda leaf: leaf + 0.01, task.parameters)
    losses = [
        float(one.loss(params, given, jax.random.key(0))[0])
        for one, given in ((make_task(hiding), batch), (task, nobody), (task, batch))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_set_without_masks_is_refused(data: Path, tmp_path: Path):
    for changes in ({"data": data / "plain"}, {"data": data / "pictures", "mixed_with": (data / "plain",)}):
        with pytest.raises(ValueError, match=r"plain has no cloth-agnostic people and masks.*wardrobe: --tryon"):
            make_task(dataclasses.replace(config_of(data), **changes))
    with pytest.raises(ValueError, match="plain has no cloth-agnostic people"):
        run.train(config_of(data, heldout=data / "plain"), tmp_path)


def test_composing_takes_a_pose(data: Path):
    tryon = config_of(data)
    with pytest.raises(ValueError, match="task 'compose' trains a model that is told a pose, not 'tryon'"):
        dataclasses.replace(tryon, task="compose")


@pytest.mark.parametrize(("condition", "channels"), [("tryon", 9), ("posed_tryon", 11)])
def test_the_full_size_recipes_start_from_the_composing_one(condition: Condition, channels: int):
    """Shapes alone: the paper's parameters are trained, conv_in among them, which reads person and mask."""
    config, composing = load_config(f"sd15_{condition}"), load_config("sd15")
    assert (config.task, config.model.condition) == ("tryon", condition) and config.model.unet.in_channels == channels
    assert config.optimizer == composing.optimizer and config.start != composing.start
    assert bool(config.loss.drop_pose) == config.model.takes_pose
    made = jax.eval_shape(
        lambda params: for_tryon(composing.model, params, condition)[1], abstract_parameters(composing.model)
    )
    expected = abstract_parameters(config.model)
    assert jax.tree.map(lambda leaf: leaf.shape, made) == jax.tree.map(lambda leaf: leaf.shape, expected)
    trained = trees.flatten(trees.match_rules(expected, config.optimizer.trainable))
    assert trained["unet/conv_in/kernel"] and not trained["unet/conv_out/kernel"]
    assert not any(trained[path] for path in trained if path.startswith(("vae/", "text_encoder/")))


def test_a_controlnet_reads_what_the_denoiser_reads():
    composing = presets.encoding_assets(load_config("tiny").model, "controlnet")
    made = jax.eval_shape(lambda params: for_tryon(composing, params)[1], abstract_parameters(composing))
    expected = abstract_parameters(composing.conditioned("tryon"))
    assert jax.tree.map(lambda leaf: leaf.shape, made) == jax.tree.map(lambda leaf: leaf.shape, expected)


def test_records_say_what_is_worn_and_by_whom():
    """Swatches too: what they are of."""
    wardrobe, swatches = Wardrobe("heldout", height=128, width=96), 0
    for index in (0, 3, 5):
        made, whole = record(index), wardrobe[index]
        assert len(made["worn"]) == len(made["kinds"]) and made["subject"] == whole.subject
        assert whole.subject in whole.caption and not any(phrase in whole.subject for phrase in made["phrases"])
        shown = np.unique(made["regions"])
        assert shown.tolist() == list(range(len(made["kinds"]) + 1))
        for number, (kind, phrase) in enumerate(zip(made["kinds"], made["phrases"], strict=True), 1):
            [place] = [place for place, asset in enumerate(whole.assets, 1) if asset.phrase == phrase]
            np.testing.assert_array_equal(made["regions"] == number, whole.regions == place)
            assert made["worn"][number - 1] in ("upper", "lower", "dress", "shoes", "hat")
            swatches += kind == "swatch"
    assert swatches
