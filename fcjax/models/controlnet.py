"""The branch that tells a UNet of a grid, with the structure and the names of diffusers' ControlNetModel."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Num

from fcjax.models.layers import FLOAT32, Conv, Dtype
from fcjax.models.layout import GRID, lay_out
from fcjax.models.unet import Block, begin, blocks
from fcjax.network_config import ControlNetConfig


class _ConditioningEmbedding(nn.Module):
    config: ControlNetConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, grid: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        [width] = self.config.conditioning_embedding_out_channels
        x = nn.silu(Conv(width, name="conv_in", **dtypes)(grid))
        return Conv(self.config.block_out_channels[0], name="conv_out", **dtypes)(x)


class ControlNet(nn.Module):
    """What is to be added to the skips and to the middle of a UNet like it."""

    config: ControlNetConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Num[Array, "b"],
        text: Float[Array, "b k e"],
        grid: Float[Array, "b h w c2"],
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """For every skip in forward order, then for the middle. grid: of the sample's size."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if grid.shape[:3] != sample.shape[:3] or grid.shape[3] != self.config.conditioning_channels:
            expected = (*sample.shape[:3], self.config.conditioning_channels)
            raise ValueError(f"the ControlNet takes a grid {expected} beside a sample {sample.shape}, got {grid.shape}")
        seen = _ConditioningEmbedding(self.config, name="controlnet_cond_embedding", **dtypes)(grid)
        unet, text = self.config.unet, text.astype(self.dtype)
        x, time = begin(unet, sample, timesteps, seen, dtypes)
        skips: tuple[Array, ...] = (x,)
        for name, kind, level, layers, attention, resample in blocks(unet):
            if kind != "up":
                block = Block(unet, kind, level, layers, attention, resample, name=name, **dtypes)
                x, skips, _ = block(x, time, text, skips, [{}] * layers)
                assert x is not None
                x = lay_out(x, *GRID)
        places = [f"controlnet_down_blocks_{number}" for number in range(len(skips))]
        return tuple(
            Conv(one.shape[-1], kernel_size=1, name=place, **dtypes)(one)
            for place, one in zip((*places, "controlnet_mid_block"), (*skips, x), strict=True)
        )
