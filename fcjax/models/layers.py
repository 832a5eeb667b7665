"""Layers shared by the VAE, the text encoder and the UNet. Submodules bear diffusers' names, so keys convert by rule.

Computation runs in `dtype`, parameters are kept in `param_dtype`, statistics of norms are float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError
from jaxtyping import Array, Float, Int, Num

from fcjax.models import layout
from fcjax.models.convolution import conv2d

Dtype = Any
FLOAT32 = jnp.float32


def parameter(module: Any, name: str, *shape: int) -> Array | np.ndarray:
    """A module's parameter in its `param_dtype`, as it is given; 0 where Flax asks for one, as only its shape counts.

    How training starts is one table in models/parameters.py. To hold a shape against its initialiser's, as Flax's
    `param` does, means to trace that each time. Flax's ScopeParamShapeError for another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, nn.initializers.zeros, shape, module.param_dtype)
    value = module.get_variable("params", name)
    if value.shape != shape:
        raise ScopeParamShapeError(name, "/".join(module.path), value.shape, shape)
    return value


class Dense(nn.Module):
    """y = x kernel + bias over the last axis."""

    features: int
    use_bias: bool = True
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch features"]:
        kernel = parameter(self, "kernel", x.shape[-1], self.features)
        # One matrix product over all tokens: CPU's product with two batch axes is slower, backward above all. On a mesh
        # the axes stay apart, as each may be split.
        tokens = x.astype(self.dtype) if layout.is_set() else x.astype(self.dtype).reshape(-1, x.shape[-1])
        y = jnp.dot(tokens, kernel.astype(self.dtype)).reshape(*x.shape[:-1], self.features)
        if self.use_bias:
            y += parameter(self, "bias", self.features).astype(self.dtype)
        return y


class Conv(nn.Module):
    """A 2-D convolution with a square kernel (HWIO). `padding` is symmetric, or ((top, bottom), (left, right))."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | tuple[tuple[int, int], tuple[int, int]] | None = None
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        kernel = parameter(self, "kernel", self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        bias = parameter(self, "bias", self.features)
        padding = self.kernel_size // 2 if self.padding is None else self.padding
        y = conv2d(x.astype(self.dtype), jnp.asarray(kernel, self.dtype), stride=self.stride, padding=padding)
        return y + bias.astype(self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation over the grid and c / num_groups channels, computed in float32, returned in `dtype`."""

    num_groups: int
    epsilon: float
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b *grid c"]) -> Float[Array, "b *grid c"]:
        batch, channels = x.shape[0], x.shape[-1]
        scale = parameter(self, "scale", channels).astype(FLOAT32)
        bias = parameter(self, "bias", channels).astype(FLOAT32)
        group = channels // self.num_groups
        # b t g c, t the grid's tokens and c the channels of a group
        grouped = x.astype(FLOAT32).reshape(batch, -1, self.num_groups, group)
        mean = jnp.mean(grouped, axis=(1, 3), keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axis=(1, 3), keepdims=True)
        factor = jax.lax.rsqrt(variance + self.epsilon) * scale.reshape(self.num_groups, group)
        y = grouped * factor + (bias.reshape(self.num_groups, group) - mean * factor)
        return y.reshape(x.shape).astype(self.dtype)


class LayerNorm(nn.Module):
    """Normalisation over the last axis, computed in float32, returned in `dtype`."""

    epsilon: float = 1e-5
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        scale = parameter(self, "scale", x.shape[-1]).astype(FLOAT32)
        bias = parameter(self, "bias", x.shape[-1]).astype(FLOAT32)
        centred = x.astype(FLOAT32)
        centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


class Embedding(nn.Module):
    """Rows of a table by index."""

    num_embeddings: int
    features: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        table = parameter(self, "embedding", self.num_embeddings, self.features)
        return jnp.take(table, ids, axis=0).astype(self.dtype)


def timestep_features(
    timesteps: Num[Array, "b"], channels: int, flip_sin_to_cos: bool, freq_shift: int
) -> Float[Array, "b channels"]:
    """Sinusoidal features of timesteps in float32, as DDPM's with base 10000 (diffusers' get_timestep_embedding)."""
    half = channels // 2
    exponent = -jnp.log(10000.0) * jnp.arange(half, dtype=FLOAT32) / (half - freq_shift)
    angles = timesteps.astype(FLOAT32)[:, None] * jnp.exp(exponent)
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    features = jnp.concatenate(parts, axis=-1)
    return jnp.pad(features, ((0, 0), (0, channels % 2)))


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron over timestep features."""

    features: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b features"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.silu(Dense(self.features, name="linear_1", **dtypes)(x))
        return Dense(self.features, name="linear_2", **dtypes)(x)


class ResnetBlock(nn.Module):
    """norm, silu, conv, (+ time), norm, silu, conv, + shortcut. The VAE's blocks have no time."""

    features: int
    num_groups: int
    epsilon: float
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h w features"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = nn.silu(GroupNorm(self.num_groups, self.epsilon, name="norm1", **dtypes)(x))
        y = Conv(self.features, name="conv1", **dtypes)(y)
        if time is not None:
            y += Dense(self.features, name="time_emb_proj", **dtypes)(nn.silu(time))[:, None, None, :]
        y = nn.silu(GroupNorm(self.num_groups, self.epsilon, name="norm2", **dtypes)(y))
        y = Conv(self.features, name="conv2", **dtypes)(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel_size=1, name="conv_shortcut", **dtypes)(x)
        return x + y


class Downsample(nn.Module):
    """A convolution of stride 2. The VAE pads below and to the right alone, the UNet on every side."""

    features: int
    padding: int | tuple[tuple[int, int], tuple[int, int]] = 1
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Conv(self.features, stride=2, padding=self.padding, name="conv", **dtypes)(x)


class Upsample(nn.Module):
    """Each pixel doubled along both sides, then a convolution."""

    features: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        batch, height, width, channels = x.shape
        doubled = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Conv(self.features, name="conv", **dtypes)(doubled.reshape(batch, 2 * height, 2 * width, channels))
