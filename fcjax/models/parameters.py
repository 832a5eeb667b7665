"""The composer's parameter tree: its shapes without computing anything, and how training from nothing starts."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from fcjax import trees
from fcjax.config import ComposerConfig
from fcjax.models.binder import Binder
from fcjax.models.layers import Dtype
from fcjax.models.text import TextEncoder
from fcjax.models.unet import UNet
from fcjax.models.vae import VAE

Parameters = dict[str, Any]

# Choice: a path that adds to a residual, and the UNets' output, start at zero (as in ADM, arXiv 2105.05233), which a
# model trained from nothing needs to get going; the binder starts at zero so that it starts as no binding.
INITIALISERS: tuple[tuple[str, str], ...] = (
    (r"binder/.*/linear_2/kernel|binder/conv_in/kernel", "zeros"),
    (r"(reference_)?unet/.*/(conv2|proj_out)/kernel|(reference_)?unet/conv_out/kernel", "zeros"),
    (r".*/kernel", "lecun_normal"),
    (r".*/bias", "zeros"),
    (r".*/scale", "ones"),
    (r".*/embedding", "embedding"),
)


def abstract_parameters(config: ComposerConfig, dtype: Dtype = jnp.float32) -> Parameters:
    """ShapeDtypeStructs of {"unet", "reference_unet", "vae", "text_encoder", "binder"}; binder is {} for "none"."""
    batch, key = 1, jax.random.key(0)
    text = jnp.zeros((batch, 1, config.unet.cross_attention_dim))
    # Any grid gives the same parameters: take the smallest that the levels allow.
    side = 2 ** (config.unet.levels - 1)
    assets = config.max_assets
    masks = tuple(jnp.zeros((batch, assets, side >> level, side >> level)) for level in range(config.unet.levels))

    def initialise(module: Any, *inputs: Any) -> Parameters:
        return dict(jax.eval_shape(module.init, key, *inputs).get("params", {}))

    def unet(unet_config: Any) -> Parameters:
        sample = jnp.zeros((batch, side, side, unet_config.in_channels))
        return initialise(UNet(unet_config, param_dtype=dtype), sample, jnp.zeros((batch,)), text)

    image = jnp.zeros((batch, config.vae.factor, config.vae.factor, config.vae.in_channels))
    return {
        "unet": unet(config.unet),
        "reference_unet": unet(config.reference_unet),
        "vae": initialise(VAE(config.vae, param_dtype=dtype), image),
        "text_encoder": initialise(
            TextEncoder(config.text_encoder, param_dtype=dtype), jnp.zeros((batch, 1), jnp.int32)
        ),
        "binder": initialise(
            Binder(config.binder, config.unet, param_dtype=dtype),
            jnp.zeros((batch, assets, config.text_encoder.hidden_size)),
            masks,
        ),
    }


def init_parameters(config: ComposerConfig, key: Key[Array, ""], dtype: Dtype = jnp.float32) -> Parameters:
    """Parameters to train from nothing, drawn by `INITIALISERS`; each path has its own stream of random numbers.

    Drawn with NumPy from the abstract shapes: a jitted initialisation of the full-size UNet compiles for 15 seconds.
    """
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()

    def draw(path: str, shape: tuple[int, ...], kind: str) -> Array:
        generator = np.random.default_rng([*seed, zlib.crc32(path.encode())])
        if kind == "zeros":
            values = np.zeros(shape, np.float32)
        elif kind == "ones":
            values = np.ones(shape, np.float32)
        elif kind == "embedding":
            values = 0.02 * generator.standard_normal(shape, np.float32)
        else:
            fan_in = int(np.prod(shape[:-1]))
            values = generator.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5)
        return jnp.asarray(values, dtype)

    abstract = abstract_parameters(config, dtype)
    kinds = trees.match_rules(abstract, INITIALISERS)
    # match_rules keeps leaves alone, so that an empty binder has to be put back.
    drawn = trees.map_paths(lambda path, leaf, kind: draw(path, leaf.shape, kind), abstract, kinds)
    return {name: drawn.get(name, {}) for name in abstract}
