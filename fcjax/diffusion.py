"""The diffusion process as arrays: noise schedules, training targets and loss weights.

Notation: `alphas_cumprod[t]` is the signal's share of the variance at training timestep t, so that

    x_t = alpha_t x_0 + sigma_t epsilon,   alpha_t = sqrt(alphas_cumprod[t]),   sigma_t = sqrt(1 - alphas_cumprod[t])

(DDPM, arXiv 2006.11239). A network predicts one of three things, named as in diffusers' scheduler configs: "epsilon"
(the noise), "sample" (x_0) or "v_prediction" (alpha epsilon - sigma x_0, arXiv 2202.00512).
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fcjax.config import DiffusionConfig

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
Weighting = Literal["min_snr", "min_snr_plus_one", "none"]


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


def loss_weight(
    weighting: Weighting,
    prediction_type: str,
    alphas_cumprod: Float[Array | np.ndarray, "t"],
    timesteps: Int[Array, "b"],
    bound: float = 5.0,
) -> Float[Array, "b"]:
    """The weight of the squared error of what the network predicts.

    "none": 1. "min_snr" (arXiv 2303.09556): min(SNR, bound) on the squared error of x_0, expressed for the prediction:
    min(SNR, bound) / SNR for epsilon, / (SNR + 1) for v. "min_snr_plus_one": min(SNR + 1, bound) on x_0's, which does
    not vanish where no signal is left: that is where a picture's layout is decided.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise _unknown_prediction_type(prediction_type)
    share = jnp.asarray(alphas_cumprod, jnp.float32)[timesteps]
    sigma2 = 1.0 - share
    if weighting == "none":
        return jnp.ones_like(share)
    of_clean = share / sigma2 if weighting == "min_snr" else 1.0 / sigma2
    per_clean = {"sample": 1.0, "epsilon": sigma2 / share, "v_prediction": sigma2}
    return jnp.minimum(of_clean, bound) * per_clean[prediction_type]


def _unknown_prediction_type(prediction_type: str) -> ValueError:
    return ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}; got {prediction_type!r}")
