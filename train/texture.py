"""Losses of windows of latents: their local distribution of colours and edges, wherever it lies, and their means."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

WINDOW = 8
"""Latent tokens on a side of the windows within which places do not count."""
COLOUR_WINDOW = 4
"""The same of the windows whose means count."""
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
    draw, *places = jax.random.split(key, 3)
    channels = clean.shape[-1]
    filters = jax.random.normal(draw, (3, 3, channels, _DIRECTIONS))
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    filters *= jnp.where(jnp.arange(_DIRECTIONS) % 2, 1.0, centre)
    filters /= jnp.sqrt(jnp.sum(jnp.square(filters), axis=(0, 1, 2)))

    def projected(latents: Float[Array, "b h w c"]) -> Float[Array, "b n d t"]:
        scaled = latents.astype(jnp.float32) * jnp.sqrt(jnp.asarray(channel_weights, jnp.float32))
        dimensions = ("NHWC", "HWIO", "NHWC")
        values = jax.lax.conv_general_dilated(
            scaled, filters, (1, 1), "SAME", dimension_numbers=dimensions, precision=jax.lax.Precision.HIGHEST
        )
        return jnp.sort(_windows(values, WINDOW, places) + _APART * inside, axis=-1)

    inside = _windows(foreground[..., None], WINDOW, places)
    counts = 1.0 + emphasis * jnp.sort(inside, axis=-1)
    counts /= jnp.mean(counts)
    return jnp.mean(counts * jnp.square(projected(restored) - projected(clean)), axis=(1, 2, 3))


def colour_loss(
    restored: Float[Array, "b h w c"],
    clean: Float[Array, "b h w c"],
    foreground: Bool[Array, "b h w"],
    channel_weights: Float[np.ndarray, "c"] | float,
    emphasis: float,
    key: Key[Array, ""],
) -> Float[Array, "b"]:
    """Squared error of the mean latents of each sample's windows, foreground and background apart, at random places.

    Patterns and edges have no part in it, as they have in the squared error of tokens; of one error everywhere both are
    the same. Arguments and ValueError as `texture_loss`.
    """
    wrong = restored.astype(jnp.float32) - clean.astype(jnp.float32)
    scaled = jnp.sqrt(jnp.asarray(channel_weights, jnp.float32)) * wrong
    places = jax.random.split(key)
    error, inside = (_windows(array, COLOUR_WINDOW, places) for array in (scaled, foreground[..., None]))
    counts = 1.0 + emphasis * inside
    counts /= jnp.mean(counts)
    total = jnp.zeros(())
    for part in (inside, 1.0 - inside):
        mean = jnp.sum(error * part, axis=-1) / jnp.maximum(jnp.sum(part, axis=-1), 1.0)
        total += jnp.sum(counts * part, axis=-1) * jnp.square(mean)
    return jnp.mean(total, axis=(1, 2)) / COLOUR_WINDOW**2


def _windows(array: Array, side: int, places: Sequence[Key[Array, ""]]) -> Float[Array, "b n d t"]:
    """The tokens of every window, last, of (b, h, w, d). What fills no window at this draw's places is left out."""
    batch, *size, depth = array.shape
    if min(size) < side:
        raise ValueError(
            f"loss.{'texture' if side == WINDOW else 'colour'} needs latents of at least {side} tokens a side, got "
            f"{size[0]}x{size[1]}: leave it at 0, or train larger pictures"
        )
    shift = tuple(jax.random.randint(place, (), 0, length) for place, length in zip(places, size, strict=True))
    down, across = (length // side for length in size)
    array = jnp.roll(array.astype(jnp.float32), shift, axis=(1, 2))[:, : down * side, : across * side]
    array = array.reshape(batch, down, side, across, side, depth)
    return array.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, depth, side**2)
