"""The guided sampling loop around a denoiser, for any sampler that `fcjax.samplers` writes as a table.

No model is imported: a denoiser is a function

    denoise(conditions, latents (b, h, w, c), timestep ()) -> outputs (p, b, h, w, c)

which returns the network's raw output for the p guidance branches of the call, in the order of `guidance_branches`.
`conditions` is any pytree (parameters, text, pose, the reference keys and values computed once beforehand). The
function itself must be the same object from call to call, because compiled programs are kept by it.

There are two drivers of one step: `sample` runs it inside one traceable loop (to jit together with encoding and
decoding, or to export), `sample_stepwise` jits the step and loops in Python, reports progress and can be cancelled.
The number of steps (up to the table's bound), the sampler, guidance scales, seeds and conditions are data to both;
the number of branches and of images is a shape.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from fcjax.samplers import SamplerTable, sampler_step

Denoiser = Callable[[Any, Array, Array], Array]
Progress = Callable[[int, int, Array], bool | None]


class SamplingCancelledError(RuntimeError):
    """A progress callback returned False."""


# ---------------------------------------------------------------------------------------------------------------------
# Guidance


class Branch(NamedTuple):
    """What the denoiser sees in one branch of classifier-free guidance (pose or try-on channels are never dropped)."""

    text: bool
    reference: bool


FULL = Branch(text=True, reference=True)
REFERENCE_ONLY = Branch(text=False, reference=True)
UNCONDITIONAL = Branch(text=False, reference=False)


def guidance_branches(guidance: float, reference_guidance: float | None = None) -> tuple[Branch, ...]:
    """The branches that these scales need, the full one first.

    One scale (`reference_guidance` None): the unconditional branch drops text and assets together. Two scales: text
    guidance starts from a branch that still sees the assets, reference guidance from one that sees neither. A branch
    whose weight would be zero is not run: no guidance (1) is a single branch.
    """
    if reference_guidance is None:
        return (FULL,) if guidance == 1.0 else (FULL, UNCONDITIONAL)
    if reference_guidance == 1.0:
        return (FULL,) if guidance == 1.0 else (FULL, REFERENCE_ONLY)
    return (FULL, UNCONDITIONAL) if guidance == reference_guidance else (FULL, REFERENCE_ONLY, UNCONDITIONAL)


class Guidance(NamedTuple):
    """How the branches' outputs become one. Numbers are data: they change without recompiling as long as the branches
    stay the same.
    """

    weights: Float[Array, "p"]
    """Of each branch's output, summing to 1."""
    rescale: Float[Array, ""]
    """How far the guided output returns to the standard deviation of the full branch's, 0 not at all to 1."""


def make_guidance(
    branches: tuple[Branch, ...], guidance: float, reference_guidance: float | None = None, rescale: float = 0.0
) -> Guidance:
    """What `guide` needs of these scales.

    With e(text, reference) the outputs, the guided output is

        e(0, 0) + reference_guidance (e(0, R) - e(0, 0)) + guidance (e(T, R) - e(0, R))

    (as InstructPix2Pix, arXiv 2211.09800, has it for its image and text); one scale is the case of two equal ones.
    `rescale` is guidance rescale (arXiv 2305.08891, section 3.4), against pictures that strong guidance over-exposes.
    """
    reference_scale = guidance if reference_guidance is None else reference_guidance
    for name, value in (("guidance", guidance), ("reference_guidance", reference_scale)):
        if not -1e4 < value < 1e4:
            raise ValueError(f"{name} must be a finite number (1 switches it off), got {value}")
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"guidance_rescale must lie between 0 (off) and 1, got {rescale}")
    weights = {FULL: guidance, REFERENCE_ONLY: reference_scale - guidance, UNCONDITIONAL: 1.0 - reference_scale}
    missing = [branch for branch, weight in weights.items() if branch not in branches and weight != 0.0]
    if missing or len(set(branches)) != len(branches) or not set(branches) <= set(weights) or branches[0] != FULL:
        raise ValueError(f"branches {branches} cannot carry guidance {guidance} and {reference_guidance}")
    return Guidance(jnp.asarray([weights[branch] for branch in branches], jnp.float32), jnp.float32(rescale))


def guide(guidance: Guidance, outputs: Float[Array, "p b h w c"]) -> Float[Array, "b h w c"]:
    """One output of those of all branches, the full one's first."""
    outputs = outputs.astype(jnp.float32)
    guided = jnp.einsum("p,pbhwc->bhwc", guidance.weights, outputs, precision=jax.lax.Precision.HIGHEST)
    full, after = (jnp.std(array, axis=(1, 2, 3), keepdims=True) for array in (outputs[0], guided))
    # An output that says nothing (zeros, of a network before training) has no deviation to divide by.
    ratio = jnp.where(after > 0.0, full / jnp.where(after > 0.0, after, 1.0), 1.0)
    return guided * (1.0 + guidance.rescale * (ratio - 1.0))


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


def image_keys(seed: int, num_images: int) -> Key[Array, "b"]:
    """One key an image: image i of a call has the seed `seed + i`, so it can be made again alone.

    The generator is named (threefry), and so is its way of drawing where noise is drawn, so that JAX's settings of them
    (jax_default_prng_impl, jax_threefry_partitionable) cannot change what a seed means.
    """
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    if not 0 <= seed <= 2**32 - num_images:
        raise ValueError(f"seeds must lie between 0 and {2**32 - 1}, got {seed} for {num_images} images")
    seeds = jnp.uint32(seed) + jnp.arange(num_images, dtype=jnp.uint32)
    return jax.vmap(partial(jax.random.key, impl="threefry2x32"))(seeds)


def _noise(keys: Key[Array, "b"], use: int | Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Unit Gaussian noise, each image's from its own key; `use` 0 is the start, i + 1 what step i adds."""
    with jax.threefry_partitionable(True):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, use), shape, jnp.float32))(keys)


def initial_latents(
    table: SamplerTable, keys: Key[Array, "b"], height: int, width: int, channels: int
) -> Float[Array, "b h w c"]:
    """The noise that sampling starts from; `height` and `width` are those of the latents."""
    return table.initial_scale * _noise(keys, 0, (height, width, channels))


# ---------------------------------------------------------------------------------------------------------------------
# The loop


class SamplerState(NamedTuple):
    """What a step hands to the next: the latents and the last denoised estimate."""

    latents: Float[Array, "b h w c"]
    denoised: Float[Array, "b h w c"]


def guided_step(
    denoise: Denoiser,
    conditions: PyTree,
    table: SamplerTable,
    guidance: Guidance,
    keys: Key[Array, "b"],
    index: Int[Array, ""],
    state: SamplerState,
) -> SamplerState:
    """Step `index` of the sampler: all branches of the denoiser, guidance, one row of the table."""
    latents, denoised = state
    outputs = denoise(conditions, latents, table.timesteps[index])
    expected = (len(guidance.weights), *latents.shape)
    if outputs.shape != expected:
        raise ValueError(
            f"the denoiser returned {outputs.shape}; {expected[0]} guidance branches of latents {latents.shape} "
            f"need {expected}"
        )
    noise = _noise(keys, index + 1, latents.shape[1:])
    return SamplerState(*sampler_step(table, index, latents, guide(guidance, outputs), denoised, noise))


def sample(
    denoise: Denoiser,
    conditions: PyTree,
    table: SamplerTable,
    guidance: Guidance,
    keys: Key[Array, "b"],
    latents: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """From initial latents to clean ones in one traceable loop of `table.steps` steps.

    `guidance` comes from `make_guidance`, `keys` from `image_keys` (read only by samplers that add noise), `latents`
    from `initial_latents`. Not jitted here, so that a caller can jit it together with what surrounds it.
    """

    def body(index: Array, state: SamplerState) -> SamplerState:
        return guided_step(denoise, conditions, table, guidance, keys, index, state)

    latents = latents.astype(jnp.float32)
    return jax.lax.fori_loop(0, table.steps, body, SamplerState(latents, jnp.zeros_like(latents))).latents


guided_step_jitted = jax.jit(guided_step, static_argnames="denoise")


def sample_stepwise(
    denoise: Denoiser,
    conditions: PyTree,
    table: SamplerTable,
    guidance: Guidance,
    keys: Key[Array, "b"],
    latents: Float[Array, "b h w c"],
    progress: Progress | None = None,
) -> Float[Array, "b h w c"]:
    """The same loop with its step jitted and driven from Python.

    `progress(done, steps, denoised)` is called after each step with the number of steps done and the current estimate
    of the clean latents; when it returns False, `SamplingCancelledError` is raised.
    """
    steps = int(table.steps)
    latents = jnp.asarray(latents, jnp.float32)
    state = SamplerState(latents, jnp.zeros_like(latents))
    for index in range(steps):
        state = guided_step_jitted(denoise, conditions, table, guidance, keys, jnp.int32(index), state)
        if progress is not None and progress(index + 1, steps, state.denoised) is False:
            raise SamplingCancelledError(f"cancelled after step {index + 1} of {steps}")
    return state.latents
