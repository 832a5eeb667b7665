"""The diffusion process as arrays: noise schedules, training targets, loss weights, and samplers as coefficient tables.

Notation: `alphas_cumprod[t]` is the signal's share of the variance at training timestep t, so that

    x_t = alpha_t x_0 + sigma_t epsilon,   alpha_t = sqrt(alphas_cumprod[t]),   sigma_t = sqrt(1 - alphas_cumprod[t])

(DDPM, arXiv 2006.11239). A network predicts one of three things, named as in diffusers' scheduler configs: "epsilon"
(the noise), "sample" (x_0) or "v_prediction" (alpha epsilon - sigma x_0, arXiv 2202.00512).

A sampler is data. Every solver here is linear in the current latents x, the denoised estimate x_0, the estimate of
the step before and fresh noise, so one step of any of them is the same two lines (`sampler_step`), with coefficients
from a `SamplerTable`. Tables are padded to `max_steps`: another number of steps, another solver or another spacing is
another set of numbers for the same compiled program.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fcjax.config import DiffusionConfig

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
SAMPLERS = ("ddim", "dpmpp_2m", "dpmpp_2m_sde")
MAX_STEPS = 100
"""Default bound on the number of sampling steps: the length that every table is padded to."""


# ---------------------------------------------------------------------------------------------------------------------
# Schedule


def make_alphas_cumprod(config: DiffusionConfig) -> Float[np.ndarray, "t"]:
    """Cumulative products of (1 - beta) in float64, one a training timestep, decreasing.

    `config.beta_schedule`: "linear", "scaled_linear" (linear in sqrt(beta)) or "squaredcos_cap_v2" (the cosine
    schedule of arXiv 2102.09672, which ignores beta_start and beta_end). `config.rescale_betas_zero_snr` stretches
    the schedule so that no signal is left at the last timestep (arXiv 2305.08891, algorithm 1).
    """
    count, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        betas = np.linspace(start, end, count)
    elif config.beta_schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, count) ** 2
    elif config.beta_schedule == "squaredcos_cap_v2":
        level = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1.0 - level[1:] / level[:-1], 0.999)
    else:
        raise ValueError(f"no such beta_schedule: {config.beta_schedule!r}")
    alphas_cumprod = np.cumprod(1.0 - betas)
    if config.rescale_betas_zero_snr:
        alpha = np.sqrt(alphas_cumprod)
        alphas_cumprod = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    return alphas_cumprod


def _per_sample(alphas_cumprod: Array | np.ndarray, timesteps: Array, ndim: int) -> tuple[Array, Array]:
    """alpha_t and sigma_t of each sample, shaped to broadcast over an array of `ndim` axes with the batch in front."""
    share = jnp.asarray(alphas_cumprod, jnp.float32)[timesteps].reshape(-1, *[1] * (ndim - 1))
    return jnp.sqrt(share), jnp.sqrt(1.0 - share)


# ---------------------------------------------------------------------------------------------------------------------
# Training: noising, targets, conversions, loss weights


def add_noise(
    alphas_cumprod: Float[Array | np.ndarray, "t"],
    clean: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    timesteps: Int[Array, "b"],
) -> Float[Array, "b ..."]:
    """x_t of each sample at its own timestep."""
    alpha, sigma = _per_sample(alphas_cumprod, timesteps, clean.ndim)
    return alpha * clean + sigma * noise


def training_target(
    prediction_type: str,
    alphas_cumprod: Float[Array | np.ndarray, "t"],
    clean: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    timesteps: Int[Array, "b"],
) -> Float[Array, "b ..."]:
    """What a network of this prediction type should have said."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    if prediction_type == "v_prediction":
        alpha, sigma = _per_sample(alphas_cumprod, timesteps, clean.ndim)
        return alpha * noise - sigma * clean
    raise _unknown_prediction_type(prediction_type)


def to_clean(
    prediction_type: str,
    alphas_cumprod: Float[Array | np.ndarray, "t"],
    prediction: Float[Array, "b ..."],
    noisy: Float[Array, "b ..."],
    timesteps: Int[Array, "b"],
) -> Float[Array, "b ..."]:
    """x_0 as a prediction implies it."""
    if prediction_type == "sample":
        return prediction
    alpha, sigma = _per_sample(alphas_cumprod, timesteps, noisy.ndim)
    if prediction_type == "epsilon":
        return (noisy - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * noisy - sigma * prediction
    raise _unknown_prediction_type(prediction_type)


def to_noise(
    prediction_type: str,
    alphas_cumprod: Float[Array | np.ndarray, "t"],
    prediction: Float[Array, "b ..."],
    noisy: Float[Array, "b ..."],
    timesteps: Int[Array, "b"],
) -> Float[Array, "b ..."]:
    """epsilon as a prediction implies it."""
    if prediction_type == "epsilon":
        return prediction
    alpha, sigma = _per_sample(alphas_cumprod, timesteps, noisy.ndim)
    if prediction_type == "sample":
        return (noisy - alpha * prediction) / sigma
    if prediction_type == "v_prediction":
        return alpha * prediction + sigma * noisy
    raise _unknown_prediction_type(prediction_type)


def loss_weight(
    prediction_type: str,
    alphas_cumprod: Float[Array | np.ndarray, "t"],
    timesteps: Int[Array, "b"],
    bound: float = 5.0,
) -> Float[Array, "b"]:
    """min(1 / sigma_t^2, bound) on the squared error of x_0, expressed for what the network predicts.

    Choice: min-SNR (arXiv 2303.09556) with 1 / sigma^2 = SNR + 1 for the SNR, which does not vanish where no signal
    is left: that is where a picture's layout is decided.
    """
    share = jnp.asarray(alphas_cumprod, jnp.float32)[timesteps]
    sigma2 = 1.0 - share
    clipped = jnp.minimum(1.0 / sigma2, bound)
    if prediction_type == "sample":
        return clipped
    if prediction_type == "epsilon":
        return clipped * sigma2 / share
    if prediction_type == "v_prediction":
        return clipped * sigma2
    raise _unknown_prediction_type(prediction_type)


def _unknown_prediction_type(prediction_type: str) -> ValueError:
    return ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}; got {prediction_type!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Samplers as tables


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


def sampler_table(
    config: DiffusionConfig, steps: int, sampler: str = "ddim", max_steps: int = MAX_STEPS, eta: float = 0.0
) -> SamplerTable:
    """The table of a sampler by its name, one of `SAMPLERS`; `eta` concerns DDIM alone."""
    if sampler == "ddim":
        return ddim_table(config, steps, eta=eta, max_steps=max_steps)
    if sampler in ("dpmpp_2m", "dpmpp_2m_sde"):
        if eta:
            raise ValueError(f"eta is a setting of the sampler ddim; {sampler} has none, got {eta}")
        return dpmpp_2m_table(config, steps, stochastic=sampler == "dpmpp_2m_sde", max_steps=max_steps)
    raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler!r}")


def ddim_table(
    config: DiffusionConfig,
    steps: int,
    *,
    eta: float = 0.0,
    max_steps: int = MAX_STEPS,
) -> SamplerTable:
    """DDIM (arXiv 2010.02502, equations 12 and 16); `eta` 0 is deterministic, 1 is ancestral DDPM.

    Every setting means what diffusers' DDIMScheduler means by it, clip_sample off; with `config.set_alpha_to_one` the
    last step ends without noise, else the noise of timestep 0 stays in. As there, a step ends at t - T // steps
    whatever the spacing, which for "linspace" is not quite where the next one starts.
    """
    train_steps = config.num_train_timesteps
    _check_steps(steps, train_steps, max_steps)
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie between 0 (deterministic) and 1 (ancestral), got {eta}")
    if config.timestep_spacing == "linspace":
        timesteps = np.linspace(0, train_steps - 1, steps).round()[::-1].astype(np.int64)
    elif config.timestep_spacing == "leading":
        timesteps = np.arange(steps)[::-1] * (train_steps // steps) + config.steps_offset
    else:
        timesteps = np.arange(train_steps, 0, -train_steps / steps).round().astype(np.int64)[:steps] - 1
    _check_timesteps(timesteps, config)
    ends = timesteps - train_steps // steps

    alphas_cumprod = make_alphas_cumprod(config)
    share = alphas_cumprod[timesteps]
    final_share = 1.0 if config.set_alpha_to_one else alphas_cumprod[0]
    next_share = np.where(ends >= 0, alphas_cumprod[np.maximum(ends, 0)], final_share)
    deviation = eta * np.sqrt((1.0 - next_share) / (1.0 - share) * np.maximum(1.0 - share / next_share, 0.0))
    # x' = sqrt(next) x_0 + sqrt(1 - next - s^2) epsilon + s z, with epsilon = (x - alpha x_0) / sigma.
    direction = np.sqrt(np.maximum(1.0 - next_share - deviation**2, 0.0)) / np.sqrt(1.0 - share)
    return _table(
        share,
        timesteps,
        config.prediction_type,
        sample=direction,
        denoised=np.sqrt(next_share) - direction * np.sqrt(share),
        previous=np.zeros(steps),
        noise=deviation,
        max_steps=max_steps,
    )


def dpmpp_2m_table(
    config: DiffusionConfig, steps: int, *, stochastic: bool = False, max_steps: int = MAX_STEPS
) -> SamplerTable:
    """DPM-Solver++ 2M, the midpoint rule (arXiv 2211.01095, algorithm 2), ending without noise by a first-order step.

    `stochastic` is its SDE form, which adds fresh noise at every step but the last. As diffusers'
    DPMSolverMultistepScheduler with solver_order 2 and final_sigmas_type "zero".
    """
    train_steps = config.num_train_timesteps
    _check_steps(steps, train_steps, max_steps)
    if config.timestep_spacing == "linspace":
        timesteps = np.linspace(0, train_steps - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
    elif config.timestep_spacing == "leading":
        timesteps = np.arange(1, steps + 1)[::-1] * (train_steps // (steps + 1)) + config.steps_offset
    else:
        timesteps = np.arange(train_steps, 0, -train_steps / steps).round().astype(np.int64)[:steps] - 1
    _check_timesteps(timesteps, config)

    # The solver steps in log-SNR, which is -inf where no signal is left; diffusers' floor keeps it finite.
    share = np.maximum(make_alphas_cumprod(config)[timesteps], 2.0**-24)
    alpha, sigma = np.sqrt(share), np.sqrt(1.0 - share)
    next_alpha, next_sigma = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    # h, the step in half log-SNR, is infinite at the end where no noise is left: exp(-h) = 0, as it should be.
    step = np.append(np.diff(np.log(alpha / sigma)), np.inf)
    decay = np.exp(-2.0 * step if stochastic else -step)
    weight = next_alpha * (1.0 - decay)
    # The second-order term 1/(2 r) (x_0 - x_0'), r = h_before / h; the first and the last step have none.
    second = np.zeros(steps)
    second[1:-1] = 0.5 * step[1:-1] / step[:-2]
    return _table(
        share,
        timesteps,
        config.prediction_type,
        sample=next_sigma / sigma * (np.exp(-step) if stochastic else 1.0),
        denoised=weight * (1.0 + second),
        previous=-weight * second,
        noise=next_sigma * np.sqrt(1.0 - decay) if stochastic else np.zeros(steps),
        max_steps=max_steps,
    )


def _table(
    share: np.ndarray,
    timesteps: np.ndarray,
    prediction_type: str,
    *,
    sample: np.ndarray,
    denoised: np.ndarray,
    previous: np.ndarray,
    noise: np.ndarray,
    max_steps: int,
) -> SamplerTable:
    """Pads the columns, adds those that turn the network's output into x_0, and moves all to float32."""
    alpha, sigma = np.sqrt(share), np.sqrt(1.0 - share)
    if prediction_type == "epsilon":
        from_sample, from_output = 1.0 / alpha, -sigma / alpha
    elif prediction_type == "v_prediction":
        from_sample, from_output = alpha, -sigma
    else:
        from_sample, from_output = np.zeros_like(alpha), np.ones_like(alpha)

    def padded(column: np.ndarray) -> Array:
        return jnp.asarray(np.pad(column, (0, max_steps - len(column))), jnp.float32)

    return SamplerTable(
        steps=jnp.asarray(len(timesteps), jnp.int32),
        initial_scale=jnp.asarray(1.0, jnp.float32),
        timesteps=padded(timesteps),
        denoised_from_sample=padded(from_sample),
        denoised_from_output=padded(from_output),
        sample=padded(sample),
        denoised=padded(denoised),
        previous=padded(previous),
        noise=padded(noise),
    )


def _check_steps(steps: int, train_steps: int, max_steps: int) -> None:
    bound = min(max_steps, train_steps)
    if not 1 <= steps <= bound:
        raise ValueError(f"steps must lie between 1 and {bound}, got {steps}")


def _check_timesteps(timesteps: np.ndarray, config: DiffusionConfig) -> None:
    if timesteps[0] >= config.num_train_timesteps or timesteps[-1] < 0:
        raise ValueError(
            f"{len(timesteps)} steps with steps_offset={config.steps_offset} leave the {config.num_train_timesteps} "
            "training timesteps: use fewer steps, steps_offset=0 or another timestep_spacing"
        )
