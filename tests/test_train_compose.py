"""Runs of the composing task: on latents and on pictures, and the model folders that they write."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fcjax import folder, presets, trees
from fcjax.composer import Composer
from fcjax.data import Prepared
from fcjax.data.augment import Augmentation
from fcjax.generation import decode
from fcjax.models.composer import encoding_parameters
from fcjax.models.parameters import init_parameters
from fcjax.tokenizer import Tokenizer
from tests.training import composing_task, prepared
from train import run
from train.examples import example_of
from train.logs import Log
from train.placement import Placement
from train.prepare import LatentsJob, prepare_latents
from train.step import initial_state
from train.tasks import channel_weights, make_task, network_fields
from train.watch import Watch

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def composing(data: Path):
    """The composing task on one batch: (config, task, batch)."""
    return composing_task(data)


def test_pictures_train_as_their_latents_do(composing, data: Path):
    config, task, batch = composing
    paired = dataclasses.replace(config, data=data / "pictures", augment=Augmentation(flip=0.5, crop=0.2))
    pictures = make_task(paired)
    rng = np.random.default_rng(0)
    examples = [pictures.plain_transform(pictures.data[index], rng) for index in range(4)]
    given = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    assert given["images"].dtype == np.uint8 and set(given) - set(batch) == {"images", "canvases"}
    found = jax.jit(pictures.loss)(pictures.parameters, given, KEY)
    expected = jax.jit(task.loss)(task.parameters, batch, KEY)
    # Prepared latents are in float16, their masks in 8 bits.
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=2e-3)
    assert float(found[1].get("matching", 0)) == float(expected[1].get("matching", 0))
    # The autoencoder goes along frozen and is written whole.
    state = initial_state(config.optimizer, 2, pictures.parameters)
    assert "vae" in state.frozen and "vae" not in state.trained
    changed = pictures.transform(pictures.data[0], np.random.default_rng(4))
    assert changed["images"].shape == given["images"][0].shape
    assert not np.array_equal(changed["images"], given["images"][0])


@pytest.mark.parametrize("name", ["latents", "pictures"])
def test_a_sample_with_too_much_is_shown_as_far_as_it_fits(composing, data: Path, name: str):
    """Neither a phrase that the prompt has no room for nor one asset too many ends a run."""
    config, _, _ = composing
    # Latents hold the masks of as many assets as the model takes.
    model = config.model if name == "latents" else dataclasses.replace(config.model, max_assets=2)
    prepared = Prepared(data / name)
    sample = next(one for one in map(prepared.__getitem__, range(len(prepared))) if len(one["phrases"]) > 2)
    transform = example_of(model, Tokenizer.load(config.tokenizer), prepared.index)
    whole = transform(dict(sample), np.random.default_rng(0))
    assert len(whole["masks"]) == len(whole["spans"]) == model.max_assets
    unbounded = example_of(config.model, Tokenizer.load(config.tokenizer), prepared.index)
    all_of_it = unbounded(dict(sample), np.random.default_rng(0))
    assert np.array_equal(whole["masks"][:2], all_of_it["masks"][:2])
    filled = {**sample, "caption": sample["phrases"][1] + ", a hat" * 40, "phrases": ["shoes", *sample["phrases"][1:]]}
    cut = transform(filled, np.random.default_rng(0))
    assert whole["masks"][0].any() and whole["masks"][1].any()
    assert not cut["masks"][0].any() and np.array_equal(cut["masks"][1], whole["masks"][1])
    assert not cut["spans"][0].any() and cut["spans"][1].sum() == pytest.approx(1.0)


def test_a_run_mixes_sets_of_pictures(composing, data: Path, tmp_path: Path):
    config = dataclasses.replace(
        composing[0],
        data=data / "pictures",
        mixed_with=(data / "pictures",),
        weights=(3.0, 1.0),
        heldout=data / "pictures",
        augment=Augmentation(flip=0.5, crop=0.2, drop_asset=0.2, drop_face=0.2),
        steps=2,
        batch_size=2,
        workers=1,
    )
    assert run.train(config, tmp_path)
    for name, value in (("log", "loss"), ("heldout", "heldout_loss")):
        line = json.loads((tmp_path / f"{name}.jsonl").read_text())
        assert line["step"] == 2 and np.isfinite(line[value])
    loaded, params = folder.load(tmp_path / "model")
    assert loaded.height == config.model.height and "decoder" in params["vae"]


def test_a_trained_run_is_a_model_folder_that_composes(composing, tmp_path: Path):
    config, task, _ = composing
    task.export(task.parameters, tmp_path / "model")
    composer = Composer.load(tmp_path / "model")
    [picture] = composer.compose("a woman on a white background", steps=1, guidance=1.0)
    assert picture.image.size == (config.model.width, config.model.height)
    assert trees.digest(encoding_parameters(composer.params["vae"])) == task.data.index["settings"]["vae"]


def test_prepared_text_trains_as_the_encoder_does(composing, data: Path, tmp_path: Path):
    config, task, batch = composing
    task.export(task.parameters, tmp_path / "model")
    job = LatentsJob(
        data=data / "pictures", model=tmp_path / "model", out=tmp_path / "latents", batch_size=3, text=True
    )
    prepare_latents(job, config.model)
    config = dataclasses.replace(config, data=job.out, start=job.model)
    read = make_task(config)
    rng = np.random.default_rng(0)
    examples = [read.transform(read.data[index], rng) for index in range(4)]
    given = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    assert set(given) - set(batch) == {"text"} and given["text"].any()
    found, expected = (jax.jit(task.loss)(task.parameters, one, KEY)[0] for one in (given, batch))
    assert float(found) == pytest.approx(float(expected), rel=1e-3)
    # The captions are not read in the step.
    unread = jax.jit(task.loss)(task.parameters, {**given, "ids": given["ids"][::-1]}, KEY)[0]
    assert float(unread) == float(found)
    with pytest.raises(ValueError, match="but the run starts with .*: prepare the latents without --text"):
        make_task(dataclasses.replace(config, start=None, seed=5))
    everything = dataclasses.replace(config.optimizer, trainable=((".*", True),))
    with pytest.raises(ValueError, match="but the run trains its text encoder"):
        make_task(dataclasses.replace(config, optimizer=everything))
    sample = read.data[0]
    with pytest.raises(ValueError, match="were made of other tokens: train with the tokenizer"):
        read.transform({**sample, "ids": sample["ids"] + 1}, rng)


def test_errors_in_latent_channels_count_as_they_are_seen():
    def weights(*changes: tuple[float, float, float], pixels: int = 4, scale: float = 0.1) -> np.ndarray:
        """Of channels that change every pixel of a square so."""
        return channel_weights({"linear_decoder": {"kernel": scale * np.tile(changes, pixels)}})

    # Alike in squared RGB: of a colour more is seen than of the lightness, of green more than of blue.
    light, green, blue = (1.0, 1.0, 1.0), (0.0, 3**0.5, 0.0), (0.0, 0.0, 3**0.5)
    seen = weights(light, green, blue)
    assert seen[1] > 1.5 * seen[0] and seen[1] > 1.5 * seen[2] and seen.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(weights(light, green, blue, pixels=9), seen, rtol=1e-6)
    # The square of how much they change.
    twice = weights(light, (2.0, 2.0, 2.0), scale=0.01)
    assert twice[1] / twice[0] == pytest.approx(4.0, rel=0.01)
    assert channel_weights({}) == 1.0


def test_latents_of_another_autoencoder_are_refused(composing, data: Path, tmp_path: Path):
    config = composing[0]
    other = init_parameters(config.model, jax.random.key(9))["vae"]
    folder.save_part(tmp_path, "vae", other, config.model.vae)
    with pytest.raises(ValueError, match="was encoded by the VAE .* but .* holds"):
        make_task(dataclasses.replace(config, vae=tmp_path))


def test_latents_of_another_size_are_refused(composing):
    config = composing[0]
    other = dataclasses.replace(config.model, height=32, width=24, max_assets=2)
    words = r"do not fit the configuration 'tiny': they have height 64 \(the configuration's: 32\), .*max_assets"
    with pytest.raises(ValueError, match=words):
        make_task(dataclasses.replace(config, model=other))


def test_sets_with_people_of_unknown_pose_are_refused(composing, data: Path, tmp_path: Path):
    """One of several too; also what a latents' set says of its pictures."""
    for name in ("pictures", "latents"):
        shutil.copytree(data / name, tmp_path / name)
        index = json.loads((data / name / "index.json").read_text())
        index["settings"]["need_pose"] = False
        (tmp_path / name / "index.json").write_text(json.dumps(index))
        config = dataclasses.replace(composing[0], data=data / name, mixed_with=(tmp_path / name,))
        with pytest.raises(ValueError, match=rf"{name} was prepared with --no-need-pose"):
            make_task(config)
        with pytest.raises(ValueError, match=rf"{name} was prepared with --no-need-pose"):
            Prepared(tmp_path / name).require("posed_tryon")
    watched = dataclasses.replace(composing[0], heldout=tmp_path / "latents", batch_size=2)
    with pytest.raises(ValueError, match="latents was prepared with --no-need-pose"), Log(tmp_path) as log:
        Watch(watched, composing[1], Placement(watched, composing[1].parameters), tmp_path, log)


def test_a_run_goes_on_from_one_on_smaller_pictures(composing, tmp_path: Path):
    config, task, _ = composing
    task.export(task.parameters, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["fcjax"] |= {"height": 32, "width": 24, "guidance": 7.5, "steps": 9}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    started = make_task(dataclasses.replace(config, start=tmp_path, seed=5)).parameters
    assert trees.digest(started) == trees.digest(task.parameters)
    index["fcjax"]["attend_blank"] = True
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"configuration than 'tiny'; these.*: attend_blank \(True there, False now\)$"
    ):
        make_task(dataclasses.replace(config, start=tmp_path))


def test_stable_diffusions_own_files_are_what_its_configuration_trains(tmp_path: Path):
    """The keys of v1-5's text_encoder/config.json and unet/config.json, as they are given out."""
    text = {
        "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
        "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
    }  # fmt: skip
    blocks = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    unet = {
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False,
        "cross_attention_dim": 768, "down_block_types": blocks, "downsample_padding": 1, "flip_sin_to_cos": True,
        "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
        "norm_num_groups": 32, "out_channels": 4, "sample_size": 32,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }  # fmt: skip
    model = presets.sd15()
    assert model.reference_unet is not None
    parts = {}
    for name, given in (("text_encoder", text), ("unet", unet)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(given))
        parts[name] = folder.load_part_config(tmp_path, name)
    read = dataclasses.replace(
        model,
        unet=dataclasses.replace(parts["unet"], in_channels=model.unet.in_channels),
        reference_unet=parts["unet"],
        text_encoder=parts["text_encoder"],
    )
    assert read != model and network_fields(read) == network_fields(model)


def test_samples_are_drawn_the_models_own_way(composing, monkeypatch: pytest.MonkeyPatch):
    config, task, batch = composing
    own = dataclasses.replace(config.model, guidance=4.0, steps=9)
    stronger = make_task(dataclasses.replace(config, model=own))

    def asked(_: Any, steps: int) -> None:
        raise InterruptedError(f"guidance {scales[-1]}, steps {steps}")

    def noted(_: Any, scale: float) -> None:
        scales.append(scale)

    scales: list[float] = []
    monkeypatch.setattr("train.tasks.make_guidance", noted)
    monkeypatch.setattr("train.tasks.sampler_table", asked)
    for made, expected in ((task, "guidance 1.5, steps 20"), (stronger, "guidance 4.0, steps 9")):
        with pytest.raises(InterruptedError, match=expected):
            made.pictures(made.parameters, batch)


def test_a_composing_run_shows_canvas_pose_truth_and_composition(composing, data: Path, tmp_path: Path):
    config, task, _ = composing
    watched = dataclasses.replace(config, heldout=data / "latents")
    with Log(tmp_path) as log:
        watch = Watch(watched, task, Placement(watched, task.parameters), tmp_path, log)
        loss = watch.measure(12, task.parameters)
        watch.draw(12, task.parameters)
    page = np.asarray(Image.open(tmp_path / "samples/00000012.png"))
    height, width = config.model.height, config.model.width
    assert page.shape == (4 * height, 4 * width, 3)
    params = {"vae": folder.load_part(data / "model", "vae", config.model.vae)}
    example = task.transform(task.data[1], np.random.default_rng(1))
    [truth] = decode(params, jnp.asarray(example["latents"])[None], config=config.model, dtype=jnp.float32)
    np.testing.assert_allclose(page[height : 2 * height, 3 * width :], truth, atol=1)
    # Left of the picture the UV map, whose points stand where the person does.
    pose, body = page[height : 2 * height, width : 2 * width], example["uv"][..., 0] >= 0
    assert pose.shape == truth.shape and (pose.any(axis=-1)).mean() == pytest.approx(body.mean(), abs=0.01)
    line = json.loads((tmp_path / "heldout.jsonl").read_text())
    assert line["step"] == 12 and 0 < line["heldout_clean_error"] < 100
    assert line["heldout_loss"] == pytest.approx(loss) and "heldout_loss_t800-999" in line
    # The timesteps that tell losses apart are those that the loss would have drawn.
    assert loss is not None
    given, heldout = jax.jit(task.loss), Prepared(data / "latents")
    for number, first in enumerate((0, 4)):
        places = range(first, first + 4)
        examples = [task.plain_transform(heldout[place], np.random.default_rng(place)) for place in places]
        batch = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
        loss -= float(given(task.parameters, batch, jax.random.fold_in(jax.random.key(0), number))[0]) / 2
    assert loss == pytest.approx(0, abs=1e-5)
    other = dataclasses.replace(config, heldout=data / "pictures")
    with Log(tmp_path) as log, pytest.raises(ValueError, match="was not encoded by the VAE that encoded"):
        Watch(other, task, Placement(other, task.parameters), tmp_path, log)
