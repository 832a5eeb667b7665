"""The training step, the tasks and the program, on models that compile in seconds."""

import dataclasses
import functools
import json
import os
import queue
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import load_config
from configs.sd15 import PAPERS_PARAMETERS
from fcjax import folder, trees
from fcjax.assets import lay_out, owned_tokens
from fcjax.body import rest_places
from fcjax.composer import Composer
from fcjax.config import ComposerConfig
from fcjax.data import Prepared, training_batches
from fcjax.data.augment import Augmentation
from fcjax.generation import decode
from fcjax.models import composer
from fcjax.models.composer import ReferenceFeatures, encode_images, encoding_parameters, pose_channels
from fcjax.models.parameters import init_parameters
from fcjax.optim import update_ema
from fcjax.tokenizer import Tokenizer
from fcjax.wardrobe import Wardrobe
from train import prepare, run
from train.config import OptimizerConfig, TrainConfig, VAELossConfig
from train.documents import check_continues, read_config, write_config
from train.latent_records import LatentShards
from train.logs import Log
from train.placement import Placement
from train.prepare import LatentsJob, WardrobeJob, prepare_latents, prepare_wardrobe
from train.progress import Progress
from train.step import (
    autoencoder_loss,
    composing_loss,
    drawn_noise,
    drawn_timesteps,
    dropped,
    initial_state,
    make_step,
    matching_loss,
    parameters,
    train_step,
)
from train.tasks import make_task
from train.watch import Watch

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
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_resuming_equals_an_uninterrupted_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = autoencoder(data)
    assert run.train(config, tmp_path / "whole")
    add = Progress.add

    def interrupt(self, step, values):
        add(self, step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "add", interrupt)
    assert not run.train(config, tmp_path / "parts")
    assert not (tmp_path / "parts" / "model").exists()
    monkeypatch.undo()
    assert run.train(config, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for path in ("vae/diffusion_pytorch_model.safetensors", "vae/config.json"):
        assert (tmp_path / "parts/model" / path).read_bytes() == (tmp_path / "whole/model" / path).read_bytes()


@pytest.mark.parametrize("devices", [1, 2])
def test_batches_lie_on_the_devices_two_steps_ahead(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int
):
    """In a run and in the one that continues it; each step has the batch of its number."""
    config, laid, put = autoencoder(data, devices=devices), queue.Queue[jax.Array](), Placement.put_batch
    task, steps = make_task(config), []
    plain = training_batches(task.data, task.transform, config.batch_size, config.seed, workers=1)
    expected = [next(plain)["images"] for _ in range(7)]

    def noted(self, rows):
        placed = put(self, rows)
        laid.put(placed["images"])
        return placed

    def watched(*given):
        step = make_step(*given)

        def call(state, batch):
            number, images = int(state.step), batch["images"]
            assert len(images.devices()) == devices and np.array_equal(images, expected[number])
            for ahead in range(0 if number in (0, 3) else 2, 3):
                assert np.array_equal(laid.get(timeout=60), expected[number + ahead])
            steps.append(number)
            return step(state, batch)

        return call

    monkeypatch.setattr(Placement, "put_batch", noted)
    monkeypatch.setattr(run, "make_step", watched)
    assert run.train(dataclasses.replace(config, steps=3), tmp_path)
    while not laid.empty():
        laid.get()
    assert run.train(dataclasses.replace(config, steps=5), tmp_path)
    assert steps == [0, 1, 2, 3, 4]


def test_a_run_shows_its_heldout_losses_and_pictures(data: Path, tmp_path: Path):
    config = autoencoder(data, heldout=data / "pictures", watch_every=4, steps=6)
    assert run.train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    shown = {line["step"]: line["heldout_psnr"] for line in lines if "heldout_psnr" in line}
    assert list(shown) == [4, 6] and shown[4] != shown[6]
    page = np.asarray(Image.open(tmp_path / "samples/00000006.png"))
    # A row for every sample of the batch: the crop and its reconstruction.
    assert page.shape == (config.batch_size * config.vae_loss.crop, 2 * config.vae_loss.crop, 3)
    with pytest.raises(ValueError, match="has 8 samples, held-out losses need a batch: 9"):
        larger, task = dataclasses.replace(config, batch_size=9), make_task(config)
        with Log(tmp_path) as log:
            Watch(larger, task, Placement(larger, task.parameters), tmp_path, log)


def test_another_configuration_does_not_continue_a_run(data: Path, tmp_path: Path):
    begun = autoencoder(data)
    write_config(tmp_path, begun)
    assert read_config(tmp_path) == begun
    check_continues(tmp_path, autoencoder(data, steps=99, log_every=7))
    slower = dataclasses.replace(begun.optimizer, learning_rate=1e-5)
    differ = (
        r"these fields differ: batch_size \(4 there, 2 now\), optimizer\.learning_rate \(0\.0001 there, 1e-05 now\)"
    )
    with pytest.raises(ValueError, match=rf"{differ}\. Choose another --out"):
        check_continues(tmp_path, autoencoder(data, batch_size=2, optimizer=slower))


def test_bad_input_is_one_line_and_code_2(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, latents, model = str(tmp_path / "run"), str(data / "latents"), str(data / "model")
    tiny = ["--config", "tiny", "--out", out, "--data", latents]
    for program, arguments, message in (
        (run.main, ["--config", "mini-vae", "--out", out], "did you mean 'mini_vae'"),
        (run.main, ["--config", "tiny_vae", "--out", out, "--data", latents], "holds latents; an autoencoder is"),
        (run.main, ["--config", "tiny_vae", "--out", out, "--data", str(tmp_path)], f"{tmp_path}"),
        (run.main, tiny, "composing needs --vae"),
        (run.main, [*tiny, "--vae", model, "--augment.flip", "0.5"], "latents cannot be changed by"),
        (run.main, [*tiny, "--vae", out], "has no vae"),
        (prepare.main, ["wardrobe", "--out", out, "--count", "0"], "count must be at least 1"),
        (prepare.main, ["latents", "--data", latents, "--model", model, "--out", out], "holds latents already"),
    ):
        with pytest.raises(SystemExit) as exit_:
            program(arguments)
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and message in error, error
        assert "Traceback" not in error and not (tmp_path / "run").exists()


def test_an_unknown_configuration_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mini_vae'"):
        load_config("mini-vae")


def test_shards_of_other_settings_are_not_taken_over(data: Path):
    with pytest.raises(ValueError, match=r"begun with other settings \(count\)"):
        prepare_wardrobe(WardrobeJob(out=data / "pictures", count=9, height=64, width=48, shard_size=4))


def linear(config: TrainConfig) -> TrainConfig:
    """The configuration with the mini model's kind of encoder."""
    fields = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
    vae = dataclasses.replace(config.model.vae, linear_encoder=True, **dict.fromkeys(fields, False))
    optimizer = dataclasses.replace(config.optimizer, trainable=load_config("mini_vae").optimizer.trainable)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vae=vae), optimizer=optimizer)


def test_training_a_decoder_leaves_the_latents_alone(data: Path, tmp_path: Path):
    config = linear(autoencoder(data, steps=2))
    begun = make_task(config).parameters["vae"]
    assert run.train(config, tmp_path)
    trained = folder.load_part(tmp_path / "model", "vae", folder.load_part_config(tmp_path / "model", "vae"))
    encoding = [trees.digest(encoding_parameters(params)) for params in (begun, trained)]
    assert encoding[0] == encoding[1] and trees.digest(begun) != trees.digest(trained)


def test_noise_in_the_latents_is_what_the_decoder_learns_to_stand(data: Path):
    config = linear(autoencoder(data))
    params = make_task(config).parameters
    pictures = Prepared(data / "pictures")
    batch = {"images": jnp.asarray(np.stack([pictures[index]["image"] for index in range(4)]))}
    psnr = [
        float(
            autoencoder_loss(config.model, VAELossConfig(latent_noise=noise), jnp.float32)(params, batch, KEY)[1][
                "psnr"
            ]
        )
        for noise in (0.0, 0.5, 2.0)
    ]
    assert psnr[0] > psnr[1] + 1 > psnr[2] + 2
    # Without noise the decoder undoes the encoder up to what principal components leave out.
    assert psnr[0] > 15


def test_latents_of_smaller_pictures_come_of_means_of_pixels(data: Path, tmp_path: Path):
    model = load_config("tiny").model
    half = dataclasses.replace(model, height=32, width=24)
    job = LatentsJob(data=data / "pictures", model=data / "model", out=tmp_path, batch_size=4)
    prepare_latents(job, half)
    picture, latent = Prepared(data / "pictures")[3]["image"], Prepared(tmp_path)[3]["image"]
    small = picture.reshape(32, 2, 24, 2, 3).mean((1, 3))[None] / 127.5 - 1
    params = folder.load_part(data / "model", "vae", model.vae)
    expected = encode_images({"vae": params}, half, jnp.asarray(small, jnp.float32))[0]
    np.testing.assert_allclose(latent, expected, atol=0.03)
    with pytest.raises(ValueError, match="are 64x48 .* the configuration's 128x96: prepare pictures of that size"):
        prepare_latents(dataclasses.replace(job, out=tmp_path / "b"), dataclasses.replace(model, height=128, width=96))
    for field in ("batch_size", "workers"):
        with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
            dataclasses.replace(job, **{field: 0})


def test_latents_of_several_devices_are_those_of_one(
    data: Path, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """A batch is split over them; one of 5 becomes one of 8, which changes no sample."""
    model = load_config("tiny").model
    job = LatentsJob(data / "pictures", tiny_model_folder, tmp_path / "all", batch_size=5, text=True)
    made = LatentShards(job, model)
    assert made.batch_size == len(jax.devices()) == 8
    latents = made.encode(np.zeros((8, model.height, model.width, 3), np.float32))
    assert {shard.device: len(shard.data) for shard in latents.addressable_shards} == dict.fromkeys(jax.devices(), 1)
    prepare_latents(job, model)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    prepare_latents(dataclasses.replace(job, out=tmp_path / "one"), model)
    sets = [Prepared(tmp_path / name) for name in ("all", "one")]
    for place in range(8):
        several, one = (each[place] for each in sets)
        assert several.keys() == one.keys()
        for name in ("image", "canvas0", "embeddings"):
            np.testing.assert_allclose(several[name], one[name], rtol=2e-3, atol=2e-3, err_msg=name)


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
    assert batch["latents"].shape == batch["canvas"].shape == (count, *grid, model.vae.latent_channels)
    points = tuple(model.pose_patch * length for length in grid)
    assert batch["uv"].shape == (count, *points, 2) and batch["places"].shape == (count, *points, 3)
    assert batch["masks"].shape == (count, model.max_assets, *grid)
    # The background carries -1, the body a place in the atlas.
    assert batch["uv"].min() == -1.0 and 0.0 < batch["uv"].max() <= 1.0
    # Every asset with a phrase has tokens on the canvas, and the reverse.
    assert np.array_equal(batch["spans"].sum(2) > 0.5, batch["masks"].max((2, 3)) > 0)
    assert np.allclose(batch["spans"].sum(2)[batch["spans"].sum(2) > 0], 1.0)


def test_training_gives_the_model_what_sampling_gives_it(composing, data: Path):
    config, task, _ = composing
    model, index, layouts = config.model, 2, task.data.index["settings"]["layouts"]
    sample = Wardrobe("train", seed=0, height=model.height, width=model.width)[index]
    example = task.transform(task.data[index], np.random.default_rng(0))
    layout = int(np.random.default_rng(0).integers(layouts))
    seed = index * layouts + layout
    canvas = lay_out(sample.assets, model.height, model.width, seed, max_assets=model.max_assets, varied=True)
    tokens = Tokenizer.load(config.tokenizer).encode_prompt(sample.caption, canvas.phrases, max_assets=model.max_assets)
    assert np.array_equal(example["ids"], tokens.ids) and np.array_equal(example["spans"], tokens.spans)
    grid = (model.latent_height, model.latent_width)
    np.testing.assert_allclose(example["masks"], owned_tokens(canvas.owners, model.max_assets, *grid), atol=1 / 255)
    given, uv = (jnp.asarray(array)[None] for array in (example["uv"], sample.maps.uv))
    seen, made = (pose_channels(model, uv, jnp.asarray(rest_places(np.asarray(uv)))) for uv in (given, uv))
    np.testing.assert_array_equal(seen, pose_channels(model, given, jnp.asarray(example["places"])[None]))
    np.testing.assert_allclose(seen, made, atol=0.05)  # 8 bits of (u, v) in the records
    params = {"vae": folder.load_part(data / "model", "vae", model.vae)}
    picture = jnp.asarray(canvas.image, jnp.float32)[None] / 127.5 - 1.0
    np.testing.assert_allclose(example["canvas"], encode_images(params, model, picture)[0], atol=5e-3)


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
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 2] and np.isfinite(lines[1]["heldout_loss"])
    loaded, params = folder.load(tmp_path / "model")
    assert loaded.height == config.model.height and "decoder" in params["vae"]


def test_dropping_everything_makes_the_loss_blind_to_assets_and_pose(composing):
    config, task, batch = composing
    drop = dataclasses.replace(config.loss, drop_text=0.0, drop_reference=0.0, drop_both=1.0, drop_pose=1.0)
    loss = jax.jit(composing_loss(config.model, drop, jnp.float32))
    params = trees.map_paths(
        lambda path, leaf: leaf + 0.05 * np.sin(np.arange(leaf.size)).reshape(leaf.shape), task.parameters
    )
    other = {**batch, "canvas": -batch["canvas"], "uv": 0.5 * batch["uv"], "places": -batch["places"]}
    other["ids"] = np.flip(batch["ids"], 1)
    assert float(loss(params, batch, KEY)[0]) == pytest.approx(float(loss(params, other, KEY)[0]), rel=1e-6)
    # The same changes do move the loss where nothing is dropped.
    seeing = dataclasses.replace(drop, drop_both=0.0, drop_pose=0.0)
    loss = jax.jit(composing_loss(config.model, seeing, jnp.float32))
    assert float(loss(params, batch, KEY)[0]) != pytest.approx(float(loss(params, other, KEY)[0]), rel=1e-3)


def test_dropped_text_is_dropped_from_the_denoiser_alone(composing, monkeypatch: pytest.MonkeyPatch):
    """The reference UNet reads the full prompt, in training as in sampling."""
    config, task, batch = composing
    read: dict[str, np.ndarray] = {}

    def noting(name: str):
        function = getattr(composer, name)

        def call(params, **given):
            read[name] = np.asarray(given["text"])
            return function(params, **given)

        monkeypatch.setattr(composer, name, call)

    noting("appearance_features")
    noting("denoise_with_queries")
    drop = dataclasses.replace(config.loss, drop_text=1.0, drop_reference=0.0, drop_both=0.0, noises=1)
    composing_loss(config.model, drop, jnp.float32)(task.parameters, {k: jnp.asarray(v) for k, v in batch.items()}, KEY)
    ids = jnp.concatenate([batch["ids"], batch["empty_ids"][:1]])
    text = np.asarray(composer.encode_prompt(task.parameters, config.model, ids, dtype=jnp.float32))
    np.testing.assert_allclose(read["appearance_features"], text[:-1], atol=1e-5)
    nothing = np.broadcast_to(text[-1:], text[:-1].shape)
    np.testing.assert_allclose(read["denoise_with_queries"], nothing, atol=1e-5)
    assert np.abs(text[:-1] - nothing).max() > 1e-2


def test_matches_lead_to_the_same_colours_on_the_canvas(composing, data: Path):
    model = composing[0].model
    pictures, latents = Prepared(data / "pictures"), Prepared(data / "latents")
    near, far = [], []
    for index in range(len(pictures)):
        picture, latent = pictures[index], latents[index]
        for layout in range(picture["layouts"]):
            matches = latent[f"matches{layout}"].astype(float)
            known = matches[..., 0] >= 0
            size = np.array([model.width, model.height])
            column, row = np.moveaxis((matches[known] * size).astype(int), -1, 0)
            canvas = picture[f"canvas{layout}"][row, column].astype(float)
            worn = picture["image"].reshape(model.latent_height, model.vae.factor, model.latent_width, -1, 3)
            worn = worn.mean(axis=(1, 3))[known]
            near += list(np.abs(worn - canvas).mean(axis=1))
            far += list(np.abs(worn - np.roll(canvas, len(canvas) // 2, axis=0)).mean(axis=1))
    assert len(near) > 100 and np.median(near) < 0.8 * np.median(far)


def test_matching_is_low_where_the_right_place_is_looked_at(composing):
    model = composing[0].model
    height, width, levels = model.latent_height, model.latent_width, model.unet.attention_levels
    rng = np.random.default_rng(0)
    keys = {
        level: rng.standard_normal((1, (height >> level) * (width >> level), 16)).astype(np.float32) for level in levels
    }
    # The person's token (2, 3) shows what lies between the canvas's tokens (6, 5) and (6, 6).
    matches = np.full((1, height, width, 2), -1, np.float32)
    matches[0, 2, 3] = 6 / width, 6.5 / height
    keys[0][0, [6 * width + 5, 6 * width + 6]] = 3.0
    queries = {level: np.zeros_like(key) for level, key in keys.items()}
    queries[0][0, 2 * width + 3] = 20 * (keys[0][0, 6 * width + 5] + keys[0][0, 6 * width + 6])

    def loss(queries: dict[int, np.ndarray], hidden: tuple[int, ...] = ()) -> float:
        seen = {level: np.ones(key.shape[:2], bool) for level, key in keys.items()}
        seen[0][0, list(hidden)] = False
        features = ReferenceFeatures(
            tuple((jnp.asarray(keys[level]),) * 2 for level in levels),
            tuple(jnp.asarray(seen[level]) for level in levels),
        )
        given = [jnp.asarray(queries[level]) for level in levels]
        return float(matching_loss(model, given, features, jnp.asarray(matches)))

    nowhere = {level: np.zeros_like(key) for level, key in keys.items()}
    assert loss(nowhere) == pytest.approx(np.log(height * width), rel=1e-4)
    elsewhere = {**queries, 0: -queries[0]}
    assert loss(queries) == pytest.approx(np.log(2), rel=1e-3)
    assert loss(queries) < loss(nowhere) < loss(elsewhere)
    # Tokens that no asset covers cannot be looked at; the other neighbour counts in full.
    assert loss(nowhere, hidden=(6 * width + 5,)) == pytest.approx(np.log(height * width - 1), rel=1e-4)
    assert loss(nowhere, hidden=(6 * width + 5, 6 * width + 6)) == 0.0


def test_a_shift_draws_noisier_timesteps(composing):
    config = composing[0].loss
    for shift, below_half in ((1.0, 0.5), (3.0, 0.25)):
        drawn = np.asarray(drawn_timesteps(dataclasses.replace(config, timestep_shift=shift), KEY, 20_000, 1000))
        assert np.mean(drawn < 500) == pytest.approx(below_half, abs=0.01)
        assert drawn.min() < 5 and drawn.max() == 999
    with pytest.raises(ValueError, match="timestep_shift must be positive"):
        dataclasses.replace(config, timestep_shift=0.0)


def test_offset_noise_moves_whole_channels(composing):
    loss = dataclasses.replace(composing[0].loss, offset_noise=0.5)
    noise = np.asarray(drawn_noise(loss, KEY, (200, 8, 8, 4)))
    means = noise.mean(axis=(1, 2))
    assert np.std(means) == pytest.approx(np.hypot(0.5, 1 / 8), rel=0.1)
    assert np.std(noise - means[:, None, None]) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("remat", ["layers", *(pytest.param(one, marks=pytest.mark.slow) for one in ("dots", "all"))])
def test_rematerialisation_changes_no_gradient(composing, remat: str):
    config, task, batch = composing
    alive = trees.map_paths(
        lambda path, leaf: leaf + 0.05 * np.sin(np.arange(leaf.size)).reshape(leaf.shape), task.parameters
    )

    def gradients(kept: str):
        loss = composing_loss(config.model, config.loss, jnp.float32, remat=kept)
        found = jax.jit(jax.value_and_grad(lambda params, batch: loss(params, batch, KEY)[0]))
        return found(alive, batch), found.lower(alive, batch).as_text().count("optimization_barrier")

    (value, plain), barriers = gradients("none")
    (again, anew), more = gradients(remat)
    assert more > barriers and float(again) == pytest.approx(float(value), rel=1e-6)
    for path, gradient in trees.flatten(plain).items():
        np.testing.assert_allclose(trees.flatten(anew)[path], gradient, rtol=1e-3, atol=1e-6, err_msg=path)


def test_parts_of_a_batch_add_up_to_the_batch(composing):
    """A batch in parts moves the parameters as the batch at once, where a loss does not draw anything."""
    config = composing[0]

    def loss(params, batch, key):
        error = jnp.mean(jnp.square(batch["x"] @ params["unet"]["kernel"] - batch["y"]))
        return error, {"error": error}

    rng = np.random.default_rng(0)
    batch = {"x": rng.standard_normal((12, 3), np.float32), "y": rng.standard_normal((12, 2), np.float32)}
    params = {"unet": {"kernel": jnp.ones((3, 2))}}

    def after(parts: int):
        setting = dataclasses.replace(config, batch_size=12, accumulate=parts)
        state = initial_state(setting.optimizer, 10, params)
        for _ in range(3):
            state, metrics = train_step(state, batch, loss=loss, config=setting)
        return state, metrics

    (whole, one), (summed, several) = after(1), after(3)
    np.testing.assert_allclose(summed.trained["unet"]["kernel"], whole.trained["unet"]["kernel"], rtol=1e-5)
    for name in ("loss", "error", "gradient_norm"):
        assert float(several[name]) == pytest.approx(float(one[name]), rel=1e-5)
    with pytest.raises(ValueError, match="accumulate must divide the batch of 12, got 5"):
        after(5)


def test_frozen_parameters_are_kept_in_few_bits_and_have_no_state(composing):
    config, task, _ = composing
    optimizer = dataclasses.replace(config.optimizer, trainable=PAPERS_PARAMETERS)
    state = initial_state(optimizer, 10, task.parameters, jnp.bfloat16)
    frozen, trained = trees.flatten(state.frozen), trees.flatten(state.trained)
    assert {leaf.dtype for leaf in frozen.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in trained.values()} == {jnp.dtype(jnp.float32)}
    assert "unet/conv_in/kernel" in trained and "reference_unet/conv_in/kernel" in frozen
    assert all("/attn" in path or path.startswith(("binder/", "unet/conv_in/")) for path in trained)
    kept = [leaf for leaf in jax.tree.leaves(state.optimizer) if getattr(leaf, "ndim", 0)]
    assert sum(leaf.size for leaf in kept) == 2 * sum(leaf.size for leaf in trained.values())


def test_frozen_parameters_cost_the_compiled_step_nothing():
    """Beside their own two bytes each: what it keeps and what it computes in is in proportion to what is trained."""
    side, base = 256, load_config("tiny")
    names = ("unet/conv_in", "unet/mid_block/attn1", "unet/mid_block/resnet", "reference_unet/ff", "text_encoder/mlp")
    kernel = jax.ShapeDtypeStruct((side, side), jnp.float32)
    params = trees.unflatten({f"{name}/kernel": kernel for name in names})
    batch = {"x": jax.ShapeDtypeStruct((2, side), jnp.float32)}

    def loss(params, batch, key):
        x = batch["x"]
        for one in trees.flatten(params).values():
            x = jnp.tanh(x @ one.astype(x.dtype))
        return jnp.mean(jnp.square(x)), {}

    def compiled(trainable):
        """How many parameters are trained, and the memory of the step."""
        optimizer = dataclasses.replace(base.optimizer, trainable=trainable)
        config = dataclasses.replace(base, optimizer=optimizer, batch_size=2)
        state = jax.eval_shape(functools.partial(initial_state, optimizer, 10, frozen_dtype=jnp.bfloat16), params)
        return trees.count(state.trained), make_step(config, loss).lower(state, batch).compile().memory_analysis()

    (some, part), (every, whole) = compiled(PAPERS_PARAMETERS), compiled(((".*", True),))
    frozen = every - some
    assert (some, every) == (2 * side**2, 5 * side**2)
    # Trained, each has 4 bytes of its own, of its average and of two moments.
    assert whole.argument_size_in_bytes - part.argument_size_in_bytes == frozen * (4 * 4 - 2)
    # And a gradient, in 4 bytes.
    assert whole.temp_size_in_bytes - part.temp_size_in_bytes >= 4 * frozen
    assert part.temp_size_in_bytes / some == pytest.approx(whole.temp_size_in_bytes / every, rel=0.01)


def test_without_a_moving_average_none_is_kept(composing):
    config, task, batch = composing
    optimizer = dataclasses.replace(config.optimizer, ema_decay=0.0, warmup_steps=1)
    config = dataclasses.replace(config, optimizer=optimizer)
    state = initial_state(optimizer, 2, jax.tree.map(jnp.copy, task.parameters))
    for _ in range(2):
        state, _ = make_step(config, task.loss)(state, batch)
    assert not jax.tree.leaves(state.average)
    averaged, last = parameters(state, averaged=True), parameters(state)
    assert all(trees.flatten(trees.map_paths(lambda _, a, b: a is b, averaged, last)).values())


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


def test_a_run_goes_on_from_one_on_smaller_pictures(composing, tmp_path: Path):
    config, task, _ = composing
    task.export(task.parameters, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["fcjax"] |= {"height": 32, "width": 24}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    started = make_task(dataclasses.replace(config, start=tmp_path, seed=5)).parameters
    assert trees.digest(started) == trees.digest(task.parameters)
    index["fcjax"]["attend_blank"] = True
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="holds a model of another configuration than 'tiny'"):
        make_task(dataclasses.replace(config, start=tmp_path))


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
    np.testing.assert_allclose(page[height : 2 * height, 2 * width : 3 * width], truth, atol=1)
    # Left of the truth the UV map, whose points stand where the person does.
    pose, body = page[height : 2 * height, width : 2 * width], example["uv"][..., 0] >= 0
    assert pose.shape == truth.shape and (pose.any(axis=-1)).mean() == pytest.approx(body.mean(), abs=0.01)
    line = json.loads((tmp_path / "log.jsonl").read_text())
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


def test_freezing_everything_is_refused(composing):
    with pytest.raises(ValueError, match="freeze every parameter"):
        initial_state(OptimizerConfig(trainable=((".*", False),)), 10, composing[1].parameters)


def test_the_average_follows():
    average = update_ema({"a": jnp.zeros(2)}, {"a": jnp.ones(2)}, 0.5, jnp.int32(10**6))
    assert np.allclose(average["a"], 0.5)
    early = update_ema({"a": jnp.zeros(2)}, {"a": jnp.ones(2)}, 0.999, jnp.int32(0))
    assert np.allclose(early["a"], 0.9)
