"""The training step on the composing task: what is dropped, frozen, added up."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import load_config
from configs.sd15 import PAPERS_PARAMETERS
from fcjax import folder, trees
from fcjax.assets import lay_out, owned_tokens
from fcjax.body import rest_places
from fcjax.data import Prepared
from fcjax.models import composer
from fcjax.models.composer import ReferenceFeatures, encode_images, pose_channels
from fcjax.optim import update_ema
from fcjax.tokenizer import Tokenizer
from fcjax.wardrobe import Wardrobe
from tests.training import composing_task, prepared
from train.config import OptimizerConfig
from train.step import (
    composing_loss,
    initial_state,
    make_step,
    matching_loss,
    parameters,
    train_step,
)

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def composing(data: Path):
    """The composing task on one batch: (config, task, batch)."""
    return composing_task(data)


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
    # The person's token (2, 3) shows what lies in the canvas's token (6, 5), next to (6, 6).
    matches = np.full((1, height, width, 2), -1, np.float32)
    matches[0, 2, 3] = 5.9 / width, 6.5 / height
    keys[0][0, 6 * width + 5] = 3.0
    queries = {level: np.zeros_like(key) for level, key in keys.items()}
    queries[0][0, 2 * width + 3] = 20 * keys[0][0, 6 * width + 5]

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
    assert loss(queries) == pytest.approx(0.0, abs=1e-3)
    assert loss(queries) < loss(nowhere) < loss(elsewhere)
    # Tokens that no asset covers cannot be looked at.
    assert loss(nowhere, hidden=(6 * width + 6,)) == pytest.approx(np.log(height * width - 1), rel=1e-4)
    assert loss(nowhere, hidden=(6 * width + 5,)) == 0.0


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


def test_steps_in_bfloat16_are_near_float32s_and_take_their_states_place(composing):
    config, task, batch = composing
    found = {}
    for dtype in ("float32", "bfloat16"):
        setting = dataclasses.replace(config, compute_dtype=dtype)
        loss = composing_loss(config.model, config.loss, jnp.dtype(dtype))
        state = initial_state(config.optimizer, 10, task.parameters, jnp.dtype(dtype))
        step = make_step(setting, loss).lower(state, batch).compile()
        # Donated: what comes out lies where what went in lay.
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert step.memory_analysis().alias_size_in_bytes == pytest.approx(size, rel=1e-3)
        losses = []
        for _ in range(4):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        assert {leaf.dtype for leaf in jax.tree.leaves(state.trained)} == {jnp.dtype(jnp.float32)}
        found[dtype] = losses
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.02) and found["bfloat16"] != found["float32"]


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


def test_freezing_everything_is_refused(composing):
    with pytest.raises(ValueError, match="freeze every parameter"):
        initial_state(OptimizerConfig(trainable=((".*", False),)), 10, composing[1].parameters)


def test_the_average_follows():
    average = update_ema({"a": jnp.zeros(2)}, {"a": jnp.ones(2)}, 0.5, jnp.int32(10**6))
    assert np.allclose(average["a"], 0.5)
    early = update_ema({"a": jnp.zeros(2)}, {"a": jnp.ones(2)}, 0.999, jnp.int32(0))
    assert np.allclose(early["a"], 0.9)
