"""A small composer's inputs, and its two UNets run on them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcjax.config import ComposerConfig
from fcjax.models import composer
from tests import oracles


def asset_masks(config: ComposerConfig, batch: int = 2) -> np.ndarray:
    """Two assets, the second one small and only in the first sample; the rest is padding."""
    masks = np.zeros((batch, config.max_assets, config.height, config.width), np.float32)
    masks[:, 0, 4:26, 3:15] = 1
    masks[0, 1, 17:27, 18:29] = 1
    return masks


def inputs_of(config: ComposerConfig, batch: int = 2) -> dict[str, Any]:
    height, width, latent = config.latent_height, config.latent_width, config.vae.latent_channels
    spans = np.zeros((batch, config.max_assets, 9), np.float32)
    spans[:, 0, 1:4], spans[:, 1, 6:8] = 1 / 3, 1 / 2
    return {
        "canvas": oracles.normal(1, batch, height, width, latent),
        "text": oracles.normal(2, batch, 9, config.text_encoder.hidden_size),
        "spans": jnp.asarray(spans),
        "masks": jnp.asarray(asset_masks(config, batch)),
        "noisy": oracles.normal(3, batch, height, width, latent),
        "timesteps": jnp.asarray([700.0, 20.0])[:batch],
        "condition": oracles.normal(4, batch, height, width, config.condition_channels),
    }


def features_of(params, config: ComposerConfig, inputs: dict[str, Any]) -> composer.ReferenceFeatures:
    names = ("canvas", "text", "spans", "masks")
    return composer.appearance_features(params, config, *(inputs[name] for name in names))


def denoised(params, config: ComposerConfig, inputs: dict[str, Any], features=None) -> jax.Array:
    names = ("noisy", "timesteps", "text", "condition")
    return composer.denoise(params, config, *(inputs[name] for name in names), features)


def composing(config: ComposerConfig):
    return jax.jit(lambda params, inputs: denoised(params, config, inputs, features_of(params, config, inputs)))
