"""A whole picture at Stable Diffusion 1.5's size on this machine: seconds of every stage, and memory.

    python -m benchmarks.image --dtype float32
    python -m benchmarks.image --size 1024 768    # on a GPU

Both UNets, VAE and text encoder have random weights; six asset images are on the canvas, guidance has two branches.
Stages: conditions (text encoder, the canvas through the VAE, the reference UNet), the guided steps, decoding. The first
run, of one step, compiles (nothing is read from a cache of programs), the second is what a picture takes. Memory is the
device's own peak where it tells it, else the largest anonymous resident memory of the process (Linux).
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.loading import watched
from fcjax import presets
from fcjax.config import ComposerConfig
from fcjax.generation import PictureInputs, conditions_of_pictures, decode, denoiser
from fcjax.models.composer import denoising_parameters
from fcjax.models.parameters import abstract_parameters
from fcjax.samplers import sampler_table
from fcjax.sampling import guidance_branches, image_keys, initial_latents, make_guidance, sample_stepwise


@dataclasses.dataclass
class Settings:
    """What to draw."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    size: tuple[int, int] = (512, 384)
    steps: int = 20
    preset: Literal["sd15", "mini"] = "sd15"


def random_parameters(config: ComposerConfig, dtype: Any) -> dict[str, Any]:
    """Small values without zeros, drawn on the device leaf by leaf."""
    leaves, structure = jax.tree.flatten(abstract_parameters(config, dtype))
    draw = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(structure, [draw(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


def random_inputs(config: ComposerConfig) -> PictureInputs:
    """A request's arrays; what is in them is no matter for how long it takes."""
    generator, (height, width) = np.random.default_rng(0), (config.height, config.width)
    assets, words = config.max_assets, config.text_encoder.max_position_embeddings
    # Six upright strips of the canvas, one phrase of two tokens each.
    columns = np.arange(config.latent_width) * assets // config.latent_width
    masks = np.repeat((columns == np.arange(assets)[:, None])[:, None], config.latent_height, axis=1)
    spans = (np.arange(words) // 2 - 2 == np.arange(assets)[:, None]).astype(np.float32)
    arrays = PictureInputs(
        ids=generator.integers(0, 1000, (1, words), np.int32),
        empty_ids=np.zeros(words, np.int32),
        spans=spans[None],
        canvases=generator.integers(0, 256, (1, height, width, 3), np.uint8),
        masks=masks[None].astype(np.float32),
        uv=generator.random((1, height, width, 2), np.float32),
        places=generator.random((1, height, width, 3), np.float32),
    )
    return jax.tree.map(jnp.asarray, arrays)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - started, result


def stages(settings: Settings, config: ComposerConfig, params: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of one picture: conditions, every step, decoding."""
    dtype, branches = jnp.dtype(settings.dtype), guidance_branches(2.0)
    given, keys = random_inputs(config), image_keys(0, 1)
    conditions_seconds, conditions = timed(
        lambda: conditions_of_pictures(params, given, config=config, branches=branches, images=1, dtype=dtype)
    )
    table = sampler_table(config.diffusion, settings.steps)
    latents = initial_latents(table, keys, config.latent_height, config.latent_width, config.vae.latent_channels)
    ends = [time.perf_counter()]

    def tick(done: int, steps: int, latents: jax.Array) -> None:
        jax.block_until_ready(latents)
        ends.append(time.perf_counter())

    model = (denoising_parameters(params), conditions)
    clean = sample_stepwise(denoiser(config, dtype), model, table, make_guidance(branches, 2.0), keys, latents, tick)
    decode_seconds, picture = timed(lambda: decode(params, clean, config=config, dtype=dtype))
    assert picture.shape == (1, config.height, config.width, 3)
    return {"conditions": [conditions_seconds], "guided step": list(np.diff(ends)), "decode": [decode_seconds]}


def main(settings: Settings) -> None:
    preset = presets.sd15() if settings.preset == "sd15" else presets.mini()
    config, device = preset.sized(settings.size), jax.devices()[0]
    jax.config.update("jax_enable_compilation_cache", False)
    with watched() as memory:
        params = jax.block_until_ready(random_parameters(config, jnp.dtype(settings.dtype)))
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        # One step compiles what any number of them runs.
        first = stages(dataclasses.replace(settings, steps=1), config, params)
        second = stages(settings, config, params)
    height, width = settings.size
    print(f"jax {jax.__version__}, {device.device_kind}, {settings.dtype}, {height}x{width}, {settings.steps} steps")
    for name, seconds in second.items():
        compiling = sum(first[name]) - statistics.median(seconds)
        each = f" ({len(seconds)} of {statistics.median(seconds):.4g} s)" if len(seconds) > 1 else ""
        print(f"{name:>12}: {sum(seconds):.4g} s{each}, and {compiling:.0f} s the first time")
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use", memory.most)
    total = sum(sum(seconds) for seconds in second.values())
    print(f"{'picture':>12}: {total:.4g} s; memory at most {peak / 2**20:.0f} MiB, {weights / 2**20:.0f} of it weights")


if __name__ == "__main__":
    main(tyro.cli(Settings))
