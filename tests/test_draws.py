"""What a training step draws: noise levels, noise, drop-outs, and noise that holds the model's own errors."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from fcjax.config import DiffusionConfig
from fcjax.diffusion import PREDICTION_TYPES, add_noise, make_alphas_cumprod, training_target
from tests.training import composing_task, prepared
from train.config import LossConfig
from train.draws import drawn_noise, drawn_timesteps, dropped, own_noise
from train.step import composing_loss

KEY = jax.random.key(0)
SIZE = (200, 2, 3, 4)


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


class Network:
    """Predicts as one would that takes clean latents for `guess`; remembers what it was asked."""

    def __init__(self, diffusion: DiffusionConfig, guess: Array):
        self.diffusion, self.schedule, self.guess = diffusion, make_alphas_cumprod(diffusion), guess

    def __call__(self, noisy: Array, timesteps: Array) -> Array:
        self.noisy, self.timesteps = noisy, timesteps
        share = jnp.asarray(self.schedule)[timesteps][:, None, None, None]
        noise = (noisy - jnp.sqrt(share) * self.guess) / jnp.sqrt(1 - share)
        return training_target(self.diffusion.prediction_type, self.schedule, self.guess, noise, timesteps)


def rolled_out(guess: Array, clean: Array, prediction_type: str = "sample", rollout: float = 1.0):
    """(noise, own noise, timesteps, the network that was asked), at a shift of 3."""
    config = LossConfig(timestep_shift=3.0, rollout=rollout)
    diffusion = DiffusionConfig(prediction_type=prediction_type, rescale_betas_zero_snr=prediction_type != "epsilon")
    noise = jax.random.normal(jax.random.fold_in(KEY, 1), clean.shape)
    timesteps = drawn_timesteps(config, jax.random.fold_in(KEY, 2), len(clean), diffusion.num_train_timesteps)
    network = Network(diffusion, guess)
    return noise, own_noise(config, diffusion, network, clean, noise, timesteps, KEY), timesteps, network


def test_a_perfect_model_leaves_the_noise_as_it_is():
    clean = jax.random.normal(KEY, SIZE)
    noise, own, _, _ = rolled_out(clean, clean)
    np.testing.assert_allclose(own, noise, atol=1e-3)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_noisy_latents_are_a_step_of_ddim_from_a_noisier_timestep(prediction_type: str):
    clean = jax.random.normal(KEY, SIZE)
    guess = 0.5 * clean + 0.2
    _, own, timesteps, network = rolled_out(guess, clean, prediction_type)
    assert np.all(network.timesteps >= timesteps)
    # Between this timestep and the last by the shift: half way on average, of what was uniform.
    levels = [np.asarray(t + 0.5) / (3000 - 2 * np.asarray(t + 0.5)) for t in (timesteps, network.timesteps)]
    assert np.mean((levels[1] - levels[0]) / (1 - levels[0])) == pytest.approx(0.5, abs=0.05)
    (alpha, sigma), (later_alpha, later_sigma) = (
        (np.sqrt(share), np.sqrt(1 - share))
        for share in (network.schedule[np.asarray(t)][:, None, None, None] for t in (network.timesteps, timesteps))
    )
    expected = later_alpha * guess + later_sigma * (network.noisy - alpha * guess) / sigma
    np.testing.assert_allclose(add_noise(network.schedule, clean, own, timesteps), expected, atol=2e-3)


def test_only_its_share_of_samples_holds_the_models_errors():
    clean = jax.random.normal(KEY, (2000, 1, 1, 1))
    noise, own, _, _ = rolled_out(clean + 1.0, clean, rollout=0.25)
    assert np.mean(np.abs(own - noise) > 1e-3) == pytest.approx(0.25, abs=0.03)
    with pytest.raises(ValueError, match="rollout is a share of the samples, from 0 to 1; got 1.5"):
        LossConfig(rollout=1.5)


def test_no_gradient_flows_through_the_models_own_errors():
    clean = jax.random.normal(KEY, SIZE)
    gradient = jax.grad(lambda guess: jnp.sum(jnp.square(rolled_out(guess, clean)[1])))(clean)
    assert not np.any(gradient)


def test_the_composing_loss_asks_for_the_clean_latents_all_the_same(tmp_path: Path):
    config, task, batch = composing_task(prepared(tmp_path))

    def value(rollout: float) -> dict[str, float]:
        given = LossConfig(timestep_shift=3.0, rollout=rollout, drop_text=0.0, drop_reference=0.0, drop_both=0.0)
        _, metrics = jax.jit(composing_loss(config.model, given, jnp.float32))(task.parameters, batch, KEY)
        return {name: float(metric) for name, metric in metrics.items()}

    taught, own = value(0.0), value(1.0)
    assert own["clean_error"] != taught["clean_error"]
    # An untrained model's own errors hide more of the truth than noise alone does, not all of it.
    assert taught["clean_error"] < own["clean_error"] < 2 * taught["clean_error"] + 1
