"""The jitted programs between arrays and pictures: conditions once, then noise to images.

`Composer` (one request, several images) and training's sample grids (several requests) call the same functions. Rows of
conditions are branch-major: all requests' images of the first guidance branch, then those of the second.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from fcjax.config import ComposerConfig
from fcjax.models import composer as model
from fcjax.models.attention import Correspondence
from fcjax.models.layers import FLOAT32, Dtype
from fcjax.samplers import SamplerTable
from fcjax.sampling import Branch, Denoiser, Guidance, Progress, sample, sample_stepwise


class Inputs(NamedTuple):
    """What n requests say, as arrays (see `models.composer.appearance_features` and `denoise`)."""

    ids: Int[Array, "n k"]
    empty_ids: Int[Array, "k"]
    spans: Float[Array, "n a k"]
    canvas: Float[Array, "n h w c"]  # of `read_canvas`
    masks: Float[Array, "n a h w"]
    channels: Float[Array, "n h w p"]  # of the pose, of try-on or of both


class Conditions(NamedTuple):
    """All that stays the same over the steps, a row for every image of every guidance branch.

    corresponding: of albums, for every level of the UNet, whose keys and values its tokens use.
    """

    text: Float[Array, "r k e"]
    channels: Float[Array, "r h w p"]
    features: model.AppearanceFeatures
    corresponding: tuple[Correspondence, ...] | None = None


def make_conditions(
    params: dict[str, Any],
    config: ComposerConfig,
    inputs: Inputs,
    branches: tuple[Branch, ...],
    images: int = 1,
    *,
    dtype: Dtype = FLOAT32,
) -> Conditions:
    """Conditions for `images` images of each request. The reference pass runs once, always with the full prompt."""
    requests = inputs.ids.shape[0]
    text, no_text = model.encode_prompts(params, config, inputs.ids, inputs.empty_ids[None], dtype=dtype)
    features = model.appearance_features(params, config, inputs.canvas, text, inputs.spans, inputs.masks, dtype=dtype)
    rows = np.tile(np.repeat(np.arange(requests), images), len(branches))
    features = jax.tree.map(lambda leaf: leaf[rows], features)
    has_text = np.repeat([branch.text for branch in branches], requests * images)
    has_reference = np.repeat([branch.reference for branch in branches], requests * images)
    return Conditions(
        jnp.where(has_text[:, None, None], text[rows], no_text),
        inputs.channels[rows],
        model.keep_assets(features, jnp.asarray(has_reference)),
    )


class PictureInputs(NamedTuple):
    """What n requests say before anything is encoded (`fcjax.preparation.prepare`), all of the picture's size.

    `uv` and `places` are for models that take a pose, `persons` and `person_masks` for those that try on.
    """

    ids: Int[Array, "n k"]
    empty_ids: Int[Array, "k"]
    spans: Float[Array, "n a k"]
    canvases: UInt8[Array, "n H W 3"]
    masks: Float[Array, "n a h w"]
    uv: Float[Array, "n H W 2"] | None = None
    places: Float[Array, "n H W 3"] | None = None  # `fcjax.body.rest_places` of `uv`
    persons: UInt8[Array, "n H W 3"] | None = None  # cloth-agnostic
    person_masks: Float[Array, "n H W"] | None = None  # 1: to be filled


@functools.partial(jax.jit, static_argnames=("config", "branches", "images", "dtype"))
def conditions_of_pictures(
    params: dict[str, Any],
    given: PictureInputs,
    *,
    config: ComposerConfig,
    branches: tuple[Branch, ...],
    images: int,
    dtype: Dtype,
) -> Conditions:
    """`make_conditions` from pictures. ValueError where what the model reads is missing."""

    def scaled(pictures: UInt8[Array, "n H W 3"]) -> Float[Array, "n H W 3"]:
        return pictures.astype(jnp.float32) / 127.5 - 1.0

    canvas = model.read_canvas(params, config, scaled(given.canvases), dtype=dtype)
    needed = ["persons" if name == "person_latents" else name for name in model.condition_arrays(config)]
    if missing := [name for name in needed if getattr(given, name) is None]:
        raise ValueError(f"PictureInputs of a model that reads {config.condition} lack {' and '.join(missing)}")
    shown = {name: getattr(given, name) for name in needed}
    if config.tries_on:
        shown["person_latents"] = model.encode_images(params, config, scaled(shown["persons"]), dtype=dtype)
    channels = model.condition_channels(config, shown)
    inputs = Inputs(given.ids, given.empty_ids, given.spans, canvas, given.masks, channels)
    return make_conditions(params, config, inputs, branches, images, dtype=dtype)


@functools.lru_cache
def denoiser(config: ComposerConfig, dtype: Dtype) -> Denoiser:
    """The denoiser over all branches at once, one object for each config: compiled programs are kept by it.

    Its conditions are (`models.composer.denoising_parameters`, `Conditions`).
    """

    def denoise(
        conditions: tuple[dict[str, Any], Conditions], latents: Float[Array, "b h w c"], timestep: Float[Array, ""]
    ) -> Float[Array, "p b h w c"]:
        params, given = conditions
        rows = given.text.shape[0]
        branches = rows // latents.shape[0]
        outputs = model.denoise(
            params,
            config,
            jnp.tile(latents, (branches, 1, 1, 1)),
            jnp.full((rows,), timestep),
            given.text,
            given.channels,
            given.features,
            None if given.corresponding is None else dict(enumerate(given.corresponding)),
            dtype=dtype,
        )
        return outputs.reshape(branches, *latents.shape)

    return denoise


def decode(
    params: dict[str, Any], latents: Float[Array, "b h w c"], *, config: ComposerConfig, dtype: Dtype
) -> UInt8[Array, "b H W 3"]:
    """Latents to pictures of 8 bits, in one program. ValueError where they hold NaN (not while it is traced)."""
    return _numbers(*_decode(params, latents, config=config, dtype=dtype))


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _decode(
    params: dict[str, Any], latents: Float[Array, "b h w c"], *, config: ComposerConfig, dtype: Dtype
) -> tuple[UInt8[Array, "b H W 3"], Bool[Array, ""]]:
    """The pictures, and whether all that they were made of are numbers, which 8 bits do not tell any more."""
    images = model.decode_latents(params, config, latents, dtype=dtype)
    return to_bytes(images), jnp.isfinite(images).all()


def _numbers(pictures: UInt8[Array, "b H W 3"], finite: Bool[Array, ""]) -> UInt8[Array, "b H W 3"]:
    if not isinstance(finite, Tracer) and not finite:
        raise ValueError(
            "the model drew NaN or infinite numbers, no pictures: its weights hold some, or the type that it computes "
            "in is too small for them (float32 instead of bfloat16 or float16 may help)"
        )
    return pictures


def to_bytes(images: Float[Array, "b H W 3"]) -> UInt8[Array, "b H W 3"]:
    """Pictures in [-1, 1] as pictures of 8 bits."""
    return jnp.round((images + 1.0) * 127.5).astype(jnp.uint8)


def generate(
    params: dict[str, Any],
    conditions: Conditions,
    table: SamplerTable,
    guidance: Guidance,
    keys: Key[Array, "b"],
    latents: Float[Array, "b h w c"],
    *,
    config: ComposerConfig,
    dtype: Dtype,
) -> UInt8[Array, "b H W 3"]:
    """From noise and conditions to pictures in one program; arguments as `sampling.sample`, b images in all.

    ValueError as `decode`.
    """
    return _numbers(*generate_unchecked(params, conditions, table, guidance, keys, latents, config=config, dtype=dtype))


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def generate_unchecked(
    params: dict[str, Any],
    conditions: Conditions,
    table: SamplerTable,
    guidance: Guidance,
    keys: Key[Array, "b"],
    latents: Float[Array, "b h w c"],
    *,
    config: ComposerConfig,
    dtype: Dtype,
) -> tuple[UInt8[Array, "b H W 3"], Bool[Array, ""]]:
    """The same with the answer whether the pictures were made of numbers alone, for whoever runs it in a program of its
    own, which cannot refuse them.
    """
    clean = sample(
        denoiser(config, dtype), (model.denoising_parameters(params), conditions), table, guidance, keys, latents
    )
    return _decode(params, clean, config=config, dtype=dtype)


def denoise_stepwise(
    params: dict[str, Any],
    conditions: Conditions,
    table: SamplerTable,
    guidance: Guidance,
    keys: Key[Array, "b"],
    latents: Float[Array, "b h w c"],
    progress: Progress | None = None,
    *,
    config: ComposerConfig,
    dtype: Dtype,
) -> Float[Array, "b h w c"]:
    """From noise to clean latents, the step jitted and driven from Python (`sampling.sample_stepwise`)."""
    given = (model.denoising_parameters(params), conditions)
    return sample_stepwise(denoiser(config, dtype), given, table, guidance, keys, latents, progress)


def generate_stepwise(
    params: dict[str, Any],
    conditions: Conditions,
    table: SamplerTable,
    guidance: Guidance,
    keys: Key[Array, "b"],
    latents: Float[Array, "b h w c"],
    progress: Progress | None = None,
    *,
    config: ComposerConfig,
    dtype: Dtype,
) -> UInt8[Array, "b H W 3"]:
    """The same with its step jitted and driven from Python (`sampling.sample_stepwise`), to report and to cancel."""
    clean = denoise_stepwise(params, conditions, table, guidance, keys, latents, progress, config=config, dtype=dtype)
    return decode(params, clean, config=config, dtype=dtype)
