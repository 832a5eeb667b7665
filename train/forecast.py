"""What a training step or a picture takes on hardware that need not be there: compiled ahead of time, then read.

- Memory is XLA's `memory_analysis()`: what lies there all the time, by kind after the shardings, with what tiles pad,
  and temporaries. Of those, gradients are a number for each trained one, as clipping by the global norm needs all at
  once; activations are the others at the peak. What the compiler refuses for want of memory does not fit, without time.
- FLOPs are the model's own, counted in the jaxpr: nothing that a backward pass computes anew, attention kernels' with
  them. MFU goes by them and by all of the time below.
- Seconds on TPUs are XLA's own estimate (each kernel's FLOPs or bytes at the peak rates, so an ideal) of the program
  without copies ahead, which run beside its kernels and stand for bytes that those would read, plus what it leaves out:
  attention kernels (the cycles of their schedules, `Hardware.attention_cycles`, or their bytes if those take longer)
  and collectives (bytes over the links that lie along their groups, or the slow network where they cross slices),
  nothing of it overlapped. `cycle_seconds` has in the ideal's place the cycles that the compiler expects of each kernel
  as it has laid it out.
- Elsewhere a roofline stands for XLA's estimate: products and convolutions at PRODUCT_SHARE of the peak rate, after
  them the bytes that all other kernels read and write at BANDWIDTH_SHARE of the memory's. It leaves out launches and
  small kernels' tails, so that it is nearer a bound than a forecast.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from configs.sharding import named
from fcjax import trees
from fcjax.config import ComposerConfig
from fcjax.hardware import Hardware, devices_of, network_rate
from fcjax.models.attend import attention_kernel
from fcjax.models.layers import Dtype
from fcjax.models.parameters import abstract_parameters
from fcjax.models.unet import UNet
from fcjax.sampling import guidance_branches
from fcjax.sharding import axis_sizes, batch_sharding, check, make_mesh, parameter_specs, tree_shardings
from train.compiled import Compiled, compile_ahead, held_bytes, laid
from train.config import TrainConfig
from train.cost import Collective, flops_of
from train.kernels import (
    BACKWARD,
    FORWARD,
    AttentionLayer,
    KernelCost,
    denoiser_layers,
    kernel_cost,
    reader_layers,
    unet_layers,
    vae_layer,
)
from train.sampling_programs import sampling_programs
from train.step import Loss, composing_loss, denoising_loss, initial_state, make_step


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes and seconds are one device's, of a training step or of a batch of pictures; a sample is one of either.

    strategy: with its axes' sizes as asked for, `mesh` with those it has. Times and what follows from them are None for
    a program that the compiler refuses for want of memory.
    """

    what: str
    hardware: str
    devices: int
    strategy: str
    mesh: dict[str, int]
    remat: str
    batch: int
    fits: bool
    memory: float
    usable_memory: float
    memory_by_kind: dict[str, float]
    flops: float
    # Of the attention kernels, with what they compute anew; XLA counts none of it.
    kernel_flops: float
    # As XLA gives them, of a picture's programs together, None where it has none; the seconds without correction, those
    # of the program without copies ahead and of the one that would run.
    compiled_flops: float | None
    compiled_bytes: float | None
    xla_seconds: float | None
    xla_seconds_counted_ahead: float | None
    seconds: float | None
    seconds_by_kind: dict[str, float]
    collectives: list[dict[str, Any]]
    mfu: float | None
    samples_per_second: float | None
    # The same time with XLA's count of its kernels' cycles in the place of their ideal time; TPUs alone.
    cycle_seconds: float | None
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
    if model.tries_on:
        shapes |= {"person_latents": shapes["latents"], "person_masks": (model.height, model.width)}
    if model.takes_pose:
        shapes |= {"uv": (*points, 2), "places": (*points, 3)}
    whole = {"ids", "empty_ids"}
    return {
        name: jax.ShapeDtypeStruct((count, *shape), jnp.int32 if name in whole else jnp.float32)
        for name, shape in shapes.items()
    }


def _without_vae(params: dict[str, Any]) -> dict[str, Any]:
    """What composing trains, or keeps frozen."""
    return {name: part for name, part in params.items() if name != "vae"}


# ---------------------------------------------------------------------------------------------------------------------
# Training


@dataclasses.dataclass(frozen=True)
class _Training:
    """What a step is made of, all of it abstract. attentions: those of one sample; rolled: forward alone."""

    config: TrainConfig
    params: dict[str, Any]
    batch: dict[str, jax.ShapeDtypeStruct]
    loss: Loss
    attentions: list[AttentionLayer]
    rolled: list[AttentionLayer] = dataclasses.field(default_factory=list)


def _training(config: TrainConfig, count: int, alone: bool, dtype: Dtype, remat: str = "none") -> _Training:
    """The configuration's own step for so many samples; alone: that of its denoiser as plain Stable Diffusion."""
    model = config.model
    if not alone:
        loss = composing_loss(model, config.loss, dtype, remat=remat)
        params = _without_vae(abstract_parameters(model))
        layers = denoiser_layers(model) * config.loss.noises
        attentions, rolled = [*layers, *reader_layers(model)], layers if config.loss.rollout else []
        return _Training(config, params, abstract_batch(model, count), loss, attentions, rolled)
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
        unet_layers(model, unet, unet.attention_levels),
    )


def plan_training(
    config: TrainConfig,
    name: str,
    strategy_name: str,
    batch: int,
    remat: Any,
    alone: bool = False,
    quick: bool = False,
) -> Plan:
    """Compiles the step for `batch` samples a device. ValueError where strategy, hardware and model do not suit.

    strategy_name: may have sizes of its axes behind it, as `configs.sharding.named` takes it.

    alone: the denoiser trained as plain Stable Diffusion, all its weights, from latents and text that are prepared.
    quick: see `train.compiled.compile_ahead`.
    """
    hardware, devices = devices_of(name)
    chosen = named(strategy_name)
    sizes, count = axis_sizes(chosen, len(devices)), batch * len(devices)
    config = dataclasses.replace(config, batch_size=count, remat=remat)
    check(config.model, sizes, count, config.accumulate)
    mesh, dtype = make_mesh(chosen, devices), jnp.dtype(config.compute_dtype)
    training = _training(config, count, alone, dtype, remat)
    config, params = training.config, training.params
    start = functools.partial(initial_state, config.optimizer, config.steps, frozen_dtype=dtype)
    state = jax.eval_shape(start, params)
    shardings = tree_shardings(state, parameter_specs(params, chosen.parameters, sizes), mesh), batch_sharding(mesh)
    state = jax.tree.map(laid, state, shardings[0])
    samples = {key: laid(leaf, shardings[1]) for key, leaf in training.batch.items()}
    step = make_step(config, training.loss, shardings)
    compiled = compile_ahead(step, (state, samples), mesh, hardware, quick)
    held = {
        "trained": held_bytes(state.trained),
        "frozen": held_bytes(state.frozen),
        "average": held_bytes(state.average),
        "optimizer": held_bytes(state.optimizer),
        "batch": held_bytes(samples),
    }
    gradients = min(held["trained"], compiled.temporaries)
    temporaries = {"gradients": gradients, "activations": compiled.temporaries - gradients}
    # No policy keeps what a kernel gives: the backward pass runs it anew.
    kernels = kernel_cost(training.attentions, hardware, (FORWARD if remat == "none" else FORWARD * 2) + BACKWARD)
    kernels = kernels.plus(kernel_cost(training.rolled, hardware, FORWARD))
    subject = _Subject("unet" if alone else "train", name, strategy_name, remat, batch)
    kinds, flops = held | compiled.beside(sum(held.values())) | temporaries, model_flops(config, alone)
    return _plan(subject, mesh, kinds, flops, [(compiled, 1, kernels.times(batch), flops * batch)])


def model_flops(config: TrainConfig, alone: bool = False) -> float:
    """A sample's FLOPs in one step, forward and backward, without what is computed anew. alone: see `plan_training`."""
    training = _training(config, 1, alone, jnp.bfloat16)
    start = functools.partial(initial_state, training.config.optimizer, config.steps)
    state = jax.eval_shape(start, training.params)

    def gradients(trained: Any, frozen: Any, batch: Any) -> Any:
        return jax.grad(lambda some: training.loss(trees.merge(some, frozen), batch, jax.random.key(0))[0])(trained)

    with attention_kernel("portable"):
        counted = flops_of(gradients, state.trained, state.frozen, training.batch)
    # The portable attention's backward pass computes its scores anew.
    return counted - sum(layer.product for layer in training.attentions)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def plan_sampling(
    config: ComposerConfig,
    name: str,
    strategy_name: str,
    images: int,
    *,
    steps: int,
    dtype: Dtype = jnp.bfloat16,
    quick: bool = False,
) -> Plan:
    """Compiles what makes `images` pictures a device, with guidance, in so many steps.

    One request's conditions, a guided step, and decoding are programs of their own; the step counts `steps` times.
    """
    if steps < 1:
        raise ValueError(f"steps of sampling must be at least 1, got {steps}")
    hardware, devices = devices_of(name)
    chosen, count = named(strategy_name), images * len(devices)
    sizes = axis_sizes(chosen, len(devices))
    check(config, sizes, count)
    mesh = make_mesh(chosen, devices)
    params = abstract_parameters(config, dtype)
    shardings = tree_shardings(params, parameter_specs(params, chosen.parameters, sizes), mesh)
    params = jax.tree.map(laid, params, shardings)
    times, programs = {"conditions": 1, "step": steps, "decode": 1}, sampling_programs(config, count, dtype, params)
    compiled, passing = {}, 0.0
    for key in times:
        function, arguments = programs[key]
        compiled[key] = compile_ahead(jax.jit(function), arguments, mesh, hardware, quick)
        passing = max(passing, compiled[key].temporaries + compiled[key].results)
    weights, conditions = held_bytes(params), compiled["conditions"].results
    kinds = {"weights": weights, "conditions": conditions, "temporaries": passing}
    # A request's conditions are made once and shared; each device still takes the time.
    each = {key: flops_of(*_counted(config, key, dtype)) for key in times}
    shared = {"conditions": 1, "step": images, "decode": images}
    branches = len(guidance_branches(2.0))
    encoded = [vae_layer(config)] * ((not config.canvas_in_pixels) + config.tries_on)
    cost = functools.partial(kernel_cost, hardware=hardware, passes=FORWARD)
    kernels = {
        "conditions": cost([*reader_layers(config), *encoded]),
        "step": cost(denoiser_layers(config)).times(branches * images),
        "decode": cost([vae_layer(config)]).times(images),
    }
    parts = [(one, times[key], kernels[key], each[key] * shared[key]) for key, one in compiled.items()]
    flops = sum(each[key] * times[key] * shared[key] for key in times) / images
    return _plan(_Subject("sample", name, strategy_name, "none", images), mesh, kinds, flops, parts)


def _counted(config: ComposerConfig, key: str, dtype: Dtype) -> tuple[Any, ...]:
    """A program for one picture, and its arguments."""
    function, arguments = sampling_programs(config, 1, dtype)[key]
    return function, *arguments


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What was asked for."""

    what: str
    hardware: str
    strategy: str
    remat: str
    batch: int


def _plan(
    subject: _Subject,
    mesh: Mesh,
    kinds: dict[str, float],
    flops: float,
    parts: Sequence[tuple[Compiled, int, KernelCost, float]],
) -> Plan:
    """flops: a sample's own. parts: each program, how often it runs, and its kernels and own FLOPs in one run."""
    hardware, devices = devices_of(subject.hardware)
    programs = [program for program, *_ in parts]
    memory, refused = sum(kinds.values()), any(program.refused for program in programs)
    collectives, spent = [], dict.fromkeys(("compute", "memory", "attention", "collectives"), 0.0)
    for program, times, kernels, own in parts:
        timed = [(one, _network_seconds(one, hardware, mesh)) for one in program.collectives]
        collectives += [dataclasses.asdict(one) | {"runs": times, "seconds": seconds} for one, seconds in timed]
        found = program.seconds(hardware, own, kernels.seconds, sum(seconds for _, seconds in timed))
        spent = {kind: spent[kind] + times * found[kind] for kind in spent}
    whole = None if refused else sum(spent.values())
    cycles = sum(times * program.laid_out for program, times, *_ in parts) / hardware.clock
    return Plan(
        **dataclasses.asdict(subject),
        devices=len(devices),
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        fits=memory <= hardware.memory and not refused,
        memory=memory,
        usable_memory=hardware.memory,
        memory_by_kind=kinds,
        flops=flops * subject.batch,
        kernel_flops=sum(times * kernels.flops for _, times, kernels, _ in parts),
        compiled_flops=_sum([program.flops for program in programs]),
        compiled_bytes=_sum([program.bytes for program in programs]),
        xla_seconds=_sum([program.xla_seconds for program in programs]),
        xla_seconds_counted_ahead=_sum([program.counted_ahead for program in programs]),
        seconds=whole,
        seconds_by_kind=spent if whole else {},
        collectives=collectives,
        mfu=flops * subject.batch / whole / hardware.flops if whole else None,
        samples_per_second=subject.batch / whole if whole else None,
        cycle_seconds=whole - spent["compute"] + cycles if whole and cycles else None,
        compile_seconds=sum(program.compile_seconds for program in programs),
    )


def _network_seconds(collective: Collective, hardware: Hardware, mesh: Mesh) -> float:
    devices = list(mesh.devices.flat)
    group = [devices[place] for place in collective.members]
    return collective.bytes / network_rate(hardware, group, devices)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
