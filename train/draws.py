"""What a training step draws at random: noise levels, noise, drop-outs, and noise that holds the model's own errors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from fcjax.diffusion import add_noise
from train.config import LossConfig


def drawn_timesteps(config: LossConfig, key: Key[Array, ""], count: int, total: int) -> Int[Array, "b"]:
    """Timesteps in [0, total), uniform or moved towards noise by `timestep_shift`."""
    return _shifted(config, jax.random.uniform(key, (count,)), total)


def _shifted(config: LossConfig, share: Float[Array, "b"], total: int) -> Int[Array, "b"]:
    share = config.timestep_shift * share / (1 + (config.timestep_shift - 1) * share)
    return jnp.minimum(share * total, total - 1).astype(jnp.int32)


def drawn_noise(config: LossConfig, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "b h w c"]:
    """Gaussian noise of deviation 1 in every token, and of `offset_noise` for all tokens of a channel together."""
    noise = jax.random.normal(key, shape)
    if config.offset_noise:
        offset = jax.random.normal(jax.random.fold_in(key, 1), (shape[0], 1, 1, shape[-1]))
        noise += config.offset_noise * offset
    return noise


def own_noise(
    config: LossConfig,
    alphas_cumprod: Float[np.ndarray, "t"],
    restore: Callable[[Float[Array, "b h w c"], Int[Array, "b"]], Float[Array, "b h w c"]],
    clean: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    timesteps: Int[Array, "b"],
    key: Key[Array, ""],
) -> Float[Array, "b h w c"]:
    """Noise that holds the model's own errors: of `config.rollout` of the samples that which, added to their clean
    latents, gives what a step of DDIM from a noisier timestep makes of the model's prediction there.

    A sampler's noisy latents hold what was predicted before, errors included, those of training hold the truth
    ("exposure bias", arXiv 2308.15321, which scales noise in sampling instead). The noisier timestep lies anywhere
    above, by the same shift.
    restore: the clean latents predicted of noisy ones at timesteps. No gradient flows through it.
    """
    # Choice: one step of the last weights, without guidance. The squared error's best answer is then what the first
    # prediction said, however much noise has gone since: without a texture loss that asks for patterns, pictures become
    # duller.
    draw, choose = jax.random.split(key)
    total = len(alphas_cumprod)
    quantile = timesteps / total
    quantile = quantile / (config.timestep_shift - (config.timestep_shift - 1) * quantile)
    quantile += (1 - quantile) * jax.random.uniform(draw, quantile.shape)
    before = jnp.maximum(_shifted(config, quantile, total), timesteps)
    error = restore(add_noise(alphas_cumprod, clean, noise, before), before) - clean
    # What is left of the prediction's error in the noise: DDIM's step, solved for it.
    signal = jnp.asarray(np.sqrt(alphas_cumprod / (1.0 - alphas_cumprod)), jnp.float32)
    kept = (signal[timesteps] - signal[before]) * jax.random.bernoulli(choose, config.rollout, quantile.shape)
    return jax.lax.stop_gradient(noise + kept[:, None, None, None] * error)


def dropped(config: LossConfig, key: Key[Array, ""], count: int) -> tuple[Bool[Array, "b"], Bool[Array, "b"]]:
    """Whose text and whose assets the denoiser does not see: disjoint shares of the samples, by one draw each."""
    draw = jax.random.uniform(key, (count,))
    both, text = config.drop_both, config.drop_both + config.drop_text
    return draw < text, (draw < both) | ((draw >= text) & (draw < text + config.drop_reference))
