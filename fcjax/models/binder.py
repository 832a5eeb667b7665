"""Subject binding: what a phrase adds to the reference keys and values of its asset's tokens."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from fcjax.models.convolution import conv2d
from fcjax.models.layers import FLOAT32, Dense, Dtype, parameter
from fcjax.models.unet import CONV_IN
from fcjax.network_config import BinderConfig, UNetConfig


class _BlockBinder(nn.Module):
    """MLP_l of one UNet block: a phrase's vector to what is added to keys and to values. Its last layer starts at 0."""

    hidden_size: int
    width: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, phrases: Float[Array, "b a e"]) -> tuple[Float[Array, "b a c"], Float[Array, "b a c"]]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = nn.silu(Dense(self.hidden_size, name="linear_1", **dtypes)(phrases))
        # Choice: one MLP per block with an output for keys and one for values, shared by the block's layers.
        both = Dense(2 * self.width, name="linear_2", **dtypes)(hidden)
        key, value = jnp.split(both, 2, axis=-1)
        return key, value


class _ConvInBinder(nn.Module):
    """Paints each asset's mask with its projected phrase vector, behind a convolution that starts at 0.

    The convolution is what widening the reference UNet's conv_in by `hidden_size` input channels would add.
    """

    hidden_size: int
    width: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, phrases: Float[Array, "b a e"], masks: Float[Array, "b a h w"]) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        vectors = Dense(self.hidden_size, name="proj", **dtypes)(phrases)
        painted = jnp.einsum("bahw,bac->bhwc", masks.astype(self.dtype), vectors)
        kernel = parameter(self, "kernel", 3, 3, self.hidden_size, self.width)
        return conv2d(painted, jnp.asarray(kernel, self.dtype), padding=1)


class Binder(nn.Module):
    """Phrase vectors and masks to the `bound` argument of the reference UNet; {} for the variant "none"."""

    config: BinderConfig
    unet: UNetConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, phrases: Float[Array, "b a e"], masks: Sequence[Float[Array, "b a _ _"]]) -> dict[str, Any]:
        """phrases: one vector per asset; masks: soft coverage of the tokens of every level, the finest first.

        A token's share of an asset weighs what is added: k'_j = k_j + sum_i mask_i(j) MLP_l(P_i).
        """
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if config.variant == "conv_in":
            width = self.unet.block_out_channels[0]
            paint = _ConvInBinder(config.hidden_size, width, name="conv_in", **dtypes)
            return {CONV_IN: paint(phrases, masks[0])}
        bound = {}
        for name, level in config.blocks(self.unet):
            width = self.unet.block_out_channels[level]
            added = _BlockBinder(config.hidden_size, width, name=name, **dtypes)(phrases)
            tokens = masks[level].reshape(*masks[level].shape[:2], -1).astype(self.dtype)
            bound[name] = tuple(jnp.einsum("bak,bac->bkc", tokens, vectors) for vectors in added)
        return bound
