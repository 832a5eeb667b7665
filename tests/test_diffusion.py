"""Schedules, targets, loss weights and sampler tables, against diffusers' schedulers and the equations themselves."""

import dataclasses
import warnings

import jax
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
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "set_alpha_to_one"}


def fake_network(sample: np.ndarray, timestep: float) -> np.ndarray:
    """Some smooth function of both arguments, in float32 as a network's output would be."""
    return (0.6 * np.sin(3.0 * sample) + 0.3 * sample + 0.2 * np.cos(timestep / 150.0)).astype(np.float32)


def run_table(table: diffusion.SamplerTable, start: np.ndarray, noises: list[np.ndarray]) -> list[np.ndarray]:
    """The latents after every step."""
    step = jax.jit(diffusion.sampler_step)
    latents, denoised, history = jnp.asarray(start), jnp.zeros(SHAPE), []
    for index in range(int(table.steps)):
        output = fake_network(np.asarray(latents), float(table.timesteps[index]))
        latents, denoised = step(table, jnp.int32(index), latents, jnp.asarray(output), denoised, noises[index])
        history.append(np.asarray(latents))
    return history


def run_scheduler(scheduler, steps: int, start: np.ndarray, noises: list[np.ndarray], **extra) -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        # diffusers turns tensors into arrays in a way that NumPy 2 is about to drop; nothing of ours.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler.set_timesteps(steps)
    latents, history = torch.from_numpy(start), []
    for timestep, noise in zip(scheduler.timesteps, noises, strict=True):
        output = torch.from_numpy(fake_network(latents.numpy(), float(timestep)))
        latents = scheduler.step(output, timestep, latents, variance_noise=torch.from_numpy(noise), **extra).prev_sample
        history.append(latents.numpy())
    return history


def start_and_noises(steps: int) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(steps)
    draws = rng.standard_normal((steps + 1, *SHAPE)).astype(np.float32)
    return draws[0], list(draws[1:])


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
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_equals_diffusers(prediction_type: str, spacing: str, steps: int, eta: float) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers")
    config = dataclasses.replace(SD15, prediction_type=prediction_type, timestep_spacing=spacing)
    start, noises = start_and_noises(steps)
    for set_alpha_to_one in (False, True):
        scheduler = schedulers.DDIMScheduler(
            clip_sample=False, set_alpha_to_one=set_alpha_to_one, **scheduler_arguments(config)
        )
        theirs = run_scheduler(scheduler, steps, start, noises, eta=eta)
        own = dataclasses.replace(config, set_alpha_to_one=set_alpha_to_one)
        table = diffusion.ddim_table(own, steps, eta=eta)
        assert list(table.timesteps[:steps]) == list(scheduler.timesteps.numpy())
        for ours, reference in zip(run_table(table, start, noises), theirs, strict=True):
            assert relative_error(ours, reference) <= 1e-4


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpmpp_2m_equals_diffusers(prediction_type: str, spacing: str, steps: int, stochastic: bool) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers")
    config = dataclasses.replace(SD15, prediction_type=prediction_type, timestep_spacing=spacing)
    start, noises = start_and_noises(steps)
    algorithm = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    scheduler = schedulers.DPMSolverMultistepScheduler(algorithm_type=algorithm, **scheduler_arguments(config))
    theirs = run_scheduler(scheduler, steps, start, noises)
    table = diffusion.dpmpp_2m_table(config, steps, stochastic=stochastic)
    assert list(table.timesteps[:steps]) == list(scheduler.timesteps.numpy())
    for ours, reference in zip(run_table(table, start, noises), theirs, strict=True):
        assert relative_error(ours, reference) <= 1e-4


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_zero_terminal_snr_equals_diffusers(sampler: str) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers")
    config = dataclasses.replace(
        SD15,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
    )
    start, noises = start_and_noises(8)
    if sampler == "ddim":
        scheduler = schedulers.DDIMScheduler(clip_sample=False, **scheduler_arguments(config))
    else:
        scheduler = schedulers.DPMSolverMultistepScheduler(**scheduler_arguments(config))
    theirs = run_scheduler(scheduler, 8, start, noises)
    for ours, reference in zip(
        run_table(diffusion.sampler_table(config, 8, sampler), start, noises), theirs, strict=True
    ):
        assert relative_error(ours, reference) <= 1e-4


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_denoiser_is_followed_to_its_picture(sampler: str, prediction_type: str) -> None:
    config = dataclasses.replace(SD15, prediction_type=prediction_type, set_alpha_to_one=True)
    alphas_cumprod = jnp.asarray(diffusion.make_alphas_cumprod(config), jnp.float32)
    clean = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
    table = diffusion.sampler_table(config, 10, sampler)
    latents, denoised = jnp.asarray(start_and_noises(10)[0]), jnp.zeros(SHAPE)
    for index in range(10):
        timesteps = jnp.full((2,), int(table.timesteps[index]))
        noise = diffusion.to_noise("sample", alphas_cumprod, clean, latents, timesteps)
        output = diffusion.training_target(prediction_type, alphas_cumprod, clean, noise, timesteps)
        latents, denoised = diffusion.sampler_step(table, jnp.int32(index), latents, output, denoised, jnp.zeros(SHAPE))
        np.testing.assert_allclose(denoised, clean, atol=2e-4)
    np.testing.assert_allclose(latents, clean, atol=2e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_targets_convert_back_to_clean_and_noise(prediction_type: str) -> None:
    alphas_cumprod = jnp.asarray(diffusion.make_alphas_cumprod(SD15), jnp.float32)
    rng = np.random.default_rng(1)
    clean, noise = (jnp.asarray(rng.standard_normal(SHAPE), jnp.float32) for _ in range(2))
    timesteps = jnp.asarray([3, 900])
    noisy = diffusion.add_noise(alphas_cumprod, clean, noise, timesteps)
    target = diffusion.training_target(prediction_type, alphas_cumprod, clean, noise, timesteps)
    arguments = (prediction_type, alphas_cumprod, target, noisy, timesteps)
    np.testing.assert_allclose(diffusion.to_clean(*arguments), clean, atol=1e-4)
    np.testing.assert_allclose(diffusion.to_noise(*arguments), noise, atol=1e-4)


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


def test_loss_weights_agree_on_the_error_of_the_clean_image() -> None:
    """The same wrong x_0, said in each prediction type, costs the same: min(1 / sigma^2, 5) times its squared error."""
    alphas_cumprod = jnp.asarray(diffusion.make_alphas_cumprod(SD15), jnp.float32)
    rng = np.random.default_rng(3)
    clean, noise, wrong = (jnp.asarray(rng.standard_normal(SHAPE), jnp.float32) for _ in range(3))
    timesteps = jnp.asarray([150, 800])
    noisy = diffusion.add_noise(alphas_cumprod, clean, noise, timesteps)
    implied_noise = diffusion.to_noise("sample", alphas_cumprod, wrong, noisy, timesteps)
    expected = jnp.minimum(1.0 / (1.0 - alphas_cumprod[timesteps]), 5.0) * jnp.sum((wrong - clean) ** 2, (1, 2, 3))
    for prediction_type in diffusion.PREDICTION_TYPES:
        said = diffusion.training_target(prediction_type, alphas_cumprod, wrong, implied_noise, timesteps)
        target = diffusion.training_target(prediction_type, alphas_cumprod, clean, noise, timesteps)
        weight = diffusion.loss_weight(prediction_type, alphas_cumprod, timesteps)
        cost = weight * jnp.sum((said - target) ** 2, (1, 2, 3))
        np.testing.assert_allclose(cost, expected, rtol=1e-3)


def test_loss_weight_is_finite_without_signal() -> None:
    config = dataclasses.replace(SD15, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    alphas_cumprod = jnp.asarray(diffusion.make_alphas_cumprod(config), jnp.float32)
    for prediction_type in ("sample", "v_prediction"):
        weights = np.asarray(diffusion.loss_weight(prediction_type, alphas_cumprod, jnp.arange(1000)))
        # Nor does it vanish there: the last timesteps decide a picture's layout.
        assert np.all(np.isfinite(weights)) and weights[-1] == 1.0


def test_bad_tables_are_refused() -> None:
    leading = dataclasses.replace(SD15, steps_offset=1, num_train_timesteps=50)
    for make, message in (
        (lambda: diffusion.sampler_table(SD15, 0), "between 1 and 100, got 0"),
        (lambda: diffusion.sampler_table(SD15, 101), "between 1 and 100, got 101"),
        (lambda: diffusion.sampler_table(SD15, 30, max_steps=20), "between 1 and 20, got 30"),
        (lambda: diffusion.sampler_table(SD15, 20, "euler"), "must be one of ddim"),
        (lambda: diffusion.sampler_table(SD15, 20, "dpmpp_2m", eta=0.5), "eta is a setting of the sampler ddim"),
        (lambda: diffusion.sampler_table(SD15, 20, eta=2.0), "eta must lie"),
        (lambda: diffusion.sampler_table(SD15, 20, eta=float("nan")), "eta must lie"),
        (lambda: diffusion.ddim_table(leading, 50), "use fewer steps"),
        (lambda: diffusion.training_target("x0", *[jnp.ones(2)] * 3, jnp.zeros(2, int)), "prediction_type must be"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
