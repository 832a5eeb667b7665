"""Where a training step's time goes: a resnet and a transformer of each level, forward and backward, on one TPU chip.

    JAX_PLATFORMS=cpu python -m benchmarks.layers --hardware v5p:1x1x1 --batch 32

Compiled ahead of time (`pip install "jax[tpu]"`), a minute each, where the whole step takes many. The transformer has
the denoiser's keys, its own and the reference's. Times as in `train.forecast`: XLA's ideal, attention beside it, and
all other kernels' cycles by the compiler's count; MFU by the ideal and attention.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import NamedSharding, PartitionSpec

from configs.sharding import strategy
from fcjax import presets
from fcjax.config import ComposerConfig
from fcjax.hardware import devices_of
from fcjax.models.attend import attention_kernel
from fcjax.models.attention import SpatialTransformer
from fcjax.models.layers import ResnetBlock
from fcjax.sharding import make_mesh
from train.compiled import compile_ahead, laid
from train.cost import flops_of
from train.kernels import BACKWARD, FORWARD, kernel_cost, unet_layers


@dataclasses.dataclass
class Settings:
    """What to compile, of Stable Diffusion 1.5 at 512x384 in bfloat16."""

    hardware: str = "v5p:1x1x1"
    batch: int = 32
    levels: tuple[int, ...] = (0, 1, 2)


def layer(model: ComposerConfig, kind: str, level: int, batch: int) -> tuple[Any, tuple[Any, ...]]:
    """The gradients of one layer's parameters and input, and their abstract arguments."""
    unet, half = model.unet, jnp.bfloat16
    rows, columns, width = model.latent_height >> level, model.latent_width >> level, unet.block_out_channels[level]
    grid = jax.ShapeDtypeStruct((batch, rows, columns, width), half)
    if kind == "resnet":
        network: Any = ResnetBlock(width, unet.norm_num_groups, unet.norm_eps, dtype=half)
        given = (grid, jax.ShapeDtypeStruct((batch, 4 * unet.block_out_channels[0]), half))
    else:
        network = SpatialTransformer(unet.heads(level), unet.ff_mult, unet.norm_num_groups, False, dtype=half)
        words = model.text_encoder.max_position_embeddings
        given = (
            grid,
            jax.ShapeDtypeStruct((batch, words, unet.cross_attention_dim), half),
            jax.ShapeDtypeStruct((batch, rows * columns, width), half),
            jax.ShapeDtypeStruct((batch, rows * columns), bool),
        )

    def output(params: Any, x: Any, other: Any, *reference: Any) -> Any:
        if not reference:
            return network.apply({"params": params}, x, other)
        tokens, seen = reference
        return network.apply({"params": params}, x, other, injected=(tokens, tokens), injected_mask=seen)[0]

    params = jax.eval_shape(lambda key, *given: network.init(key, *given[:2])["params"], jax.random.key(0), *given)
    return jax.grad(lambda *given: jnp.sum(jnp.square(output(*given).astype(jnp.float32))), (0, 1)), (params, *given)


def main(settings: Settings) -> None:
    model = presets.sd15()
    hardware, devices = devices_of(settings.hardware)
    mesh = make_mesh(strategy("data"), devices[:1])
    whole = NamedSharding(mesh, PartitionSpec())
    columns = ("layer", "TFLOP", "ideal ms", "attn ms", "cycles ms", "MiB", "MFU")
    print(" ".join(f"{column:>14}" for column in columns))
    for level in settings.levels:
        for kind in ("resnet", "transformer"):
            function, given = layer(model, kind, level, settings.batch)
            placed = jax.tree.map(lambda leaf: laid(leaf, whole), given)
            found = compile_ahead(jax.jit(function), placed, mesh, hardware)
            with attention_kernel("portable"):
                flops = flops_of(function, *given)
            layers = unet_layers(model, model.unet, [level], 2) if kind == "transformer" else []
            # As in `train.forecast.model_flops`: what the portable backward pass computes anew is nobody's work.
            flops -= settings.batch * sum(one.product for one in layers)
            passes = FORWARD + BACKWARD
            attention = kernel_cost(layers, hardware, passes).seconds * settings.batch
            ideal = found.ideal_seconds(hardware)
            cells = [f"{kind} {level}", f"{flops / 1e12:.3f}"]
            cells += [f"{1000 * value:.2f}" for value in (ideal, attention, found.cycles[1] / hardware.clock)]
            cells += [f"{found.temporaries / 2**20:.0f}", f"{flops / (ideal + attention) / hardware.flops:.1%}"]
            print(" ".join(f"{cell:>14}" for cell in cells), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
