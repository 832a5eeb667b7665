"""The training step, the tasks and the program, on models that compile in seconds."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import load_config
from fcjax import folder, trees
from fcjax.composer import Composer
from fcjax.config import ComposerConfig
from fcjax.models.parameters import init_parameters
from fcjax.optim import update_ema
from train import run
from train.config import OptimizerConfig, TrainConfig
from train.prepare import LatentsJob, WardrobeJob, prepare_latents, prepare_wardrobe
from train.step import composing_loss, dropped, initial_state, make_step, parameters
from train.tasks import make_task

KEY = jax.random.key(0)


def one_level(model: ComposerConfig) -> ComposerConfig:
    """The tiny model with a single level in its UNets: compiles three times faster."""
    change = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unets = {
        name: dataclasses.replace(getattr(model, name), block_out_channels=(8,), **change)
        for name in ("unet", "reference_unet")
    }
    return dataclasses.replace(model, **unets)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight Wardrobe samples, prepared, with latents of an untrained autoencoder beside them."""
    root = tmp_path_factory.mktemp("data")
    job = WardrobeJob(out=root / "pictures", count=8, height=64, width=48, shard_size=4, workers=1)
    prepare_wardrobe(job)
    model = load_config("tiny").model
    folder.save_part(root / "model", "vae", init_parameters(model, KEY)["vae"], model.vae)
    prepare_latents(LatentsJob(data=job.out, model=root / "model", out=root / "latents", batch_size=3), model)
    return root


def autoencoder(data: Path, **changes) -> TrainConfig:
    config = dataclasses.replace(load_config("tiny_vae"), data=data / "pictures", steps=6, checkpoint_every=4)
    return dataclasses.replace(config, **{"log_every": 1, "workers": 1, **changes})


def losses(out: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in map(json.loads, (out / "log.jsonl").read_text().splitlines())}


def test_resuming_equals_an_uninterrupted_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = autoencoder(data)
    assert run.train(config, tmp_path / "whole")
    read = run._add

    def interrupt(sums, pending, out):
        read(sums, pending, out)
        if pending[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "_add", interrupt)
    assert not run.train(config, tmp_path / "parts")
    assert not (tmp_path / "parts" / "model").exists()
    monkeypatch.undo()
    assert run.train(config, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for path in ("vae/diffusion_pytorch_model.safetensors", "vae/config.json"):
        assert (tmp_path / "parts/model" / path).read_bytes() == (tmp_path / "whole/model" / path).read_bytes()


def test_another_configuration_does_not_continue_a_run(data: Path, tmp_path: Path):
    run._check_config(tmp_path, autoencoder(data))
    run._check_config(tmp_path, autoencoder(data, steps=99, log_every=7))
    with pytest.raises(ValueError, match=r"these fields differ: batch_size, seed\. Choose another --out"):
        run._check_config(tmp_path, autoencoder(data, batch_size=2, seed=5))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path):
    with pytest.raises(ValueError, match="step 7 has loss 0.5 and gradient norm nan: lower the learning rate"):
        run._add({}, (7, {"loss": jnp.float32(0.5), "gradient_norm": jnp.float32(jnp.nan)}), tmp_path)


def test_an_unknown_configuration_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mini_vae'"):
        load_config("mini-vae")


def test_shards_of_other_settings_are_not_taken_over(data: Path):
    with pytest.raises(ValueError, match=r"begun with other settings \(count\)"):
        prepare_wardrobe(WardrobeJob(out=data / "pictures", count=9, height=64, width=48, shard_size=4))


@pytest.fixture(scope="module")
def composing(data: Path):
    """The composing task on one batch: (config, task, batch)."""
    config = dataclasses.replace(load_config("tiny"), data=data / "latents", vae=data / "model")
    config = dataclasses.replace(config, model=one_level(config.model))
    config = dataclasses.replace(
        config,
        optimizer=OptimizerConfig(
            learning_rate=1e-2, warmup_steps=1, trainable=(("text_encoder/.*", False), (".*", True))
        ),
        loss=dataclasses.replace(config.loss, noises=2),
    )
    task = make_task(config)
    rng = np.random.default_rng(0)
    examples = [task.transform(task.data[index], rng) for index in range(4)]
    return config, task, {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def test_composing_learns_and_leaves_what_is_frozen_alone(composing):
    config, task, batch = composing
    state = initial_state(config.optimizer, 40, task.parameters)
    before = jax.tree.map(np.asarray, parameters(state))
    step = make_step(config, task.loss)
    history = []
    for _ in range(40):
        state, metrics = step(state, batch)
        history.append(float(metrics["loss"]))
    assert np.mean(history[-8:]) < 0.8 * np.mean(history[:8])
    after = parameters(state)
    moved = trees.map_paths(lambda _, a, b: not np.array_equal(a, b), before, after)
    assert not any(trees.flatten(moved["text_encoder"]).values())
    # All of the binder learns, and so does the reference UNet up to its last keys and values.
    assert all(trees.flatten(moved["binder"]).values())
    assert moved["reference_unet"]["conv_in"]["kernel"] and moved["unet"]["conv_out"]["kernel"]
    moments = [leaf.shape for leaf in jax.tree.leaves(state.optimizer) if getattr(leaf, "ndim", 0)]
    assert len(moments) == 2 * len(trees.flatten(state.trained))


def test_a_batch_is_what_the_model_takes(composing):
    config, _, batch = composing
    model, count = config.model, 4
    grid = (model.latent_height, model.latent_width)
    assert batch["latents"].shape == batch["canvas_latents"].shape == (count, *grid, model.vae.latent_channels)
    assert batch["condition"].shape == (count, *grid, model.condition_channels)
    assert batch["masks"].shape == (count, model.max_assets, *grid)
    # Background tokens carry -1, body tokens a place in the atlas.
    assert batch["condition"].min() == -1.0 and 0.0 < batch["condition"].max() <= 1.0
    # Every asset with a phrase has tokens on the canvas, and the reverse.
    assert np.array_equal(batch["spans"].sum(2) > 0.5, batch["masks"].max((2, 3)) > 0)
    assert np.allclose(batch["spans"].sum(2)[batch["spans"].sum(2) > 0], 1.0)


def test_dropping_everything_makes_the_loss_blind_to_assets_and_pose(composing):
    config, task, batch = composing
    drop = dataclasses.replace(config.loss, drop_text=0.0, drop_reference=0.0, drop_both=1.0, drop_pose=1.0)
    loss = jax.jit(composing_loss(config.model, drop, jnp.float32))
    params = trees.map_paths(
        lambda path, leaf: leaf + 0.05 * np.sin(np.arange(leaf.size)).reshape(leaf.shape), task.parameters
    )
    other = {**batch, "canvas_latents": -batch["canvas_latents"], "condition": batch["condition"] * 0.5}
    other["ids"] = np.flip(batch["ids"], 1)
    assert float(loss(params, batch, KEY)[0]) == pytest.approx(float(loss(params, other, KEY)[0]), rel=1e-6)
    # The same changes do move the loss where nothing is dropped.
    seeing = dataclasses.replace(drop, drop_both=0.0, drop_pose=0.0)
    loss = jax.jit(composing_loss(config.model, seeing, jnp.float32))
    assert float(loss(params, batch, KEY)[0]) != pytest.approx(float(loss(params, other, KEY)[0]), rel=1e-3)


def test_drop_out_gives_each_guidance_branch_its_share(composing):
    shares = dataclasses.replace(composing[0].loss, drop_text=0.1, drop_reference=0.2, drop_both=0.3)
    no_words, no_assets = (np.asarray(drop) for drop in dropped(shares, KEY, 20_000))
    assert np.mean(no_words & ~no_assets) == pytest.approx(0.1, abs=0.01)
    assert np.mean(~no_words & no_assets) == pytest.approx(0.2, abs=0.01)
    assert np.mean(no_words & no_assets) == pytest.approx(0.3, abs=0.01)
    with pytest.raises(ValueError, match="drop-out shares"):
        dataclasses.replace(shares, drop_text=0.6)


def test_a_trained_run_is_a_model_folder_that_composes(composing, tmp_path: Path):
    config, task, _ = composing
    task.export(task.parameters, tmp_path / "model")
    composer = Composer.load(tmp_path / "model")
    [picture] = composer.compose("a woman on a white background", steps=1, guidance=1.0)
    assert picture.image.size == (config.model.width, config.model.height)
    assert trees.digest(composer.params["vae"]) == task.data.index["settings"]["vae"]


def test_latents_of_another_autoencoder_are_refused(composing, data: Path, tmp_path: Path):
    config = composing[0]
    other = init_parameters(config.model, jax.random.key(9))["vae"]
    folder.save_part(tmp_path, "vae", other, config.model.vae)
    with pytest.raises(ValueError, match="was encoded by the VAE .* but .* holds"):
        make_task(dataclasses.replace(config, vae=tmp_path))


def test_freezing_everything_is_refused(composing):
    with pytest.raises(ValueError, match="freeze every parameter"):
        initial_state(OptimizerConfig(trainable=((".*", False),)), 10, composing[1].parameters)


def test_the_average_follows():
    average = update_ema({"a": jnp.zeros(2)}, {"a": jnp.ones(2)}, 0.5, jnp.int32(10**6))
    assert np.allclose(average["a"], 0.5)
    early = update_ema({"a": jnp.zeros(2)}, {"a": jnp.ones(2)}, 0.999, jnp.int32(0))
    assert np.allclose(early["a"], 0.9)
