"""Self-attention as the planner counts it, and what flash kernels take that XLA's estimates leave out."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fcjax.config import ComposerConfig
from fcjax.hardware import Hardware
from fcjax.models import attend
from fcjax.models.attend import attention_kernel
from fcjax.network_config import UNetConfig

FORWARD, BACKWARD = (0,), (1,)
"""Passes, to be joined: ones that a step runs for each layer."""
# Products of each. Backward: the scores, their gradient, and those of queries, keys and values.
_PRODUCTS = 2, 5
# Scores of the blocks whose cycles `Hardware.attention_cycles` has, of each pass the larger and the smaller.
_MEASURED = (768 * 3072, 768 * 1536), (1024 * 2048, 768 * 1536)


@dataclasses.dataclass(frozen=True)
class SelfAttention:
    """One self-attention layer of one sample."""

    queries: int
    keys: int
    heads: int
    size: int

    @property
    def product(self) -> float:
        """FLOPs of one of its products."""
        return 2.0 * self.queries * self.keys * self.heads * self.size


def unet_layers(model: ComposerConfig, unet: UNetConfig, levels: Sequence[int], times: int = 1) -> list[SelfAttention]:
    """A UNet's self-attention layers on those levels, with keys of so many grids."""
    found = []
    for level in levels:
        tokens, heads = (model.latent_height >> level) * (model.latent_width >> level), unet.heads(level)
        found.append(SelfAttention(tokens, times * tokens, heads, unet.block_out_channels[level] // heads))
    return found


def self_attention(model: ComposerConfig) -> list[SelfAttention]:
    """Self-attention of the denoiser and of what reads the canvas; the reference UNet stops before its last."""
    layers = functools.partial(unet_layers, model)
    if (reference := model.reference_unet) is not None:
        levels = model.unet.attention_levels
        return [*layers(model.unet, levels, 2), *layers(reference, levels[:-1])]
    denoiser = layers(model.unet, model.unet.attention_levels)
    if model.controlnet is not None:
        unet = model.controlnet.unet
        blocks = [(level, count) for name, level, count in unet.attention_blocks if not name.startswith("up")]
        return [*denoiser, *layers(unet, [level for level, count in blocks for _ in range(count)])]
    encoder = model.image_encoder
    assert encoder is not None
    height, width = (model.height, model.width) if model.canvas_in_pixels else (model.latent_height, model.latent_width)
    tokens = (height // encoder.patch_size) * (width // encoder.patch_size) + 1
    heads, size = encoder.num_attention_heads, encoder.hidden_size // encoder.num_attention_heads
    return [*denoiser, *[SelfAttention(tokens, tokens, heads, size)] * encoder.num_hidden_layers]


@dataclasses.dataclass(frozen=True)
class KernelCost:
    """What attention kernels take that XLA's estimate leaves out."""

    flops: float = 0.0
    seconds: float = 0.0

    def times(self, count: float) -> "KernelCost":
        return KernelCost(self.flops * count, self.seconds * count)


def kernel_cost(layers: list[SelfAttention], hardware: Hardware, passes: Sequence[int]) -> KernelCost:
    """Of one sample, on a TPU. passes: those that run for a layer, of FORWARD and BACKWARD."""
    if hardware.platform != "tpu":
        return KernelCost()
    flops, seconds = 0.0, 0.0
    with attention_kernel(hardware.attention):
        for layer in layers:
            query, key = (
                jax.ShapeDtypeStruct((1, tokens, layer.heads, layer.size), jnp.bfloat16)
                for tokens in (layer.queries, layer.keys)
            )
            if attend.kernel_of(query, key, jax.ShapeDtypeStruct(key.shape[:2], bool)) != hardware.attention:
                continue
            tiles = -(-(layer.size + 1) // hardware.tile)
            blocks = attend.splash_blocks(layer.queries, layer.keys, layer.size + 1)
            for one in passes:
                block_queries, block_keys, _ = blocks[one]
                count = layer.heads * (layer.queries // block_queries) * (layer.keys // block_keys)
                cycles = count * tiles * _cycles(hardware, one, block_queries * block_keys)
                # Queries, outputs or their gradients once; keys and values once for every block of queries.
                tokens = _PRODUCTS[one] * layer.queries + 2 * layer.keys * (layer.queries // block_queries)
                moved = 2.0 * layer.heads * tiles * hardware.tile * tokens
                flops += _PRODUCTS[one] * tiles * hardware.tile / layer.size * layer.product
                seconds += max(cycles / hardware.clock / hardware.cores, moved / hardware.bandwidth)
    return KernelCost(flops, seconds)


def _cycles(hardware: Hardware, which: int, scores: int) -> float:
    """Of a core for one block, on the line through those that were measured."""
    (large, small), (most, least) = hardware.attention_cycles[which], _MEASURED[which]
    return small + (large - small) * (scores - least) / (most - least)
