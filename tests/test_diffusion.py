"""Schedules, targets and loss weights, against diffusers' schedulers and the equations themselves."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import diffusion
from fcjax.config import DiffusionConfig

SHAPE = (2, 4, 4, 3)
SD15 = DiffusionConfig()


def relative_error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def scheduler_arguments(config: DiffusionConfig) -> dict:
    """What all of diffusers' schedulers take."""
    ours = ("set_alpha_to_one", "timestep_shift")
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in ours}


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedule_equals_diffusers(schedule: str, zero_snr: bool) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers")
    config = dataclasses.replace(
        SD15, beta_schedule=schedule, rescale_betas_zero_snr=zero_snr, prediction_type="v_prediction"
    )
    ours = diffusion.make_alphas_cumprod(config)
    theirs = schedulers.DDIMScheduler(**scheduler_arguments(config)).alphas_cumprod.numpy()
    assert ours.shape == (1000,) and np.all(np.diff(ours) < 0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert (ours[-1] == 0.0) == zero_snr


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_targets_convert_back_to_the_clean_latents(prediction_type: str) -> None:
    alphas_cumprod = jnp.asarray(diffusion.make_alphas_cumprod(SD15), jnp.float32)
    rng = np.random.default_rng(1)
    clean, noise = (jnp.asarray(rng.standard_normal(SHAPE), jnp.float32) for _ in range(2))
    timesteps = jnp.asarray([3, 900])
    noisy = diffusion.add_noise(alphas_cumprod, clean, noise, timesteps)
    target = diffusion.training_target(prediction_type, alphas_cumprod, clean, noise, timesteps)
    back = diffusion.to_clean(prediction_type, alphas_cumprod, target, noisy, timesteps)
    np.testing.assert_allclose(back, clean, atol=1e-4)


def test_noise_and_velocity_equal_diffusers() -> None:
    torch = pytest.importorskip("torch")
    schedulers = pytest.importorskip("diffusers.schedulers")
    scheduler = schedulers.DDPMScheduler(
        beta_start=SD15.beta_start, beta_end=SD15.beta_end, beta_schedule=SD15.beta_schedule
    )
    alphas_cumprod = jnp.asarray(diffusion.make_alphas_cumprod(SD15), jnp.float32)
    clean, noise = np.random.default_rng(2).standard_normal((2, *SHAPE)).astype(np.float32)
    timesteps = np.asarray([0, 999])
    torch_arguments = [torch.from_numpy(array) for array in (clean, noise, timesteps)]
    noisy = diffusion.add_noise(alphas_cumprod, jnp.asarray(clean), jnp.asarray(noise), jnp.asarray(timesteps))
    velocity = diffusion.training_target(
        "v_prediction", alphas_cumprod, jnp.asarray(clean), jnp.asarray(noise), jnp.asarray(timesteps)
    )
    assert relative_error(noisy, scheduler.add_noise(*torch_arguments).numpy()) <= 1e-5
    assert relative_error(velocity, scheduler.get_velocity(*torch_arguments).numpy()) <= 1e-5


@pytest.mark.parametrize("weighting", ["min_snr", "min_snr_plus_one"])
def test_loss_weights_agree_on_the_error_of_the_clean_image(weighting: diffusion.Weighting) -> None:
    """The same wrong x_0, said in each prediction type, costs the same: min(SNR (+ 1), 5) times its squared error."""
    alphas_cumprod = jnp.asarray(diffusion.make_alphas_cumprod(SD15), jnp.float32)
    rng = np.random.default_rng(3)
    clean, noise, wrong = (jnp.asarray(rng.standard_normal(SHAPE), jnp.float32) for _ in range(3))
    timesteps = jnp.asarray([150, 800])
    noisy = diffusion.add_noise(alphas_cumprod, clean, noise, timesteps)
    share = alphas_cumprod[timesteps].reshape(2, 1, 1, 1)
    implied_noise = (noisy - jnp.sqrt(share) * wrong) / jnp.sqrt(1.0 - share)
    snr = alphas_cumprod[timesteps] / (1.0 - alphas_cumprod[timesteps])
    bounded = jnp.minimum(snr + (weighting == "min_snr_plus_one"), 5.0)
    expected = bounded * jnp.sum((wrong - clean) ** 2, (1, 2, 3))
    for prediction_type in diffusion.PREDICTION_TYPES:
        said = diffusion.training_target(prediction_type, alphas_cumprod, wrong, implied_noise, timesteps)
        target = diffusion.training_target(prediction_type, alphas_cumprod, clean, noise, timesteps)
        weight = diffusion.loss_weight(weighting, prediction_type, alphas_cumprod, timesteps)
        cost = weight * jnp.sum((said - target) ** 2, (1, 2, 3))
        np.testing.assert_allclose(cost, expected, rtol=1e-3)


def test_loss_weight_is_finite_without_signal() -> None:
    config = dataclasses.replace(SD15, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    alphas_cumprod = jnp.asarray(diffusion.make_alphas_cumprod(config), jnp.float32)
    for prediction_type in ("sample", "v_prediction"):
        given = prediction_type, alphas_cumprod, jnp.arange(1000)
        weights = np.asarray(diffusion.loss_weight("min_snr_plus_one", *given))
        # Nor does it vanish there: the last timesteps decide a picture's layout.
        assert np.all(np.isfinite(weights)) and weights[-1] == 1.0
        assert np.asarray(diffusion.loss_weight("min_snr", *given))[-1] == 0.0
        assert np.all(np.asarray(diffusion.loss_weight("none", *given)) == 1.0)


def test_min_snr_of_epsilon_is_diffusers() -> None:
    """min(SNR, gamma) / SNR, as diffusers' training scripts have it; 1 at every noisy timestep."""
    alphas_cumprod = np.asarray(diffusion.make_alphas_cumprod(SD15), np.float32)
    snr = alphas_cumprod / (1.0 - alphas_cumprod)
    given = jnp.asarray(alphas_cumprod), jnp.arange(1000)
    weights = diffusion.loss_weight("min_snr", "epsilon", *given)
    np.testing.assert_allclose(weights, np.minimum(snr, 5.0) / snr, rtol=1e-5)
    np.testing.assert_allclose(
        diffusion.loss_weight("min_snr", "v_prediction", *given), np.minimum(snr, 5.0) / (snr + 1.0), rtol=1e-4
    )


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type must be"):
        diffusion.training_target("x0", *[jnp.ones(2)] * 3, jnp.zeros(2, int))
