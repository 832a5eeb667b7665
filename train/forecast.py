"""What a training step or a picture takes on hardware that need not be there: compiled ahead of time, then read.

- Memory is XLA's `memory_analysis()`: what lies there all the time (by kind, after the shardings) and temporaries, of
  which gradients are at least the trained parameters again.
- FLOPs are the model's own, counted in the jaxpr: nothing that a backward pass computes anew.
- Seconds are XLA's own estimate, where it has one (TPUs), plus what it leaves out: attention kernels (their products at
  the peak rate, heads padded to the kernel's tiles) and collectives (bytes over the network's rate), nothing of it
  overlapped. Elsewhere: FLOPs at the peak rate instead of XLA's estimate, which is a bound and no forecast.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from configs.sharding import strategy
from fcjax import generation, trees
from fcjax.config import ComposerConfig, UNetConfig
from fcjax.generation import PictureInputs, conditions_of_pictures, denoiser
from fcjax.hardware import Hardware, devices_of
from fcjax.models import attend
from fcjax.models.attend import attention_kernel
from fcjax.models.composer import denoising_parameters
from fcjax.models.layers import Dtype
from fcjax.models.parameters import abstract_parameters
from fcjax.models.unet import UNet
from fcjax.samplers import sampler_table
from fcjax.sampling import SamplerState, guidance_branches, guided_step, image_keys, make_guidance
from fcjax.sharding import axis_sizes, batch_sharding, check, make_mesh, parameter_specs, tree_shardings
from train.config import TrainConfig
from train.cost import Collective, collectives_of, flops_of
from train.step import Loss, composing_loss, denoising_loss, initial_state, make_step


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes and seconds are one device's, of a training step or of a batch of pictures; a sample is one of either."""

    what: str
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
    # As XLA gives it, of a picture's programs together; 0 where it has none.
    xla_seconds: float
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
        "canvas": (model.height, model.width, 3)
        if model.canvas_in_pixels
        else (rows, columns, model.vae.latent_channels),
        "ids": (words,),
        "empty_ids": (words,),
        "spans": (assets, words),
        "masks": (assets, rows, columns),
        "foreground": (rows, columns),
        "matches": (rows >> finest, columns >> finest, 2),
    }
    if model.condition == "tryon":
        shapes |= {"person_latents": shapes["latents"], "person_masks": (model.height, model.width)}
    else:
        shapes |= {"uv": (*points, 2), "places": (*points, 3)}
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


def _without_vae(params: dict[str, Any]) -> dict[str, Any]:
    """What composing trains, or keeps frozen."""
    return {name: part for name, part in params.items() if name != "vae"}


def _layers(model: ComposerConfig, unet: UNetConfig, levels: Sequence[int], times: int = 1) -> list[_Attention]:
    """A UNet's self-attention layers on those levels, with keys of so many grids."""
    found = []
    for level in levels:
        tokens, heads = (model.latent_height >> level) * (model.latent_width >> level), unet.heads(level)
        found.append(_Attention(tokens, times * tokens, heads, unet.block_out_channels[level] // heads))
    return found


def _attentions(model: ComposerConfig) -> list[_Attention]:
    """Self-attention of the denoiser and of what reads the canvas; the reference UNet stops before its last."""
    layers = functools.partial(_layers, model)
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
    return [*denoiser, *[_Attention(tokens, tokens, heads, size)] * encoder.num_hidden_layers]


def _kernels(layers: list[_Attention], hardware: Hardware, products: int) -> float:
    """Seconds of those attention kernels, which XLA's estimate leaves out, at the peak rate.

    products: how many of each layer's size a kernel computes in all.
    """
    if hardware.platform != "tpu":
        return 0.0
    seconds = 0.0
    with attention_kernel(hardware.attention):
        for layer in layers:
            query, key = (
                jax.ShapeDtypeStruct((1, tokens, layer.heads, layer.size), jnp.bfloat16)
                for tokens in (layer.queries, layer.keys)
            )
            if attend.kernel_of(query, key, jax.ShapeDtypeStruct(key.shape[:2], bool)) == hardware.attention:
                padded = -(-(layer.size + 1) // 128) * 128 / layer.size
                seconds += products * padded * layer.product / hardware.flops
    return seconds


# ---------------------------------------------------------------------------------------------------------------------
# Training


@dataclasses.dataclass(frozen=True)
class _Training:
    """What a step is made of, all of it abstract. attentions: the self-attention of one sample."""

    config: TrainConfig
    params: dict[str, Any]
    batch: dict[str, jax.ShapeDtypeStruct]
    loss: Loss
    attentions: list[_Attention]


def _training(config: TrainConfig, count: int, alone: bool, dtype: Dtype, remat: str = "none") -> _Training:
    """The configuration's own step for so many samples; alone: that of its denoiser as plain Stable Diffusion."""
    model = config.model
    if not alone:
        loss = composing_loss(model, config.loss, dtype, remat=remat)
        params = _without_vae(abstract_parameters(model))
        return _Training(config, params, abstract_batch(model, count), loss, _attentions(model))
    unet = dataclasses.replace(model.unet, in_channels=model.vae.latent_channels)
    everything = dataclasses.replace(config.optimizer, trainable=((r".*", True),))
    rows, columns, words = model.latent_height, model.latent_width, model.text_encoder.max_position_embeddings
    shapes = {"latents": (rows, columns, unet.in_channels), "text": (words, unet.cross_attention_dim)}
    batch = {name: jax.ShapeDtypeStruct((count, *shape), jnp.float32) for name, shape in shapes.items()}
    network = UNet(unet, dtype=dtype)
    params = jax.eval_shape(
        lambda key, latents, text: network.init(key, latents, jnp.zeros(1), text)["params"],
        jax.random.key(0),
        *(jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes.values()),
    )
    return _Training(
        dataclasses.replace(config, optimizer=everything),
        {"unet": params},
        batch,
        denoising_loss(unet, model.diffusion, config.loss, dtype, remat),
        _layers(model, unet, unet.attention_levels),
    )


def plan_training(
    config: TrainConfig, name: str, strategy_name: str, batch: int, remat: Any, alone: bool = False
) -> Plan:
    """Compiles the step for `batch` samples a device. ValueError where strategy, hardware and model do not suit.

    alone: the denoiser trained as plain Stable Diffusion, all its weights, from latents and text that are prepared.
    """
    hardware, devices = devices_of(name)
    chosen = strategy(strategy_name)
    sizes, count = axis_sizes(chosen, len(devices)), batch * len(devices)
    config = dataclasses.replace(config, batch_size=count, remat=remat, strategy=strategy_name)
    check(config.model, sizes, count)
    mesh, dtype = make_mesh(chosen, devices), jnp.dtype(config.compute_dtype)
    training = _training(config, count, alone, dtype, remat)
    config, params = training.config, training.params
    start = functools.partial(initial_state, config.optimizer, config.steps, frozen_dtype=dtype)
    state = jax.eval_shape(start, params)
    shardings = tree_shardings(state, parameter_specs(params, chosen.parameters, sizes), mesh), batch_sharding(mesh)
    state = jax.tree.map(_laid, state, shardings[0])
    samples = {key: _laid(leaf, shardings[1]) for key, leaf in training.batch.items()}
    step = make_step(config, training.loss, shardings)
    compiled = _compile(step, (state, samples), mesh, hardware)
    kinds = {
        "trained": _held(state.trained),
        "frozen": _held(state.frozen),
        "average": _held(state.average),
        "optimizer": _held(state.optimizer),
        "batch": _held(samples),
        "temporaries": compiled.temporaries,
    }
    flops = model_flops(config, alone)
    # Forward two products; backward one of the two passes recomputes the scores for each of its results.
    kernels = _kernels(training.attentions, hardware, 9)
    seconds = compiled.seconds(hardware, flops * batch, kernels * batch)
    return _plan("unet" if alone else "train", name, strategy_name, remat, batch, kinds, flops, seconds, [compiled])


def model_flops(config: TrainConfig, alone: bool = False) -> float:
    """A sample's FLOPs in one step, forward and backward, without what is computed anew. alone: see `plan_training`."""
    training = _training(config, 1, alone, jnp.bfloat16)
    start = functools.partial(initial_state, training.config.optimizer, config.steps)
    state = jax.eval_shape(start, training.params)

    def gradients(trained: Any, frozen: Any, batch: Any) -> Any:
        return jax.grad(lambda some: training.loss(trees.merge(some, frozen), batch, jax.random.key(0))[0])(trained)

    with attention_kernel("portable"):
        counted = flops_of(gradients, state.trained, state.frozen, training.batch)
    # The portable attention's backward pass computes its scores anew; cross-attention's few keys are not worth the sum.
    return counted - sum(layer.product for layer in training.attentions)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def plan_sampling(
    config: ComposerConfig, name: str, strategy_name: str, images: int, *, steps: int, dtype: Dtype = jnp.bfloat16
) -> Plan:
    """Compiles what makes `images` pictures a device, with guidance, in so many steps.

    One request's conditions, a guided step, and decoding are programs of their own; the step counts `steps` times.
    """
    hardware, devices = devices_of(name)
    chosen, count = strategy(strategy_name), images * len(devices)
    sizes = axis_sizes(chosen, len(devices))
    check(config, sizes, count)
    mesh = make_mesh(chosen, devices)
    params = abstract_parameters(config, dtype)
    shardings = tree_shardings(params, parameter_specs(params, chosen.parameters, sizes), mesh)
    params = jax.tree.map(_laid, params, shardings)
    times, programs = {"conditions": 1, "step": steps, "decode": 1}, sampling_programs(config, count, dtype, params)
    compiled, passing = {}, 0.0
    for key in times:
        function, arguments = programs[key]
        compiled[key] = _compile(jax.jit(function), arguments, mesh, hardware)
        passing = max(passing, compiled[key].temporaries + compiled[key].results)
    kinds = {"weights": _held(params), "conditions": compiled["conditions"].results, "temporaries": passing}
    seconds = dict.fromkeys(("xla", "attention", "collectives"), 0.0)
    # A request's conditions are made once and shared; each device still takes the time.
    each = {key: flops_of(*_counted(config, key, dtype)) for key in times}
    shared = {"conditions": 1, "step": images, "decode": images}
    branches = len(guidance_branches(2.0))
    layers = [layer for layer in _attentions(config) if layer.keys == 2 * layer.queries]
    for key, one in compiled.items():
        kernels = _kernels(layers, hardware, 2) * branches * images if key == "step" else 0.0
        found = one.seconds(hardware, each[key] * shared[key], kernels)
        seconds = {kind: seconds[kind] + times[key] * found[kind] for kind in seconds}
    flops = sum(each[key] * times[key] * shared[key] for key in times) / images
    return _plan("sample", name, strategy_name, "none", images, kinds, flops, seconds, list(compiled.values()))


def sampling_programs(
    config: ComposerConfig, images: int, dtype: Dtype, params: Any = None
) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The programs of pictures of one request, with guidance, and their abstract arguments, the weights first.

    "conditions": text, asset canvas and reference pass; "step": one guided step; "decode"; "image": 20 steps and
    decoding in one.
    params: abstract ones, with shardings or without.
    """
    params = abstract_parameters(config, dtype) if params is None else params
    branches, shaped = guidance_branches(2.0), jax.ShapeDtypeStruct
    assets, words = config.max_assets, config.text_encoder.max_position_embeddings
    rows, columns, size = config.latent_height, config.latent_width, (config.height, config.width)
    given = PictureInputs(
        shaped((1, words), jnp.int32),
        shaped((words,), jnp.int32),
        shaped((1, assets, words), jnp.float32),
        shaped((1, *size, 3), jnp.uint8),
        shaped((1, assets, rows, columns), jnp.float32),
    )
    if config.condition == "tryon":
        given = given._replace(persons=given.canvases, person_masks=shaped((1, *size), jnp.float32))
    else:
        given = given._replace(uv=shaped((1, *size, 2), jnp.float32), places=shaped((1, *size, 3), jnp.float32))
    prepare = functools.partial(conditions_of_pictures, config=config, branches=branches, images=images, dtype=dtype)
    conditions = jax.eval_shape(prepare, params, given)
    table, mixing, keys = sampler_table(config.diffusion, 20), make_guidance(branches, 2.0), image_keys(0, images)
    latents = shaped((images, rows, columns, config.vae.latent_channels), jnp.float32)

    def step(params: Any, conditions: Any, mixing: Any, keys: Any, state: Any) -> Any:
        denoise, index = denoiser(config, dtype), jnp.int32(3)
        return guided_step(denoise, (denoising_parameters(params), conditions), table, mixing, keys, index, state)

    def image(params: Any, conditions: Any, mixing: Any, keys: Any, latents: Any) -> Any:
        return generation.generate(params, conditions, table, mixing, keys, latents, config=config, dtype=dtype)

    decode = functools.partial(generation.decode, config=config, dtype=dtype)
    unet = denoising_parameters(params)
    rest = {**unet, "vae": params["vae"]}
    return {
        "conditions": (prepare, (params, given)),
        "step": (step, (unet, conditions, mixing, keys, SamplerState(latents, latents))),
        "decode": (decode, ({"vae": params["vae"]}, latents)),
        "image": (image, (rest, conditions, mixing, keys, latents)),
    }


def _counted(config: ComposerConfig, key: str, dtype: Dtype) -> tuple[Any, ...]:
    """A program for one picture, and its arguments."""
    function, arguments = sampling_programs(config, 1, dtype)[key]
    return function, *arguments


# ---------------------------------------------------------------------------------------------------------------------
# Compiling and reading


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """What a program's compilation says, of one device."""

    temporaries: float
    results: float
    flops: float | None
    xla_seconds: float
    collectives: list[Collective]
    compile_seconds: float

    def seconds(self, hardware: Hardware, flops: float, kernels: float) -> dict[str, float]:
        """By what takes them. flops: the model's own, on this device; kernels: seconds of attention kernels."""
        # XLA counts -1 s where it knows no time for an operation. (Seen on TPUs: -0.981 of a program whose bytes alone
        # take 0.016 s.) A program takes less than a second, so what stands behind the point is the others' sum.
        known = self.xla_seconds - min(math.floor(self.xla_seconds), 0)
        estimated = known > 0
        return {
            "xla": known if estimated else flops / hardware.flops,
            "attention": kernels if estimated else 0.0,
            "collectives": sum(one.bytes for one in self.collectives) / hardware.network,
        }


def _compile(function: Any, arguments: tuple[Any, ...], mesh: Mesh, hardware: Hardware) -> _Compiled:
    began = time.perf_counter()
    with jax.set_mesh(mesh), attention_kernel(hardware.attention):
        compiled = function.lower(*arguments).compile()
    passed = time.perf_counter() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return _Compiled(
        temporaries=float(memory.temp_size_in_bytes),
        results=float(memory.output_size_in_bytes),
        flops=cost.get("flops"),
        xla_seconds=cost.get("optimal_seconds", 0.0),
        collectives=collectives_of(compiled.as_text() or ""),
        compile_seconds=passed,
    )


def _laid(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _held(tree: Any) -> float:
    """Bytes on one device."""
    return float(
        sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    )


def _plan(
    what: str,
    name: str,
    strategy_name: str,
    remat: str,
    batch: int,
    kinds: dict[str, float],
    flops: float,
    seconds: dict[str, float],
    compiled: list[_Compiled],
) -> Plan:
    """flops: a sample's own."""
    hardware, devices = devices_of(name)
    memory, whole = sum(kinds.values()), sum(seconds.values())
    counted = [one.flops for one in compiled if one.flops is not None]
    return Plan(
        what=what,
        hardware=name,
        devices=len(devices),
        strategy=strategy_name,
        remat=remat,
        batch=batch,
        fits=memory <= hardware.memory,
        memory=memory,
        memory_by_kind=kinds,
        flops=flops * batch,
        compiled_flops=sum(counted) if len(counted) == len(compiled) else None,
        xla_seconds=sum(one.xla_seconds for one in compiled),
        seconds=whole,
        seconds_by_kind=seconds,
        collectives=[dataclasses.asdict(one) for part in compiled for one in part.collectives],
        mfu=flops * batch / whole / hardware.flops,
        samples_per_second=batch / whole,
        compile_seconds=sum(one.compile_seconds for one in compiled),
    )
