"""The reading loss: how much of the assets no linear map reads from what the reference UNet hands over."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fcjax.models.composer import ReferenceFeatures

# Of the values' mean variance, added to every direction's: what rounding may have made is not read.
_RIDGE = 1e-4


def reading_loss(
    features: ReferenceFeatures,
    canvas: Float[Array, "b h w c"],
    channel_weights: Float[np.ndarray, "c"] | float,
) -> Float[Array, ""]:
    """The share of the canvas' variance that is left (1 - R squared) by the best linear map of a batch from the values
    of its tokens, weighted by channel and averaged over the layers at the canvas' own size.

    Attention adds values up, so that it can bring to a place no more than they hold: a model whose finest values tell
    no colours draws none, however well it finds the place. Only tokens that may be seen count.
    channel_weights: what an error in each channel counts. ValueError where no layer has as many tokens as the canvas.
    """
    batch, height, width, channels = canvas.shape
    true = canvas.reshape(batch, height * width, channels).astype(jnp.float32)
    weights = jnp.broadcast_to(jnp.asarray(channel_weights, jnp.float32), (channels,))
    left = [
        _unread(value.astype(jnp.float32), true, mask.astype(jnp.float32)[..., None])
        for (_, value), mask in zip(features.layers, features.masks, strict=True)
        if value.shape[1] == height * width
    ]
    if not left:
        raise ValueError(
            f"loss.reading needs self-attention on latents of {height}x{width} tokens, but the UNets' lies on coarser "
            "levels alone: leave it at 0"
        )
    return jnp.sum(weights * jnp.mean(jnp.stack(left), axis=0)) / jnp.sum(weights)


def _unread(
    values: Float[Array, "b n d"], true: Float[Array, "b n c"], seen: Float[Array, "b n 1"]
) -> Float[Array, "c"]:
    """The share of each channel's variance that the best linear map leaves."""
    count = jnp.maximum(jnp.sum(seen), 1.0)

    def centred(array: Float[Array, "b n k"]) -> Float[Array, "b n k"]:
        return (array - jnp.sum(array * seen, axis=(0, 1)) / count) * seen

    def products(first: Float[Array, "b n k"], second: Float[Array, "b n l"]) -> Float[Array, "k l"]:
        return jnp.einsum("bnk,bnl->kl", first, second, precision=jax.lax.Precision.HIGHEST) / count

    values, true = centred(values), centred(true)
    spread = products(values, values)
    spread += (_RIDGE * jnp.trace(spread) / len(spread) + 1e-12) * jnp.eye(len(spread))
    # No gradient flows through the best map: there the error does not change with it.
    best = jax.lax.stop_gradient(jnp.linalg.solve(spread, products(values, true)))
    rest = true - jnp.einsum("bnk,kc->bnc", values, best, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(jnp.square(rest), axis=(0, 1)) / jnp.maximum(jnp.sum(jnp.square(true), axis=(0, 1)), 1e-6)
