"""Attention as the planner counts it, and what flash kernels take that XLA's estimates leave out."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fcjax.config import ComposerConfig
from fcjax.hardware import Hardware
from fcjax.models import attend
from fcjax.models.attend import attention_kernel
from fcjax.models.tpu_attention import LANES, blocks
from fcjax.network_config import UNetConfig

FORWARD, BACKWARD = (0,), (1,)
"""Passes, to be joined: ones that a step runs for each layer."""
# Products of each. Backward: the scores, their gradient, and those of queries, keys and values.
_PRODUCTS = 2, 5
# Scores of the blocks whose cycles `Hardware.attention_cycles` has, for each pass.
_MEASURED = (768 * 128, 768 * 1536, 768 * 3072), (1024 * 128, 768 * 1536, 1024 * 2048)


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """The attention of one layer for one sample."""

    queries: int
    keys: int
    heads: int
    size: int

    @property
    def product(self) -> float:
        """FLOPs of one of its products."""
        return 2.0 * self.queries * self.keys * self.heads * self.size


def unet_layers(model: ComposerConfig, unet: UNetConfig, levels: Sequence[int], times: int = 1) -> list[AttentionLayer]:
    """A UNet's attention on those levels: to itself, with keys of so many grids, and to the text."""
    found, words = [], model.text_encoder.max_position_embeddings
    for level in levels:
        tokens, heads = (model.latent_height >> level) * (model.latent_width >> level), unet.heads(level)
        size = unet.block_out_channels[level] // heads
        found += [AttentionLayer(tokens, keys, heads, size) for keys in (times * tokens, words)]
    return found


def denoiser_layers(model: ComposerConfig) -> list[AttentionLayer]:
    return unet_layers(model, model.unet, model.unet.attention_levels, 1 if model.reference_unet is None else 2)


def reader_layers(model: ComposerConfig) -> list[AttentionLayer]:
    """Of what reads the canvas; the reference UNet stops before its last."""
    layers = functools.partial(unet_layers, model)
    if (reference := model.reference_unet) is not None:
        return layers(reference, model.unet.attention_levels[:-1])
    if model.controlnet is not None:
        unet = model.controlnet.unet
        below = [(level, count) for name, level, count in unet.attention_blocks if not name.startswith("up")]
        return layers(unet, [level for level, count in below for _ in range(count)])
    encoder = model.image_encoder
    assert encoder is not None
    height, width = (model.height, model.width) if model.canvas_in_pixels else (model.latent_height, model.latent_width)
    tokens = (height // encoder.patch_size) * (width // encoder.patch_size) + 1
    heads, size = encoder.num_attention_heads, encoder.hidden_size // encoder.num_attention_heads
    return [AttentionLayer(tokens, tokens, heads, size)] * encoder.num_hidden_layers


def vae_layer(model: ComposerConfig) -> AttentionLayer:
    """The one of the encoder, and of the decoder."""
    tokens = model.latent_height * model.latent_width
    return AttentionLayer(tokens, tokens, 1, model.vae.block_out_channels[-1])


@dataclasses.dataclass(frozen=True)
class KernelCost:
    """What attention kernels take that XLA's estimate leaves out."""

    flops: float = 0.0
    seconds: float = 0.0

    def times(self, count: float) -> "KernelCost":
        return KernelCost(self.flops * count, self.seconds * count)

    def plus(self, other: "KernelCost") -> "KernelCost":
        return KernelCost(self.flops + other.flops, self.seconds + other.seconds)


def kernel_cost(layers: list[AttentionLayer], hardware: Hardware, passes: Sequence[int]) -> KernelCost:
    """Of one sample in bfloat16, on a TPU. passes: those that run for a layer, of FORWARD and BACKWARD."""
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
            keys = -(-layer.keys // LANES) * LANES
            # Products over more numbers than the matrix units take at once, 8 of the mask among them, go in parts.
            parts, sizes = -(-(layer.size + 8) // hardware.tile), blocks(layer.queries, keys, 2 * layer.size)
            for one in passes:
                block_queries, block_keys, _ = sizes[one]
                rows, columns = layer.queries // block_queries, keys // block_keys
                cycles = np.interp(block_queries * block_keys, _MEASURED[one], hardware.attention_cycles[one])
                # What stays from step to step is read once.
                keys_read, queries_read = (rows if columns > 1 else 1), (columns if rows > 1 else 1)
                read = (
                    2 * layer.queries + 2 * keys_read * keys,
                    (1 + 2 * queries_read) * layer.queries + 4 * keys,
                )
                moved = 2.0 * layer.heads * layer.size * read[one]
                flops += _PRODUCTS[one] * layer.product
                spent = layer.heads * rows * columns * parts * float(cycles) / hardware.clock / hardware.cores
                seconds += max(spent, moved / hardware.bandwidth)
    return KernelCost(flops, seconds)
