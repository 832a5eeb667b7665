"""The composer's parameter tree: its shapes without computing anything, and how training from nothing starts."""

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from fcjax import trees
from fcjax.config import ComposerConfig
from fcjax.models.binder import Binder
from fcjax.models.controlnet import ControlNet
from fcjax.models.dino import ImageEncoder
from fcjax.models.layers import Dtype
from fcjax.models.text import TextEncoder
from fcjax.models.unet import UNet
from fcjax.models.vae import VAE
from fcjax.network_config import (
    BinderConfig,
    ControlNetConfig,
    ImageEncoderConfig,
    NetworkConfig,
    UNetConfig,
    VAEConfig,
)

Parameters = dict[str, Any]

# Choice: a path that adds to a residual, and the UNets' output, start at zero (as in ADM, arXiv 2105.05233), which a
# model trained from nothing needs to get going; the binder starts at zero so that it starts as no binding.
INITIALISERS: tuple[tuple[str, str], ...] = (
    (r"binder/.*/linear_2/kernel|binder/conv_in/kernel", "zeros"),
    (r"(unet|reference_unet|controlnet)/.*/(conv2|proj_out)/kernel|(reference_)?unet/conv_out/kernel", "zeros"),
    # As the ControlNet begins (arXiv 2302.05543): it adds nothing.
    (r"controlnet/controlnet_(down_blocks_\d+|mid_block|cond_embedding/conv_out)/kernel", "zeros"),
    (r".*/kernel", "lecun_normal"),
    (r".*/bias", "zeros"),
    (r".*/(scale|lambda1)", "ones"),
    (r".*/(embedding|cls_token|position_embeddings)", "embedding"),
)


def abstract_parameters(config: ComposerConfig, dtype: Dtype = jnp.float32) -> Parameters:
    """ShapeDtypeStructs of `config.networks` and "binder", which is {} for "none"."""
    networks = {name: abstract_part(getattr(config, name), dtype) for name in config.networks}
    return {**networks, "binder": abstract_binder(config.binder, config.unet, dtype)}


def abstract_part(config: NetworkConfig, dtype: Dtype = jnp.float32) -> Parameters:
    """ShapeDtypeStructs of one network by its own config."""
    return jax.tree.map(lambda leaf: leaf, _abstract_part(config, dtype))


@functools.cache
def _abstract_part(config: NetworkConfig, dtype: Dtype) -> Parameters:
    """Traced once for each configuration: for Stable Diffusion's UNet that takes a second or two."""
    if isinstance(config, UNetConfig | ControlNetConfig):
        # Any grid gives the same parameters: take the smallest that the levels allow.
        side = 2 ** (len(config.block_out_channels) - 1)
        sample = jnp.zeros((1, side, side, config.in_channels))
        text = jnp.zeros((1, 1, config.cross_attention_dim))
        if isinstance(config, UNetConfig):
            return _abstract(UNet(config, param_dtype=dtype), sample, jnp.zeros((1,)), text)
        grid = jnp.zeros((1, side, side, config.conditioning_channels))
        return _abstract(ControlNet(config, param_dtype=dtype), sample, jnp.zeros((1,)), text, grid)
    if isinstance(config, ImageEncoderConfig):
        grid = jnp.zeros((1, config.patch_size, config.patch_size, config.num_channels))
        return _abstract(ImageEncoder(config, param_dtype=dtype), grid)
    if isinstance(config, VAEConfig):
        return _abstract(VAE(config, param_dtype=dtype), jnp.zeros((1, config.factor, config.factor, 3)))
    return _abstract(TextEncoder(config, param_dtype=dtype), jnp.zeros((1, 1), jnp.int32))


def abstract_binder(config: BinderConfig, unet: UNetConfig, dtype: Dtype = jnp.float32) -> Parameters:
    """ShapeDtypeStructs of the binder that fits a UNet."""
    side = 2 ** (unet.levels - 1)
    masks = tuple(jnp.zeros((1, 1, side >> level, side >> level)) for level in range(unet.levels))
    return _abstract(Binder(config, unet, param_dtype=dtype), jnp.zeros((1, 1, unet.cross_attention_dim)), masks)


def _abstract(module: nn.Module, *inputs: Any) -> Parameters:
    return dict(jax.eval_shape(module.init, jax.random.key(0), *inputs).get("params", {}))


def init_parameters(
    config: ComposerConfig, key: Key[Array, ""], dtype: Dtype = jnp.float32, parts: Sequence[str] | None = None
) -> Parameters:
    """Parameters to train from nothing, drawn by `INITIALISERS`; each path has its own stream of random numbers.

    parts: the ones to draw; all by default.

    Drawn with NumPy from the abstract shapes (a jitted initialisation of the full-size UNet compiles for 15 seconds),
    and NumPy arrays until they are laid on devices, none of which need have room for all of them.
    """
    abstract = abstract_parameters(config, dtype)
    abstract = {name: abstract[name] for name in parts or abstract}
    # Rules keep leaves alone: the empty binder of the variant "none" has to be put back.
    drawn = _drawn(abstract, key)
    return {name: drawn.get(name, {}) for name in abstract}


def init_binder(config: ComposerConfig, key: Key[Array, ""], dtype: Dtype = jnp.float32) -> Parameters:
    """A binder that adds nothing yet, NumPy arrays, for networks that were trained without one; {} for "none"."""
    return _drawn({"binder": abstract_binder(config.binder, config.unet, dtype)}, key).get("binder", {})


def _drawn(abstract: Parameters, key: Key[Array, ""]) -> Parameters:
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()

    def draw(path: str, leaf: jax.ShapeDtypeStruct, kind: str) -> np.ndarray:
        generator = np.random.default_rng([*seed, zlib.crc32(path.encode())])
        if kind == "zeros":
            values = np.zeros(leaf.shape, np.float32)
        elif kind == "ones":
            values = np.ones(leaf.shape, np.float32)
        elif kind == "embedding":
            values = 0.02 * generator.standard_normal(leaf.shape, np.float32)
        else:
            fan_in = int(np.prod(leaf.shape[:-1]))
            values = generator.standard_normal(leaf.shape, np.float32) * np.float32(fan_in**-0.5)
        return values.astype(leaf.dtype, copy=False)

    return trees.map_paths(draw, abstract, trees.match_rules(abstract, INITIALISERS))
