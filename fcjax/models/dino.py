"""An image encoder with the structure and the names of transformers' Dinov2Model (arXiv 2304.07193), without SwiGLU."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fcjax.models.attend import attend, split_heads
from fcjax.models.layers import FLOAT32, Conv, Dense, Dtype, LayerNorm, parameter
from fcjax.network_config import ImageEncoderConfig

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels in [0, 1] that DINOv2 was trained on (ImageNet's)."""
_CUBIC = -0.75  # torch's; jax.image.resize has -0.5


class _Embeddings(nn.Module):
    config: ImageEncoderConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, grid: Float[Array, "b h w c"]) -> Float[Array, "b k e"]:
        config = self.config
        side, width = config.image_size // config.patch_size, config.hidden_size
        patches = _Patches(config, name="patch_embeddings", dtype=self.dtype, param_dtype=self.param_dtype)(grid)
        batch, height, across, _ = patches.shape
        first = parameter(self, "cls_token", 1, 1, width)
        places = parameter(self, "position_embeddings", 1, side * side + 1, width)
        first, places = first.astype(FLOAT32), places.astype(FLOAT32)
        square = places[:, 1:].reshape(side, side, width)
        down, right = cubic_weights(side, height), cubic_weights(side, across)
        resized = jnp.einsum("yi,xj,ijc->yxc", down, right, square).reshape(1, -1, width)
        tokens = patches.reshape(batch, -1, width) + resized.astype(self.dtype)
        first = jnp.broadcast_to((first + places[:, :1]).astype(self.dtype), (batch, 1, width))
        return jnp.concatenate([first, tokens], axis=1)


class _Patches(nn.Module):
    config: ImageEncoderConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, grid: Float[Array, "b h w c"]) -> Float[Array, "b y x e"]:
        size = self.config.patch_size
        if min(grid.shape[1:3]) < size or grid.shape[3] != self.config.num_channels:
            raise ValueError(
                f"the image encoder reads grids (b, h, w, {self.config.num_channels}) of {size}x{size} at least, "
                f"got {grid.shape}"
            )
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Conv(self.config.hidden_size, size, size, 0, name="projection", **dtypes)(grid)


class _Attention(nn.Module):
    heads: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        projections = [Dense(x.shape[-1], name=name, **dtypes)(x) for name in ("query", "key", "value")]
        return attend(*(split_heads(tokens, self.heads) for tokens in projections)).reshape(x.shape)


class _AttentionOutput(nn.Module):
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        return Dense(x.shape[-1], name="dense", dtype=self.dtype, param_dtype=self.param_dtype)(x)


class _AttentionBlock(nn.Module):
    heads: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return _AttentionOutput(name="output", **dtypes)(_Attention(self.heads, name="attention", **dtypes)(x))


class _MLP(nn.Module):
    ratio: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = nn.gelu(Dense(self.ratio * x.shape[-1], name="fc1", **dtypes)(x), approximate=False)
        return Dense(x.shape[-1], name="fc2", **dtypes)(hidden)


class _Scale(nn.Module):
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        return x * parameter(self, "lambda1", x.shape[-1]).astype(self.dtype)


class _Layer(nn.Module):
    config: ImageEncoderConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for number, block in enumerate(
            (
                _AttentionBlock(config.num_attention_heads, name="attention", **dtypes),
                _MLP(config.mlp_ratio, name="mlp", **dtypes),
            ),
            1,
        ):
            normed = LayerNorm(config.layer_norm_eps, name=f"norm{number}", **dtypes)(x)
            x = x + _Scale(name=f"layer_scale{number}", **dtypes)(block(normed))
        return x


class _Layers(nn.Module):
    config: ImageEncoderConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        for index in range(self.config.num_hidden_layers):
            x = _Layer(self.config, name=f"layer_{index}", dtype=self.dtype, param_dtype=self.param_dtype)(x)
        return x


class ImageEncoder(nn.Module):
    """A grid of pixels (normalised by MEAN and DEVIATION) or latents to tokens: the whole's, then the patches'."""

    config: ImageEncoderConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, grid: Float[Array, "b h w c"]) -> Float[Array, "b k e"]:
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = _Embeddings(config, name="embeddings", **dtypes)(grid)
        x = _Layers(config, name="encoder", **dtypes)(x)
        return LayerNorm(config.layer_norm_eps, name="layernorm", **dtypes)(x)


def cubic_weights(source: int, wanted: int) -> Float[np.ndarray, "wanted source"]:
    """torch's bicubic interpolation of a row of `source` values to `wanted` (align_corners=False, no antialias)."""
    if source == wanted:
        return np.eye(source, dtype=np.float32)
    place = (np.arange(wanted) + 0.5) * source / wanted - 0.5
    low = np.floor(place).astype(int)
    weights = np.zeros((wanted, source), np.float32)
    for shift in range(-1, 3):
        far = np.abs(place - (low + shift))
        near = (_CUBIC + 2) * far**3 - (_CUBIC + 3) * far**2 + 1
        outer = _CUBIC * (far**3 - 5 * far**2 + 8 * far - 4)
        np.add.at(
            weights,
            (np.arange(wanted), np.clip(low + shift, 0, source - 1)),
            np.where(far <= 1, near, outer).astype(np.float32),
        )
    return weights
