"""Samplers as tables of coefficients.

A sampler is data. Every solver here is linear in the current latents x, the denoised estimate x_0, the estimate of
the step before and fresh noise, so one step of any of them is the same two lines (`sampler_step`), with coefficients
from a `SamplerTable`. Tables are padded to `max_steps`: another number of steps, another solver or another spacing is
another set of numbers for the same compiled program.

A table is a ladder of noise levels (each sampler's own, as diffusers' scheduler of that name has it) and a solver that
steps down it. Latents are always those of the training process, x_t = alpha_t x_0 + sigma_t epsilon. There Euler's
method, which others write for x_t / alpha_t, is DDIM's formula, and ancestral sampling is the same with eta = 1: DDIM,
DDPM and both of Euler's differ in their ladders alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fcjax.config import DiffusionConfig
from fcjax.diffusion import make_alphas_cumprod

MAX_STEPS = 100
"""Default bound on the number of sampling steps: the length that every table is padded to."""
LCM_STEPS = 50
"""The timesteps that latent consistency models are distilled at, evenly spaced."""
_LEAST_SHARE = 2.0**-24
"""diffusers' floor of alphas_cumprod for solvers in log-SNR, which is -inf where no signal is left."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplerTable:
    """A sampler: for step i, with x the latents, m the network's output, x_0' the estimate of step i-1 and z fresh
    noise,

        x_0 = denoised_from_sample[i] x + denoised_from_output[i] m
        x  <- sample[i] x + denoised[i] x_0 + previous[i] x_0' + noise[i] z

    `previous[0]` is 0. Latents start as `initial_scale` times unit Gaussian noise; `timesteps` is what the network is
    told (float32: some spacings fall between training timesteps). Rows from `steps` on are padding and never read.
    """

    steps: Int[Array, ""]
    initial_scale: Float[Array, ""]
    timesteps: Float[Array, "s"]
    denoised_from_sample: Float[Array, "s"]
    denoised_from_output: Float[Array, "s"]
    sample: Float[Array, "s"]
    denoised: Float[Array, "s"]
    previous: Float[Array, "s"]
    noise: Float[Array, "s"]

    @property
    def max_steps(self) -> int:
        return self.timesteps.shape[0]


def sampler_step(
    table: SamplerTable,
    index: Int[Array, ""],
    latents: Float[Array, "b ..."],
    output: Float[Array, "b ..."],
    previous_denoised: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
    """One step of any sampler: the next latents and the denoised estimate x_0 that they came from."""
    denoised = table.denoised_from_sample[index] * latents + table.denoised_from_output[index] * output
    following = (
        table.sample[index] * latents
        + table.denoised[index] * denoised
        + table.previous[index] * previous_denoised
        + table.noise[index] * noise
    )
    return following, denoised


def check_sampler(sampler: str, steps: int, eta: float = 0.0, most: int = MAX_STEPS) -> None:
    """ValueError for a name, a number of steps (at most `most`) or an eta that cannot be."""
    if sampler not in _SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler!r}")
    if sampler != "ddim" and eta:
        raise ValueError(f"eta is a setting of the sampler ddim; {sampler} has none, got {eta}")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie between 0 (deterministic) and 1 (ancestral), got {eta}")
    bound = min(most, LCM_STEPS) if sampler == "lcm" else most
    if not 1 <= steps <= bound:
        raise ValueError(f"steps must lie between 1 and {bound} for {sampler}, got {steps}")


def sampler_table(
    config: DiffusionConfig, steps: int, sampler: str = "ddim", *, eta: float = 0.0, max_steps: int = MAX_STEPS
) -> SamplerTable:
    """The table of a sampler by its name, one of `SAMPLERS`, for `config`'s schedule, prediction type and spacing.

    Every one follows diffusers' scheduler (clip_sample off, final_sigmas_type "zero"):

        ddim                  DDIMScheduler (arXiv 2010.02502); `eta` 0 is deterministic, 1 ancestral. As there, a step
                              ends at t - T // steps whatever the spacing, the last one at timestep 0's noise unless
                              `config.set_alpha_to_one`
        ddpm                  DDPMScheduler, variance_type "fixed_small" (arXiv 2006.11239)
        euler                 EulerDiscreteScheduler (arXiv 2206.00364)
        euler_ancestral       EulerAncestralDiscreteScheduler
        dpmpp_2m              DPMSolverMultistepScheduler, solver_order 2, midpoint (arXiv 2211.01095, algorithm 2)
        dpmpp_2m_sde          its algorithm_type "sde-dpmsolver++": fresh noise at every step but the last
        lcm                   LCMScheduler (arXiv 2310.04378), for networks distilled for it, at most `LCM_STEPS` steps
        ..._karras            use_karras_sigmas (arXiv 2206.00364, equation 5, rho 7)

    ValueError as `check_sampler`.
    """
    check_sampler(sampler, steps, eta, min(max_steps, config.num_train_timesteps))
    make_ladder, solver = _SAMPLERS[sampler]
    if sampler == "ddim":
        solver = partial(_first_order, eta=eta)
    ladder = make_ladder(config, steps)
    if ladder.timesteps[0] > config.num_train_timesteps - 1 or ladder.timesteps[-1] < 0:
        raise ValueError(
            f"{steps} steps with steps_offset={config.steps_offset} leave the {config.num_train_timesteps} training "
            "timesteps: use fewer steps, steps_offset=0 or another timestep_spacing"
        )
    return _table(config.prediction_type, ladder, solver(ladder), max_steps)


# ---------------------------------------------------------------------------------------------------------------------
# Ladders of noise levels


class _Ladder(NamedTuple):
    """Where each step starts and ends. A share is alpha^2, the signal's share of the variance."""

    timesteps: Float[np.ndarray, "s"]
    share: Float[np.ndarray, "s"]
    next_share: Float[np.ndarray, "s"]
    initial_scale: float = 1.0


def _spaced(config: DiffusionConfig, steps: int, points: int | None = None) -> Float[np.ndarray, "s"]:
    """The first `steps` of `points` timesteps, falling, spaced as `config.timestep_spacing` says (not rounded), then
    moved by `config.timestep_shift`."""
    train_steps, points = config.num_train_timesteps, steps if points is None else points
    if config.timestep_spacing == "linspace":
        timesteps = np.linspace(0, train_steps - 1, points)[::-1][:steps]
    elif config.timestep_spacing == "leading":
        timesteps = (np.arange(points)[::-1][:steps] * (train_steps // points) + config.steps_offset).astype(float)
    else:
        timesteps = np.arange(train_steps, 0, -train_steps / steps).round()[:steps] - 1.0
    shift, part = config.timestep_shift, (timesteps + 1.0) / train_steps
    return timesteps if shift == 1.0 else train_steps * shift * part / (1.0 + (shift - 1.0) * part) - 1.0


def _whole(timesteps: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
    """Rounded, each below the one before: a strong shift brings the first ones close together."""
    places = np.arange(len(timesteps))
    return np.minimum.accumulate(timesteps.round() + places) - places


def _shares(config: DiffusionConfig, timesteps: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
    """Of whole timesteps; those outside of training are found out later."""
    return make_alphas_cumprod(config)[np.clip(timesteps.astype(int), 0, config.num_train_timesteps - 1)]


def _ddim_ladder(config: DiffusionConfig, steps: int) -> _Ladder:
    timesteps = _whole(_spaced(config, steps))
    ends = timesteps - config.num_train_timesteps // steps
    if config.timestep_shift != 1.0:
        ends = np.append(timesteps[1:], -1.0)
    last = 1.0 if config.set_alpha_to_one else make_alphas_cumprod(config)[0]
    return _Ladder(timesteps, _shares(config, timesteps), np.where(ends >= 0, _shares(config, ends), last))


def _ddpm_ladder(config: DiffusionConfig, steps: int) -> _Ladder:
    timesteps = _whole(_spaced(config, steps))
    share = _shares(config, timesteps)
    return _Ladder(timesteps, share, np.append(share[1:], 1.0))


def _lcm_ladder(config: DiffusionConfig, steps: int) -> _Ladder:
    if config.num_train_timesteps < LCM_STEPS:
        raise ValueError(f"lcm needs at least {LCM_STEPS} training timesteps, not {config.num_train_timesteps}")
    distilled = np.arange(LCM_STEPS, 0, -1) * (config.num_train_timesteps // LCM_STEPS) - 1
    timesteps = distilled[np.linspace(0, LCM_STEPS, steps, endpoint=False).astype(int)].astype(float)
    share = _shares(config, timesteps)
    return _Ladder(timesteps, share, np.append(share[1:], 1.0))


def _euler_ladder(config: DiffusionConfig, steps: int, karras: bool = False) -> _Ladder:
    timesteps = _spaced(config, steps)
    noise = _noise_ratios(config)
    levels = np.interp(timesteps, np.arange(len(noise)), noise)
    if karras:
        levels = _karras(levels[0], levels[-1], steps)
        timesteps = _timesteps_of(levels, noise)
    ladder = _of_noise_ratios(levels, timesteps)
    # diffusers starts from pure noise of the first level with these spacings, and from noise of variance 1 with others.
    scale = 1.0 if config.timestep_spacing == "leading" else float(np.sqrt(1.0 - ladder.share[0]))
    return ladder._replace(initial_scale=scale)


def _dpmpp_ladder(config: DiffusionConfig, steps: int, karras: bool = False) -> _Ladder:
    timesteps = _whole(_spaced(config, steps, steps + 1))
    noise = _noise_ratios(config)
    levels = noise[np.clip(timesteps.astype(int), 0, len(noise) - 1)]
    if karras:
        levels = _karras(noise[-1], noise[0], steps)
        timesteps = _timesteps_of(levels, noise)
        if config.beta_schedule != "squaredcos_cap_v2":
            timesteps = timesteps.round()
    return _of_noise_ratios(levels, timesteps)


def _noise_ratios(config: DiffusionConfig) -> Float[np.ndarray, "t"]:
    """sigma_t / alpha_t of every training timestep, the noise level as Euler's and Karras' formulas have it."""
    share = make_alphas_cumprod(config)
    if config.rescale_betas_zero_snr:
        share = np.maximum(share, _LEAST_SHARE)
    return np.sqrt((1.0 - share) / share)


def _karras(most: float, least: float, steps: int) -> Float[np.ndarray, "s"]:
    """Noise levels that fall evenly in their seventh roots."""
    return np.linspace(most ** (1 / 7), least ** (1 / 7), steps) ** 7


def _timesteps_of(levels: Float[np.ndarray, "s"], noise: Float[np.ndarray, "t"]) -> Float[np.ndarray, "s"]:
    """The timesteps of these levels, between training's by the level's logarithm."""
    return np.interp(np.log(levels), np.log(noise), np.arange(len(noise)))


def _of_noise_ratios(levels: Float[np.ndarray, "s"], timesteps: Float[np.ndarray, "s"]) -> _Ladder:
    share = 1.0 / (1.0 + levels**2)
    return _Ladder(timesteps, share, np.append(share[1:], 1.0))


# ---------------------------------------------------------------------------------------------------------------------
# Solvers


class _Columns(NamedTuple):
    """What a solver says of each step, as in `SamplerTable`."""

    sample: Float[np.ndarray, "s"]
    denoised: Float[np.ndarray, "s"]
    previous: Float[np.ndarray, "s"]
    noise: Float[np.ndarray, "s"]


def _first_order(ladder: _Ladder, eta: float) -> _Columns:
    """DDIM's step (arXiv 2010.02502, equations 12 and 16), x' = alpha' x_0 + sqrt(sigma'^2 - s^2) e + s z, where
    e = (x - alpha x_0) / sigma is the noise that the network sees, z fresh noise and s its deviation.
    """
    share, next_share = ladder.share, ladder.next_share
    deviation = eta * np.sqrt((1.0 - next_share) / (1.0 - share) * np.maximum(1.0 - share / next_share, 0.0))
    direction = np.sqrt(np.maximum(1.0 - next_share - deviation**2, 0.0)) / np.sqrt(1.0 - share)
    return _Columns(direction, np.sqrt(next_share) - direction * np.sqrt(share), np.zeros_like(share), deviation)


def _dpmpp_2m(ladder: _Ladder, stochastic: bool) -> _Columns:
    """DPM-Solver++ 2M with the midpoint rule, or its SDE; the last step, to no noise, is of first order."""
    alpha, sigma = np.sqrt(ladder.share), np.sqrt(1.0 - ladder.share)
    next_alpha, next_sigma = np.sqrt(ladder.next_share), np.sqrt(1.0 - ladder.next_share)
    # h, the step in half log-SNR, is infinite at the end where no noise is left: exp(-h) = 0, as it should be.
    step = np.append(np.diff(np.log(alpha / sigma)), np.inf)
    decay = np.exp(-2.0 * step if stochastic else -step)
    weight = next_alpha * (1.0 - decay)
    # The second-order term 1/(2 r) (x_0 - x_0'), r = h_before / h; the first and the last step have none.
    second = np.zeros_like(step)
    second[1:-1] = 0.5 * step[1:-1] / step[:-2]
    return _Columns(
        sample=next_sigma / sigma * (np.exp(-step) if stochastic else 1.0),
        denoised=weight * (1.0 + second),
        previous=-weight * second,
        noise=next_sigma * np.sqrt(1.0 - decay) if stochastic else np.zeros_like(step),
    )


def _lcm(ladder: _Ladder) -> _Columns:
    """To the consistency function's picture c_out x_0 + c_skip x, noised anew to the next level."""
    scaled = ladder.timesteps * 10.0 / 0.5
    skip, out = 1.0 / (scaled**2 + 1.0), scaled / np.sqrt(scaled**2 + 1.0)
    alpha, sigma = np.sqrt(ladder.next_share), np.sqrt(1.0 - ladder.next_share)
    return _Columns(alpha * skip, alpha * out, np.zeros_like(skip), sigma)


_SAMPLERS: dict[str, tuple[Callable[..., _Ladder], Callable[..., _Columns]]] = {
    "ddim": (_ddim_ladder, _first_order),
    "ddpm": (_ddpm_ladder, partial(_first_order, eta=1.0)),
    "euler": (_euler_ladder, partial(_first_order, eta=0.0)),
    "euler_karras": (partial(_euler_ladder, karras=True), partial(_first_order, eta=0.0)),
    "euler_ancestral": (_euler_ladder, partial(_first_order, eta=1.0)),
    "dpmpp_2m": (_dpmpp_ladder, partial(_dpmpp_2m, stochastic=False)),
    "dpmpp_2m_karras": (partial(_dpmpp_ladder, karras=True), partial(_dpmpp_2m, stochastic=False)),
    "dpmpp_2m_sde": (_dpmpp_ladder, partial(_dpmpp_2m, stochastic=True)),
    "dpmpp_2m_sde_karras": (partial(_dpmpp_ladder, karras=True), partial(_dpmpp_2m, stochastic=True)),
    "lcm": (_lcm_ladder, _lcm),
}
SAMPLERS = tuple(_SAMPLERS)


def _table(prediction_type: str, ladder: _Ladder, columns: _Columns, max_steps: int) -> SamplerTable:
    """Pads the columns, adds those that turn the network's output into x_0, and moves all to float32."""
    alpha, sigma = np.sqrt(ladder.share), np.sqrt(1.0 - ladder.share)
    if prediction_type == "epsilon":
        from_sample, from_output = 1.0 / alpha, -sigma / alpha
    elif prediction_type == "v_prediction":
        from_sample, from_output = alpha, -sigma
    else:
        from_sample, from_output = np.zeros_like(alpha), np.ones_like(alpha)

    def padded(column: np.ndarray) -> Array:
        return jnp.asarray(np.pad(column, (0, max_steps - len(column))), jnp.float32)

    return SamplerTable(
        steps=jnp.asarray(len(alpha), jnp.int32),
        initial_scale=jnp.asarray(ladder.initial_scale, jnp.float32),
        timesteps=padded(ladder.timesteps),
        denoised_from_sample=padded(from_sample),
        denoised_from_output=padded(from_output),
        **{name: padded(column) for name, column in columns._asdict().items()},
    )
