"""What a training step draws at random: noise levels, noise, drop-outs, and noise that holds the model's own errors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from fcjax.config import DiffusionConfig
from fcjax.diffusion import add_noise, make_alphas_cumprod, to_clean, to_noise
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
    diffusion: DiffusionConfig,
    predict: Callable[[Float[Array, "b h w c"], Int[Array, "b"]], Float[Array, "b h w c"]],
    clean: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    timesteps: Int[Array, "b"],
    key: Key[Array, ""],
) -> Float[Array, "b h w c"]:
    """The noise, in `config.rollout` of the samples replaced by what leads from clean latents to sampling's own.

    Noisy latents of a sampler hold what it predicted before, errors included; those of training hold the truth
    ("exposure bias", arXiv 2308.15321). Here the model predicts at a noisier timestep, drawn between this one and the
    last by the same shift, and a step of DDIM leads from there to `timesteps`. The errors are then part of the noise.
    predict: what the network says of noisy latents at timesteps. No gradient flows through it.
    """
    schedule = make_alphas_cumprod(diffusion)
    draw, choose = jax.random.split(key)
    share = timesteps / len(schedule)
    share = share / (config.timestep_shift - (config.timestep_shift - 1) * share)
    share += (1 - share) * jax.random.uniform(draw, share.shape)
    before = jnp.maximum(_shifted(config, share, len(schedule)), timesteps)
    noisy = add_noise(schedule, clean, noise, before)
    restored = to_clean(diffusion.prediction_type, schedule, predict(noisy, before), noisy, before)
    seen = to_noise(schedule, restored, noisy, before)
    own = to_noise(schedule, clean, add_noise(schedule, restored, seen, timesteps), timesteps)
    chosen = jax.random.bernoulli(choose, config.rollout, share.shape)
    return jnp.where(chosen[:, None, None, None], jax.lax.stop_gradient(own), noise)


def dropped(config: LossConfig, key: Key[Array, ""], count: int) -> tuple[Bool[Array, "b"], Bool[Array, "b"]]:
    """Whose text and whose assets the denoiser does not see: disjoint shares of the samples, by one draw each."""
    draw = jax.random.uniform(key, (count,))
    both, text = config.drop_both, config.drop_both + config.drop_text
    return draw < text, (draw < both) | ((draw >= text) & (draw < text + config.drop_reference))
