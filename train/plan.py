"""What a training step takes on hardware that need not be there.

    JAX_PLATFORMS=cpu python -m train.plan --config sd15 --hardware v5p:2x2x2 h100:8 --strategy data fsdp --batch 4 8

The real step is compiled ahead of time for every combination of hardware, strategy, batch (per device) and remat.
Needs the compilers: `pip install "jax[tpu]"` for TPUs, `pip install "jax[cuda13]"` for GPUs.

- Memory is XLA's `memory_analysis()`: what lies there between steps (by kind, after the shardings) and temporaries, of
  which gradients are at least the trained parameters again.
- FLOPs are the model's own, counted in the step's jaxpr: nothing that the backward pass computes anew.
- Seconds are XLA's own estimate, where it has one (TPUs), plus what it leaves out: attention kernels (their products at
  the peak rate, heads padded to the kernel's tiles) and collectives (bytes over the network's rate), nothing of it
  overlapped. Elsewhere: FLOPs at the peak rate instead of XLA's estimate, which is a bound and no forecast.
"""

import dataclasses
import functools
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from configs import load_config
from configs.sharding import strategy
from fcjax import trees
from fcjax.cli import run
from fcjax.config import ComposerConfig, UNetConfig
from fcjax.hardware import Hardware, devices_of
from fcjax.models import attend
from fcjax.models.attend import attention_kernel
from fcjax.models.parameters import abstract_parameters
from fcjax.sharding import axis_sizes, batch_sharding, check, make_mesh, parameter_specs, tree_shardings
from train.config import TrainConfig
from train.cost import collectives_of, flops_of
from train.step import composing_loss, initial_state, make_step
from train.tasks import TRAINED_PARTS

MIB = 2**20


@dataclasses.dataclass
class Settings:
    """What to compile."""

    config: str = "sd15"
    hardware: tuple[str, ...] = ("v5p:2x2x2",)
    """Kind and size: v5p:4x4x4, v5e:4x4, h100:8, cpu:8 (simulated)."""
    strategy: tuple[str, ...] = ("fsdp",)
    batch: tuple[int, ...] = (8,)
    """Samples per device."""
    remat: tuple[Literal["none", "layers", "dots", "all"], ...] = ("none",)
    json: Path | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes and seconds are one device's and one step's."""

    hardware: str
    devices: int
    strategy: str
    remat: str
    batch: int
    fits: bool
    memory: float
    memory_by_kind: dict[str, float]
    flops: float
    compiled_flops: float | None
    seconds: float
    seconds_by_kind: dict[str, float]
    collectives: list[dict[str, Any]]
    mfu: float
    samples_per_second: float
    compile_seconds: float


def abstract_batch(model: ComposerConfig, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the batch that `train.step.composing_loss` takes."""
    rows, columns = model.latent_height, model.latent_width
    points = (rows * model.pose_patch, columns * model.pose_patch)
    assets, words = model.max_assets, model.text_encoder.max_position_embeddings
    finest = min(model.unet.attention_levels)
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (rows, columns, model.vae.latent_channels),
        "canvas_latents": (rows, columns, model.vae.latent_channels),
        "ids": (words,),
        "empty_ids": (words,),
        "spans": (assets, words),
        "masks": (assets, rows, columns),
        "foreground": (rows, columns),
        "uv": (*points, 2),
        "places": (*points, 3),
        "matches": (rows >> finest, columns >> finest, 2),
    }
    whole = {"ids", "empty_ids"}
    return {
        name: jax.ShapeDtypeStruct((count, *shape), jnp.int32 if name in whole else jnp.float32)
        for name, shape in shapes.items()
    }


@dataclasses.dataclass(frozen=True)
class _Attention:
    """One self-attention layer of one sample."""

    queries: int
    keys: int
    heads: int
    size: int

    @property
    def product(self) -> float:
        """FLOPs of one of its products."""
        return 2.0 * self.queries * self.keys * self.heads * self.size


def _attentions(model: ComposerConfig) -> list[_Attention]:
    """Those of both UNets; the reference UNet stops before its last."""

    def layers(unet: UNetConfig, times: int) -> list[_Attention]:
        found = []
        for level in unet.attention_levels:
            tokens, heads = (model.latent_height >> level) * (model.latent_width >> level), unet.heads(level)
            found.append(_Attention(tokens, times * tokens, heads, unet.block_out_channels[level] // heads))
        return found

    return [*layers(model.unet, 2), *layers(model.reference_unet, 1)[:-1]]


def model_flops(config: TrainConfig) -> float:
    """A sample's FLOPs in one step, forward and backward, without what is computed anew."""
    model = config.model
    params = {part: abstract_parameters(model)[part] for part in TRAINED_PARTS}
    state = jax.eval_shape(functools.partial(initial_state, config.optimizer, config.steps), params)
    loss = composing_loss(model, config.loss, jnp.bfloat16)

    def gradients(trained: Any, frozen: Any, batch: Any) -> Any:
        return jax.grad(lambda some: loss(trees.merge(some, frozen), batch, jax.random.key(0))[0])(trained)

    with attention_kernel("portable"):
        counted = flops_of(gradients, state.trained, state.frozen, abstract_batch(model, 1))
    # The portable attention's backward pass computes its scores anew; cross-attention's few keys are not worth the sum.
    return counted - sum(layer.product for layer in _attentions(model))


def _kernels(config: TrainConfig, hardware: Hardware) -> float:
    """Seconds of a sample's attention kernels, which XLA's estimate leaves out, at the peak rate."""
    if hardware.platform != "tpu":
        return 0.0
    seconds = 0.0
    with attention_kernel(hardware.attention):
        for layer in _attentions(config.model):
            query, key = (
                jax.ShapeDtypeStruct((1, tokens, layer.heads, layer.size), jnp.bfloat16)
                for tokens in (layer.queries, layer.keys)
            )
            if attend.kernel_of(query, key, jax.ShapeDtypeStruct(key.shape[:2], bool)) == hardware.attention:
                # Forward two products; backward one of the two passes recomputes the scores for each of its results.
                padded = -(-(layer.size + 1) // 128) * 128 / layer.size
                seconds += 9 * padded * layer.product / hardware.flops
    return seconds


def plan(config: TrainConfig, name: str, strategy_name: str, batch: int, remat: Any) -> Plan:
    """Compiles the step and reads what it takes. ValueError where strategy, hardware and model do not suit."""
    hardware, devices = devices_of(name)
    chosen = strategy(strategy_name)
    sizes, count = axis_sizes(chosen, len(devices)), batch * len(devices)
    config = dataclasses.replace(config, batch_size=count, remat=remat, strategy=strategy_name)
    check(config.model, sizes, count)
    mesh, dtype = make_mesh(chosen, devices), jnp.dtype(config.compute_dtype)
    params = {part: abstract_parameters(config.model)[part] for part in TRAINED_PARTS}
    start = functools.partial(initial_state, config.optimizer, config.steps, frozen_dtype=dtype)
    state = jax.eval_shape(start, params)
    shardings = tree_shardings(state, parameter_specs(params, chosen.parameters, sizes), mesh), batch_sharding(mesh)

    def laid(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(laid, state, shardings[0])
    samples = {key: laid(leaf, shardings[1]) for key, leaf in abstract_batch(config.model, count).items()}
    step = make_step(config, composing_loss(config.model, config.loss, dtype, remat=remat), shardings)
    began = time.perf_counter()
    with jax.set_mesh(mesh), attention_kernel(hardware.attention):
        compiled = step.lower(state, samples).compile()
    compile_seconds = time.perf_counter() - began

    def held(tree: Any) -> float:
        return float(
            sum(
                math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
            )
        )

    analysis = compiled.memory_analysis()
    assert analysis is not None
    kinds = {
        "trained": held(state.trained),
        "frozen": held(state.frozen),
        "average": held(state.average),
        "optimizer": held(state.optimizer),
        "batch": held(samples),
        "temporaries": float(analysis.temp_size_in_bytes),
    }
    memory = sum(kinds.values())
    cost = compiled.cost_analysis() or {}
    flops = model_flops(config) * batch
    moved = collectives_of(compiled.as_text() or "")
    xla = cost.get("optimal_seconds", 0.0)
    seconds = {
        "xla": xla if xla > 0 else flops / hardware.flops,
        "attention": _kernels(config, hardware) * batch if xla > 0 else 0.0,
        "collectives": sum(one.bytes for one in moved) / hardware.network,
    }
    whole = sum(seconds.values())
    return Plan(
        hardware=name,
        devices=len(devices),
        strategy=strategy_name,
        remat=remat,
        batch=batch,
        fits=memory <= hardware.memory,
        memory=memory,
        memory_by_kind=kinds,
        flops=flops,
        compiled_flops=cost.get("flops"),
        seconds=whole,
        seconds_by_kind=seconds,
        collectives=[dataclasses.asdict(one) for one in moved],
        mfu=flops / whole / hardware.flops,
        samples_per_second=batch / whole,
        compile_seconds=compile_seconds,
    )


_COLUMNS = ("hardware", "strategy", "remat", "batch", "MiB", "state", "temps", "fits", "ms", "xla", "attn", "comm")
_COLUMNS += ("MFU", "samples/s", "compiled in")


def _row(one: Plan) -> list[str]:
    temps = one.memory_by_kind["temporaries"]
    milliseconds = [1000 * one.seconds_by_kind[kind] for kind in ("xla", "attention", "collectives")]
    return [
        one.hardware,
        one.strategy,
        one.remat,
        str(one.batch),
        *(f"{size / MIB:.0f}" for size in (one.memory, one.memory - temps, temps)),
        "yes" if one.fits else "NO",
        *(f"{value:.1f}" for value in (1000 * one.seconds, *milliseconds)),
        f"{one.mfu:.1%}",
        f"{one.samples_per_second:.1f}",
        f"{one.compile_seconds:.0f} s",
    ]


def main(settings: Settings) -> None:
    config = load_config(settings.config)
    print(f"{settings.config}, all per device; a sample's step takes {model_flops(config) / 1e12:.2f} TFLOP")
    print(" ".join(f"{column:>11}" for column in _COLUMNS), flush=True)
    plans = []
    grid = itertools.product(settings.hardware, settings.strategy, settings.batch, settings.remat)
    for name, chosen, batch, remat in grid:
        plans.append(plan(config, name, chosen, batch, remat))
        print(" ".join(f"{cell:>11}" for cell in _row(plans[-1])), flush=True)
    if settings.json:
        settings.json.write_text(json.dumps([dataclasses.asdict(one) for one in plans], indent=1) + "\n")


if __name__ == "__main__":
    run(main)
