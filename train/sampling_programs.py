"""The programs of composing as functions with abstract arguments: for the planner and benchmarks, which run none."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fcjax import generation
from fcjax.config import ComposerConfig
from fcjax.generation import PictureInputs, conditions_of_pictures, denoiser
from fcjax.models.composer import denoising_parameters
from fcjax.models.layers import Dtype
from fcjax.models.parameters import abstract_parameters
from fcjax.samplers import sampler_table
from fcjax.sampling import SamplerState, guidance_branches, guided_step, image_keys, make_guidance


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
    if config.tries_on:
        given = given._replace(persons=given.canvases, person_masks=shaped((1, *size), jnp.float32))
    if config.takes_pose:
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
