"""The texture loss: a picture's local distribution of colours and edges, wherever in a window they lie."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

WINDOW = 8
"""Latent tokens on a side of the windows within which places do not count."""
# Directions drawn anew at every call: half are of a token alone, half of it and the eight around.
_DIRECTIONS = 16
# Larger than any projected latent, so that sorting keeps foreground and background apart.
_APART = 1000.0


def texture_loss(
    restored: Float[Array, "b h w c"],
    clean: Float[Array, "b h w c"],
    foreground: Bool[Array, "b h w"],
    channel_weights: Float[np.ndarray, "c"] | float,
    emphasis: float,
    key: Key[Array, ""],
) -> Float[Array, "b"]:
    """Squared sliced Wasserstein distance (arXiv 2006.07229) of each sample, averaged over windows at random places
    (which go on at the opposite edge).

    Of latents projected on random directions, the foreground's and the background's of a window apart. A mean squared
    error asks for the average of all textures that may be, which is a blur where their phase is not known; this asks
    for any texture of the right colours, and is never more than the squared error where emphasis is 0.
    channel_weights, emphasis: what an error in each channel counts, and one in the foreground `1 + emphasis` times.
    ValueError where latents are smaller than a window.
    """
    size = clean.shape[1:3]
    if min(size) < WINDOW:
        raise ValueError(
            f"loss.texture needs latents of at least {WINDOW} tokens a side, got {size[0]}x{size[1]}: leave it at 0, "
            "or train larger pictures"
        )
    draw, rows, columns = jax.random.split(key, 3)
    channels = clean.shape[-1]
    filters = jax.random.normal(draw, (3, 3, channels, _DIRECTIONS))
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    filters *= jnp.where(jnp.arange(_DIRECTIONS) % 2, 1.0, centre)
    filters /= jnp.sqrt(jnp.sum(jnp.square(filters), axis=(0, 1, 2)))
    shift = tuple(jax.random.randint(k, (), 0, n) for k, n in zip((rows, columns), size, strict=True))
    across = tuple(n // WINDOW for n in size)

    def windows(array: Float[Array, "b h w d"]) -> Float[Array, "b n d t"]:
        """The tokens of every window, last. What fills no window at this draw's places is left out."""
        array = jnp.roll(array, shift, axis=(1, 2))[:, : across[0] * WINDOW, : across[1] * WINDOW]
        batch, _, _, depth = array.shape
        array = array.reshape(batch, across[0], WINDOW, across[1], WINDOW, depth)
        return array.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, depth, WINDOW**2)

    def projected(latents: Float[Array, "b h w c"]) -> Float[Array, "b n d t"]:
        scaled = latents.astype(jnp.float32) * jnp.sqrt(jnp.asarray(channel_weights, jnp.float32))
        dimensions = ("NHWC", "HWIO", "NHWC")
        values = jax.lax.conv_general_dilated(
            scaled, filters, (1, 1), "SAME", dimension_numbers=dimensions, precision=jax.lax.Precision.HIGHEST
        )
        return jnp.sort(windows(values) + _APART * inside, axis=-1)

    inside = windows(foreground[..., None].astype(jnp.float32))
    counts = 1.0 + emphasis * jnp.sort(inside, axis=-1)
    counts /= jnp.mean(counts)
    return jnp.mean(counts * jnp.square(projected(restored) - projected(clean)), axis=(1, 2, 3))
