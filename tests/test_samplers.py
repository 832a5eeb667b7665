"""Sampler tables against diffusers' schedulers, given the same network and the same noise."""

import contextlib
import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import diffusion
from fcjax.config import DiffusionConfig
from fcjax.samplers import SAMPLERS, SamplerTable, sampler_step, sampler_table

SHAPE = (2, 4, 4, 3)
SD15 = DiffusionConfig()
ZERO_SNR = dataclasses.replace(
    SD15,
    prediction_type="v_prediction",
    timestep_spacing="trailing",
    rescale_betas_zero_snr=True,
    set_alpha_to_one=True,
)
DPMPP = "DPMSolverMultistepScheduler"
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": (DPMPP, {}),
    "dpmpp_2m_karras": (DPMPP, {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": (DPMPP, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": (DPMPP, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
}


def fake_network(sample: np.ndarray, timestep: float) -> np.ndarray:
    """Some smooth function of both arguments, in float32 as a network's output would be."""
    return (0.6 * np.sin(3.0 * sample) + 0.3 * sample + 0.2 * np.cos(timestep / 150.0)).astype(np.float32)


def start_and_noises(steps: int) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(steps)
    draws = rng.standard_normal((steps + 1, *SHAPE)).astype(np.float32)
    return draws[0], list(draws[1:])


def run_table(
    table: SamplerTable, start: np.ndarray, noises: list[np.ndarray], outputs: list[np.ndarray]
) -> list[np.ndarray]:
    """The latents that the network sees at every step, and those after the last, given what it says."""
    step = jax.jit(sampler_step)
    latents, denoised, history = table.initial_scale * start, jnp.zeros(SHAPE), []
    for index, (noise, output) in enumerate(zip(noises, outputs, strict=True)):
        history.append(np.asarray(latents))
        latents, denoised = step(table, jnp.int32(index), latents, jnp.asarray(output), denoised, noise)
    return [*history, np.asarray(latents)]


def make_scheduler(sampler: str, config: DiffusionConfig, steps: int):
    schedulers = pytest.importorskip("diffusers.schedulers")
    name, extra = SCHEDULERS[sampler]
    arguments = dataclasses.asdict(config)
    del arguments["timestep_shift"]
    if sampler not in ("ddim", "lcm"):
        del arguments["set_alpha_to_one"]
    with warnings.catch_warnings():
        # diffusers turns tensors into arrays in a way that NumPy 2 is about to drop; nothing of ours.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler = getattr(schedulers, name)(**arguments, **extra)
        scheduler.set_timesteps(steps)
    return scheduler


@contextlib.contextmanager
def given_noise(scheduler, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    """Whatever noise the scheduler draws is this."""
    torch = pytest.importorskip("torch")
    with monkeypatch.context() as patch:
        patch.setattr(f"{type(scheduler).__module__}.randn_tensor", lambda *_, **__: torch.from_numpy(noise))
        yield


def run_scheduler(
    scheduler, start: np.ndarray, noises: list[np.ndarray], monkeypatch, **extra
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same of the scheduler, and what the network said."""
    torch = pytest.importorskip("torch")
    latents, history, outputs = torch.from_numpy(start) * scheduler.init_noise_sigma, [], []
    for timestep, noise in zip(scheduler.timesteps, noises, strict=True):
        history.append(scheduler.scale_model_input(latents, timestep).numpy())
        outputs.append(fake_network(history[-1], float(timestep)))
        with given_noise(scheduler, noise, monkeypatch):
            latents = scheduler.step(torch.from_numpy(outputs[-1]), timestep, latents, **extra).prev_sample
    return [*history, latents.numpy()], outputs


def assert_equal_to_diffusers(sampler: str, config: DiffusionConfig, steps: int, monkeypatch, eta: float = 0.0) -> None:
    """At every step and at the end, relative to the latents' scale; the network sees the same timesteps."""
    start, noises = start_and_noises(steps)
    scheduler = make_scheduler(sampler, config, steps)
    theirs, outputs = run_scheduler(scheduler, start, noises, monkeypatch, **({"eta": eta} if eta else {}))
    table = sampler_table(config, steps, sampler, eta=eta)
    np.testing.assert_allclose(table.timesteps[:steps], scheduler.timesteps.numpy(), atol=2e-2)
    for ours, reference in zip(run_table(table, start, noises, outputs), theirs, strict=True):
        assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_equals_diffusers(sampler: str, steps: int, spacing: str, prediction_type: str, monkeypatch) -> None:
    config = dataclasses.replace(SD15, prediction_type=prediction_type, timestep_spacing=spacing)
    assert_equal_to_diffusers(sampler, config, steps, monkeypatch)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if not name.startswith("euler")])
def test_clean_prediction_equals_diffusers(sampler: str, monkeypatch) -> None:
    """diffusers' Euler schedulers have none (one refuses it, the other means something else by it)."""
    assert_equal_to_diffusers(sampler, dataclasses.replace(SD15, prediction_type="sample"), 20, monkeypatch)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if "karras" not in name])
def test_zero_terminal_snr_equals_diffusers(sampler: str, monkeypatch) -> None:
    assert_equal_to_diffusers(sampler, ZERO_SNR, 8, monkeypatch)


# (diffusers' own DPM-Solver fails with Karras' levels of this schedule.)
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if "dpmpp" not in name or "karras" not in name])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_cosine_schedule_equals_diffusers(sampler: str, spacing: str, monkeypatch) -> None:
    """Which leaves less signal than the floor of schedules without any."""
    config = dataclasses.replace(SD15, beta_schedule="squaredcos_cap_v2", timestep_spacing=spacing)
    assert_equal_to_diffusers(sampler, config, 5, monkeypatch)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_equal_diffusers(sampler: str, steps: int, monkeypatch) -> None:
    assert_equal_to_diffusers(sampler, SD15, steps, monkeypatch)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
def test_eta_of_ddim_equals_diffusers(spacing: str, set_alpha_to_one: bool, monkeypatch) -> None:
    config = dataclasses.replace(SD15, timestep_spacing=spacing, set_alpha_to_one=set_alpha_to_one)
    assert_equal_to_diffusers("ddim", config, 20, monkeypatch, eta=0.7)


@pytest.mark.parametrize("sampler", ["euler_karras", "dpmpp_2m_karras"])
def test_karras_levels_of_another_schedule_equal_diffusers(sampler: str, monkeypatch) -> None:
    assert_equal_to_diffusers(sampler, dataclasses.replace(SD15, beta_schedule="linear"), 10, monkeypatch)


# (With a shift, Euler's timesteps fall between training's.)
@pytest.mark.parametrize(
    ("sampler", "shift"),
    [("ddim", 1.0), ("ddim", 3.0), ("dpmpp_2m", 1.0), ("dpmpp_2m", 3.0), ("euler", 1.0), ("lcm", 1.0)],
)
@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_a_perfect_denoiser_is_followed_to_its_picture(sampler: str, prediction_type: str, shift: float) -> None:
    config = dataclasses.replace(
        SD15, prediction_type=prediction_type, set_alpha_to_one=True, timestep_spacing="leading", timestep_shift=shift
    )
    alphas_cumprod = jnp.asarray(diffusion.make_alphas_cumprod(config), jnp.float32)
    clean = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
    table = sampler_table(config, 10, sampler)
    latents, denoised = jnp.asarray(start_and_noises(10)[0]), jnp.zeros(SHAPE)
    for index in range(10):
        timesteps = jnp.full((2,), int(table.timesteps[index]))
        share = alphas_cumprod[timesteps].reshape(2, 1, 1, 1)
        noise = (latents - jnp.sqrt(share) * clean) / jnp.sqrt(1.0 - share)
        output = diffusion.training_target(prediction_type, alphas_cumprod, clean, noise, timesteps)
        latents, denoised = sampler_step(table, jnp.int32(index), latents, output, denoised, jnp.zeros(SHAPE))
        np.testing.assert_allclose(denoised, clean, atol=2e-4)
    # A consistency function keeps a trace of the noise at its last timestep.
    np.testing.assert_allclose(latents, clean, atol=2e-2 if sampler == "lcm" else 2e-4)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if "karras" not in name and name != "lcm"])
def test_a_shift_moves_steps_towards_noise(sampler: str) -> None:
    shifted = dataclasses.replace(ZERO_SNR, timestep_shift=4.0)
    timesteps = np.asarray(sampler_table(shifted, 4, sampler).timesteps[:4])
    # Of the parts 1, 3/4, 1/2 and 1/4 of the way: 4 u / (1 + 3 u), counted from 1.
    np.testing.assert_allclose(timesteps + 1, [1000, 923, 800, 571], atol=1)
    strong = sampler_table(dataclasses.replace(shifted, timestep_shift=30.0), 100, sampler)
    assert np.all(np.diff(strong.timesteps) < 0) and float(strong.timesteps[-1]) > 200
    assert all(np.isfinite(column).all() for column in vars(strong).values())


def test_bad_tables_are_refused() -> None:
    leading = dataclasses.replace(SD15, steps_offset=1, num_train_timesteps=50)
    for make, message in (
        (lambda: sampler_table(SD15, 0), "between 1 and 100 for ddim, got 0"),
        (lambda: sampler_table(SD15, 101), "between 1 and 100 for ddim, got 101"),
        (lambda: sampler_table(SD15, 30, max_steps=20), "between 1 and 20 for ddim, got 30"),
        (lambda: sampler_table(SD15, 51, "lcm"), "between 1 and 50 for lcm, got 51"),
        (lambda: sampler_table(SD15, 20, "heun"), "must be one of ddim"),
        (lambda: sampler_table(SD15, 20, "dpmpp_2m", eta=0.5), "eta is a setting of the sampler ddim"),
        (lambda: sampler_table(SD15, 20, eta=2.0), "eta must lie"),
        (lambda: sampler_table(SD15, 20, eta=float("nan")), "eta must lie"),
        (lambda: sampler_table(leading, 50), "use fewer steps"),
        (lambda: sampler_table(dataclasses.replace(SD15, num_train_timesteps=20), 5, "lcm"), "lcm needs at least 50"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
