"""The UNet of both roles, with the structure and the names of diffusers' UNet2DConditionModel.

As reference it EMITS the keys and values of its self-attention layers, as denoiser it CONSUMES them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Num

from fcjax.models.attention import Correspondence, KeyValue, SpatialTransformer
from fcjax.models.layers import (
    FLOAT32,
    Conv,
    Downsample,
    Dtype,
    GroupNorm,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    timestep_features,
)
from fcjax.models.layout import GRID, lay_out
from fcjax.network_config import CROSS_ATTENTION_DOWN, CROSS_ATTENTION_UP, UNetConfig

CONV_IN = "conv_in"
# The name, for policies of rematerialisation, of what resnets and attentions hand on.
LAYER_OUTPUT = "layer_output"

# What a self-attention layer is told: the keywords of `TransformerBlock`.
Instructions = dict[str, Any]


class Block(nn.Module):
    """One block: resnets with their attentions, then the change of resolution. `kind`: "down", "mid" or "up".

    The up path takes its skips from the end of `skips`, the down path appends to it; neither changes the argument.
    Returns (output, skips, emitted); output is None where a layer was told to stop.
    """

    config: UNetConfig
    kind: str
    level: int
    layers: int
    attention: bool
    resample: bool
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b t"],
        text: Float[Array, "b k e"],
        skips: tuple[Array, ...],
        instructions: Sequence[Instructions],
    ) -> tuple[Array | None, tuple[Array, ...], list[KeyValue | None]]:
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = config.block_out_channels[self.level]
        emitted = []

        def resnet(grid: Array, index: int) -> Array:
            block = ResnetBlock(width, config.norm_num_groups, config.norm_eps, name=f"resnets_{index}", **dtypes)
            return checkpoint_name(block(grid, time), LAYER_OUTPUT)

        if self.kind == "mid":
            x = resnet(x, 0)
        for index in range(self.layers):
            if self.kind == "up":
                x, skips = jnp.concatenate([x, skips[-1]], axis=-1), skips[:-1]
            if self.kind != "mid":
                x = resnet(x, index)
            if self.attention:
                y, keys_values = SpatialTransformer(
                    config.heads(self.level),
                    config.ff_mult,
                    config.norm_num_groups,
                    config.use_linear_projection,
                    name=f"attentions_{index}",
                    **dtypes,
                )(x, text, **instructions[index])
                emitted.append(keys_values)
                if y is None:
                    return None, skips, emitted
                x = checkpoint_name(y, LAYER_OUTPUT)
            if self.kind == "down":
                skips = (*skips, x)
        if self.kind == "mid":
            x = resnet(x, 1)
        elif self.kind == "down" and self.resample:
            x = Downsample(width, name="downsamplers_0", **dtypes)(x)
            skips = (*skips, x)
        elif self.kind == "up" and self.resample:
            x = Upsample(width, name="upsamplers_0", **dtypes)(x)
        return x, skips, emitted


class UNet(nn.Module):
    """Predicts from a noisy sample, its timestep and text; emits or consumes self-attention keys and values."""

    config: UNetConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Num[Array, "b"],
        text: Float[Array, "b k e"],
        *,
        reference: Sequence[KeyValue] | None = None,
        reference_mask: Sequence[Bool[Array, "b _"]] | None = None,
        bound: Mapping[str, Any] | None = None,
        corresponding: Mapping[int, Correspondence] | None = None,
        residuals: Sequence[Float[Array, "b _ _ _"]] = (),
        emit: bool = False,
    ) -> Float[Array, "b h w out"] | tuple[KeyValue | None, ...]:
        """The prediction in float32; with `emit` instead the keys and values of every self-attention layer.

        reference, reference_mask: per self-attention layer in forward order, what is put behind the layer's own keys
          and values, and which of it may be seen (None: all).
        bound: per block name ("down_blocks_0", "mid_block", ...) what is added to the keys and to the values of the
          block's self-attention layers, (b, h w, width of the block) each; under "conv_in" a grid that is added to
          the first convolution's output.
        corresponding: per level, which own keys and values of its self-attention layers give way to another row's.
        residuals: what a ControlNet adds to every skip in forward order and, last, to the middle.
        emit: stop at the last self-attention's keys and values; the rest of the UNet is not computed.
        """
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        _check_grid(sample, config)
        instructions = _instructions(config, reference, reference_mask, bound or {}, corresponding or {}, emit)
        text = text.astype(self.dtype)
        x, time = begin(config, sample, timesteps, (bound or {}).get(CONV_IN), dtypes)
        skips: tuple[Array, ...] = (x,)
        emitted: list[KeyValue | None] = []
        for name, kind, level, layers, attention, resample in blocks(config):
            block = Block(config, kind, level, layers, attention, resample, name=name, **dtypes)
            y, skips, keys_values = block(x, time, text, skips, instructions.get(name, ()))
            emitted += keys_values
            if y is None:
                return tuple(emitted)
            if kind == "mid" and residuals:
                *others, middle = residuals
                y, skips = y + middle, tuple(skip + other for skip, other in zip(skips, others, strict=True))
            x = lay_out(y, *GRID)
        x = nn.silu(GroupNorm(config.norm_num_groups, config.norm_eps, name="conv_norm_out", **dtypes)(x))
        return Conv(config.out_channels, name="conv_out", **dtypes)(x).astype(FLOAT32)


def begin(
    config: UNetConfig,
    sample: Float[Array, "b h w c"],
    timesteps: Num[Array, "b"],
    added: Float[Array, "b h w c2"] | None,
    dtypes: Mapping[str, Dtype],
) -> tuple[Float[Array, "b h w c2"], Float[Array, "b t"]]:
    """The first convolution's output with `added` to it, and the timesteps' embedding; layers of the calling module."""
    time = timestep_features(timesteps, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
    time = TimestepEmbedding(4 * config.block_out_channels[0], name="time_embedding", **dtypes)(time)
    x = Conv(config.block_out_channels[0], name="conv_in", **dtypes)(sample)
    if added is not None:
        x += added.astype(x.dtype)
    return lay_out(x, *GRID), time


def blocks(config: UNetConfig) -> list[tuple[str, str, int, int, bool, bool]]:
    """(name, kind, level, layers, has attention, changes resolution) of every block in forward order."""
    last = config.levels - 1
    down = [
        (f"down_blocks_{level}", "down", level, config.layers(level), kind == CROSS_ATTENTION_DOWN, level < last)
        for level, kind in enumerate(config.down_block_types)
    ]
    up = [
        (
            f"up_blocks_{index}",
            "up",
            last - index,
            config.layers(last - index) + 1,
            kind == CROSS_ATTENTION_UP,
            index < last,
        )
        for index, kind in enumerate(config.up_block_types)
    ]
    return [*down, ("mid_block", "mid", last, 1, True, False), *up]


def _check_grid(sample: Array, config: UNetConfig) -> None:
    factor = 2 ** (config.levels - 1)
    if sample.ndim != 4 or sample.shape[1] % factor or sample.shape[2] % factor:
        raise ValueError(
            f"the UNet needs a sample (batch, height, width, channels) with height and width multiples of {factor}, "
            f"got {sample.shape}"
        )
    if sample.shape[-1] != config.in_channels:
        raise ValueError(f"the UNet's conv_in takes {config.in_channels} channels, got a sample {sample.shape}")


def _instructions(
    config: UNetConfig,
    reference: Sequence[KeyValue] | None,
    mask: Sequence[Array] | None,
    bound: Mapping[str, Any],
    corresponding: Mapping[int, Correspondence],
    emit: bool,
) -> dict[str, list[Instructions]]:
    """Per block name, what each of its self-attention layers is told."""
    total = len(config.attention_levels)
    for name, given in (("reference", reference), ("reference_mask", mask)):
        if given is not None and len(given) != total:
            raise ValueError(f"{name} must have one entry for each of {total} self-attention layers, got {len(given)}")
    names = [name for name, _, _ in config.attention_blocks]
    unknown = sorted(set(bound) - {*names, CONV_IN})
    if unknown:
        raise ValueError(f"bound names {', '.join(unknown)}, which have no self-attention; those that have: {names}")
    told: dict[str, list[Instructions]] = {name: [] for name in names}
    layer = 0
    for name, level, layers in config.attention_blocks:
        for _ in range(layers):
            told[name].append(
                {
                    "bound": bound.get(name),
                    "injected": None if reference is None else reference[layer],
                    "injected_mask": None if mask is None else mask[layer],
                    "corresponding": corresponding.get(level),
                    "emit": emit,
                    "stop": emit and layer == total - 1,
                }
            )
            layer += 1
    return told
