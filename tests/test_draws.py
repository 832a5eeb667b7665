"""What a training step draws: noise levels, noise, drop-outs, and noise that holds the model's own errors."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from fcjax.config import DiffusionConfig
from fcjax.diffusion import add_noise, make_alphas_cumprod, to_clean
from fcjax.models import composer
from fcjax.samplers import sampler_step, sampler_table
from tests.training import composing_task, prepared
from train.config import LossConfig
from train.cost import flops_of
from train.draws import drawn_noise, drawn_timesteps, dropped, own_noise
from train.step import composing_loss

KEY = jax.random.key(0)
SIZE = (200, 2, 3, 4)
DIFFUSION = DiffusionConfig(prediction_type="sample", rescale_betas_zero_snr=True, timestep_spacing="trailing")
SCHEDULE = make_alphas_cumprod(DIFFUSION)


def test_a_shift_draws_noisier_timesteps():
    for shift, below_half in ((1.0, 0.5), (3.0, 0.25)):
        drawn = np.asarray(drawn_timesteps(LossConfig(timestep_shift=shift), KEY, 20_000, 1000))
        assert np.mean(drawn < 500) == pytest.approx(below_half, abs=0.01)
        assert drawn.min() < 5 and drawn.max() == 999
    with pytest.raises(ValueError, match="timestep_shift must be positive"):
        LossConfig(timestep_shift=0.0)


def test_offset_noise_moves_whole_channels():
    noise = np.asarray(drawn_noise(LossConfig(offset_noise=0.5), KEY, (200, 8, 8, 4)))
    means = noise.mean(axis=(1, 2))
    assert np.std(means) == pytest.approx(np.hypot(0.5, 1 / 8), rel=0.1)
    assert np.std(noise - means[:, None, None]) == pytest.approx(1.0, rel=0.02)


def test_drop_out_gives_each_guidance_branch_its_share():
    shares = {"drop_text": 0.1, "drop_reference": 0.2, "drop_both": 0.3}
    no_words, no_assets = (np.asarray(drop) for drop in dropped(LossConfig(**shares), KEY, 20_000))
    assert np.mean(no_words & ~no_assets) == pytest.approx(0.1, abs=0.01)
    assert np.mean(~no_words & no_assets) == pytest.approx(0.2, abs=0.01)
    assert np.mean(no_words & no_assets) == pytest.approx(0.3, abs=0.01)
    with pytest.raises(ValueError, match="drop-out shares"):
        LossConfig(**{**shares, "drop_text": 0.6})


def rolled_out(guess: Array, clean: Array, rollout: float = 1.0, shift: float = 3.0):
    """(noise, own noise, timesteps, the noisier ones, noisy latents there) with a model that says `guess` of all."""
    config = LossConfig(timestep_shift=shift, rollout=rollout)
    noise = jax.random.normal(jax.random.fold_in(KEY, 1), clean.shape)
    timesteps = drawn_timesteps(config, jax.random.fold_in(KEY, 2), len(clean), 1000)
    asked = []

    def restore(noisy: Array, before: Array) -> Array:
        asked.append((before, noisy))
        return guess

    own = own_noise(config, SCHEDULE, restore, clean, noise, timesteps, KEY)
    return noise, own, timesteps, *asked[0]


def test_a_model_that_knows_the_truth_leaves_the_noise_as_it_is():
    clean = jax.random.normal(KEY, SIZE)
    noise, own, timesteps, before, _ = rolled_out(clean, clean)
    np.testing.assert_array_equal(own, noise)
    assert np.mean(before > timesteps) > 0.9


@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0, 0.5])
def test_noisy_latents_are_a_step_of_ddim_from_any_noisier_timestep(shift: float):
    clean = jax.random.normal(KEY, (4000, 1, 1, 2))
    guess = 0.5 * clean + 0.2
    noise, own, timesteps, before, noisy = rolled_out(guess, clean, shift=shift)
    assert np.all(before >= timesteps) and np.max(before) <= 999
    # Of what lies between this timestep and the last any share is as likely, by the shift.
    quantiles = [np.asarray(t) / (1000 * shift - (shift - 1) * np.asarray(t)) for t in (timesteps, before)]
    shares = (quantiles[1] - quantiles[0]) / (1 - quantiles[0])
    shares = shares[timesteps < 800]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03) and np.std(shares) == pytest.approx(12**-0.5, abs=0.02)
    np.testing.assert_array_equal(noisy, add_noise(SCHEDULE, clean, noise, before))
    share, next_share = (SCHEDULE[np.asarray(t)][:, None, None, None] for t in (before, timesteps))
    seen = (noisy - np.sqrt(share) * guess) / np.sqrt(1 - share)
    expected = np.sqrt(next_share) * guess + np.sqrt(1 - next_share) * seen
    np.testing.assert_allclose(add_noise(SCHEDULE, clean, own, timesteps), expected, atol=1e-4)


def test_a_step_is_the_samplers(monkeypatch: pytest.MonkeyPatch):
    """From the last timestep but one of four to the last, as `sampler_step` goes."""
    table = sampler_table(DIFFUSION, 4, max_steps=4)
    rungs = table.timesteps[2], table.timesteps[3]
    monkeypatch.setattr("train.draws._shifted", lambda config, quantile, total: jnp.full(2, int(rungs[0])))
    clean = jax.random.normal(KEY, (2, 4, 4, 3))
    noise, guess = jax.random.normal(jax.random.fold_in(KEY, 1), (2, *clean.shape))
    asked = []

    def restore(noisy: Array, before: Array) -> Array:
        asked.append(noisy)
        return guess

    to = jnp.full(2, int(rungs[1]))
    own = own_noise(LossConfig(rollout=1.0), SCHEDULE, restore, clean, noise, to, KEY)
    stepped, _ = sampler_step(table, jnp.int32(2), asked[0], guess, jnp.zeros_like(guess), jnp.zeros_like(guess))
    np.testing.assert_allclose(add_noise(SCHEDULE, clean, own, to), stepped, atol=1e-5)


def test_only_its_share_of_samples_holds_the_models_errors():
    clean = jax.random.normal(KEY, (2000, 1, 1, 1))
    noise, own, timesteps, before, _ = rolled_out(clean + 1.0, clean, rollout=0.25)
    assert np.mean((own != noise)[before > timesteps]) == pytest.approx(0.25, abs=0.03)
    with pytest.raises(ValueError, match="rollout is a share of the noise levels, from 0 to 1; got 1.5"):
        LossConfig(rollout=1.5)


@pytest.fixture(scope="module")
def composing(tmp_path_factory: pytest.TempPathFactory):
    """The composing task on one batch: (config, task, batch), half of the noise levels with a drop-out."""
    config, task, batch = composing_task(prepared(tmp_path_factory.mktemp("data")))
    loss = dataclasses.replace(config.loss, drop_text=0.2, drop_reference=0.2, drop_both=0.1, noises=2, matching=0.0)
    return dataclasses.replace(config, loss=loss), task, batch


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_composing_loss_predicts_twice_under_the_same_conditions(
    composing, prediction_type: str, monkeypatch: pytest.MonkeyPatch
):
    config, task, batch = composing
    diffusion = dataclasses.replace(config.model.diffusion, prediction_type=prediction_type)
    model = dataclasses.replace(config.model, diffusion=diffusion)
    loss = dataclasses.replace(config.loss, rollout=1.0, weighting="min_snr", foreground_weight=0.0)
    calls = []

    def noting(*params: Any, **given: Any):
        said = denoise(*params, **given)
        calls.append((given, said[0]))
        return said

    denoise = composer.denoise_with_queries
    monkeypatch.setattr(composer, "denoise_with_queries", noting)
    given = {name: jnp.asarray(rows) for name, rows in batch.items()}
    total, metrics = composing_loss(model, loss, jnp.float32)(task.parameters, given, KEY)
    (first, said), (second, prediction) = calls
    for name in ("text", "condition", "features"):
        jax.tree.map(np.testing.assert_array_equal, first[name], second[name])
    schedule, timesteps = make_alphas_cumprod(diffusion), second["timesteps"]
    assert np.all(first["timesteps"] >= timesteps) and np.any(first["timesteps"] > timesteps)
    clean = jnp.repeat(given["latents"], 2, axis=0)
    shares = (schedule[np.asarray(call["timesteps"])][:, None, None, None] for call in (first, second))
    (alpha, sigma), (next_alpha, next_sigma) = ((np.sqrt(share), np.sqrt(1 - share)) for share in shares)
    restored = to_clean(prediction_type, schedule, said, first["noisy"], first["timesteps"])
    seen = (first["noisy"] - alpha * restored) / sigma
    np.testing.assert_allclose(second["noisy"], next_alpha * restored + next_sigma * seen, atol=1e-3)
    # What is asked for is the clean latents, whatever led to the noisy ones: in their own units for every prediction.
    wanted = to_clean(prediction_type, schedule, prediction, second["noisy"], timesteps)
    weight = np.minimum(next_alpha**2 / next_sigma**2, loss.min_snr)
    assert float(total) == pytest.approx(float(np.mean(weight * np.square(wanted - clean))), rel=1e-3)
    assert float(metrics["clean_error"]) == pytest.approx(float(np.mean(np.square(wanted - clean))), rel=1e-3)


def test_held_out_losses_are_those_of_plain_noise(composing):
    config, task, batch = composing
    batch = batch | {"timesteps": np.array([[100, 500], [900, 999], [300, 700], [0, 50]])}

    def value(rollout: float) -> float:
        loss = composing_loss(config.model, dataclasses.replace(config.loss, rollout=rollout), jnp.float32)
        return float(jax.jit(loss)(task.parameters, batch, KEY)[0])

    assert value(1.0) == value(0.0)


@pytest.mark.parametrize("remat", ["none", "layers", "all"])
def test_a_rollout_costs_a_forward_pass_and_no_gradient_flows_through_it(composing, remat: str):
    config, task, batch = composing
    model, batch = config.model, {name: jnp.asarray(rows) for name, rows in batch.items()}
    cost = {}
    for rollout in (0.0, 1.0):
        loss = composing_loss(model, dataclasses.replace(config.loss, rollout=rollout), jnp.float32, remat=remat)
        gradient = jax.grad(lambda params, loss=loss: loss(params, batch, KEY)[0])
        cost[rollout] = flops_of(gradient, task.parameters)
    rows = config.loss.noises * len(batch["ids"])
    text = jnp.zeros((rows, batch["ids"].shape[1], model.text_encoder.hidden_size))
    latents = jnp.zeros((rows, model.latent_height, model.latent_width, model.vae.latent_channels))
    given = {name: batch[name] for name in ("canvas", "spans", "masks")}
    features = composer.appearance_features(task.parameters, model, text=text[:4], **given, dtype=jnp.float32)
    features = composer.repeat_features(features, config.loss.noises)
    condition = jnp.repeat(composer.pose_channels(model, batch["uv"], batch["places"]), config.loss.noises, axis=0)
    forward = flops_of(
        lambda params: composer.denoise(
            params, model, latents, jnp.zeros(rows), text, condition, features, dtype=jnp.float32
        ),
        composer.denoising_parameters(task.parameters),
    )
    assert cost[1.0] - cost[0.0] == forward > 0
