"""Memory of a picture's programs at full size, compiled ahead of time for accelerators that need not be there.

    JAX_PLATFORMS=cpu python -m benchmarks.memory --target h100
    JAX_PLATFORMS=cpu python -m benchmarks.memory --target v5e --size 1024 768

Needs the compilers: `pip install "jax[cuda13]"` for the H100, `pip install "jax[tpu]"` for TPUs. Figures are XLA's own
`memory_analysis()`, in MiB: the arguments that a program reads (its weights above all), results, temporaries. What a
picture takes at most are all weights, the conditions, which stay, and the results and temporaries of the program that
has most of them. "before" is the same with the products and
softmax in plain JAX, all scores at once.
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from fcjax import generation, presets
from fcjax.generation import PictureInputs, conditions_of_pictures, denoiser
from fcjax.models import attend
from fcjax.models.attend import attention_kernel
from fcjax.models.parameters import abstract_parameters
from fcjax.samplers import sampler_table
from fcjax.sampling import guidance_branches, guided_step, image_keys, make_guidance

# What NVIDIA's driver says of an H100 SXM, in the words of XLA's compiler.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929347584
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclass
class Settings:
    """What to compile."""

    target: Literal["h100", "v5e", "v5p", "v6e"] = "h100"
    size: tuple[int, int] = (512, 384)
    programs: tuple[Literal["conditions", "step", "image", "decode"], ...] = ("conditions", "step", "decode")
    """conditions: text, asset canvas and reference pass; step: one guided step; image: sampling and decoding in one."""
    images: int = 1
    preset: Literal["sd15", "mini"] = "sd15"
    before: bool = False
    """The attention that this one replaces, too."""


def device(target: str) -> jax.Device:
    if target == "h100":
        return topologies.get_topology_desc("", platform="cuda", topology="1x1x1", target_config=H100).devices[0]
    shape = "1x1x1" if target == "v5p" else "2x2"
    chips = (1, 1, 1)
    return topologies.get_topology_desc(
        f"{target}:{shape}", platform="tpu", chips_per_host_bounds=chips if target == "v5p" else (2, 2, 1)
    ).devices[0]


@contextlib.contextmanager
def kernel(target: str, before: bool) -> Iterator[None]:
    """The attention to compile; without chunks for what there was before."""
    name = "portable" if before else {"h100": "cudnn"}.get(target, "splash")
    kept = attend._SCORES_ELSEWHERE
    attend._SCORES_ELSEWHERE = 2**62 if before else kept
    try:
        with attention_kernel(name):
            yield
    finally:
        attend._SCORES_ELSEWHERE = kept


def programs(settings: Settings) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The functions and their abstract arguments, the weights first."""
    preset = presets.sd15() if settings.preset == "sd15" else presets.mini()
    config, images, dtype = preset.sized(settings.size), settings.images, jnp.bfloat16
    params = abstract_parameters(config, dtype)
    branches = guidance_branches(2.0)
    (height, width), assets, words = settings.size, config.max_assets, config.text_encoder.max_position_embeddings
    rows, columns = config.latent_height, config.latent_width
    shaped = jax.ShapeDtypeStruct
    given = PictureInputs(
        shaped((1, words), jnp.int32),
        shaped((words,), jnp.int32),
        shaped((1, assets, words), jnp.float32),
        shaped((1, height, width, 3), jnp.uint8),
        shaped((1, assets, rows, columns), jnp.float32),
        shaped((1, height, width, 2), jnp.float32),
        shaped((1, height, width, 3), jnp.float32),
    )
    prepare = functools.partial(conditions_of_pictures, config=config, branches=branches, images=images, dtype=dtype)
    conditions = jax.eval_shape(prepare, params, given)
    table, mixing, keys = sampler_table(config.diffusion, 20), make_guidance(branches, 2.0), image_keys(0, images)
    latents = shaped((images, rows, columns, config.vae.latent_channels), jnp.float32)
    state = (latents, latents)

    def step(params: Any, conditions: Any, table: Any, mixing: Any, keys: Any, state: Any) -> Any:
        denoise, index = denoiser(config, dtype), jnp.int32(3)
        return guided_step(denoise, (params["unet"], conditions), table, mixing, keys, index, state)

    def image(params: Any, conditions: Any, table: Any, mixing: Any, keys: Any, latents: Any) -> Any:
        return generation.generate(params, conditions, table, mixing, keys, latents, config=config, dtype=dtype)

    decode = functools.partial(generation.decode, config=config, dtype=dtype)
    loop = (conditions, table, mixing, keys)
    unet, rest = {"unet": params["unet"]}, {name: params[name] for name in ("unet", "vae")}
    return {
        "conditions": (prepare, (params, given)),
        "step": (step, (unet, *loop, state)),
        "image": (image, (rest, *loop, latents)),
        "decode": (decode, ({"vae": params["vae"]}, latents)),
    }


def main(settings: Settings) -> None:
    chosen = device(settings.target)
    where = SingleDeviceSharding(chosen)

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=where)

    height, width = settings.size
    print(f"jax {jax.__version__}, {chosen.device_kind}, bfloat16, {height}x{width}, {settings.images} images")
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(programs(settings)["conditions"][1][0]))
    print(f"all weights: {weights / 2**20:.0f} MiB")
    print(f"{'program':>12} {'attention':>10} {'arguments':>10} {'results':>10} {'temps':>10} {'sum':>10}")
    for before in (True, False) if settings.before else (False,):
        passing, kept = 0, 0
        for name in settings.programs:
            function, arguments = programs(settings)[name]
            arguments = jax.tree.map(placed, arguments)
            started = time.perf_counter()
            with kernel(settings.target, before):
                compiled = jax.jit(function).lower(*arguments).compile()
            found = compiled.memory_analysis()
            assert found is not None
            sizes = [found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes]
            figures = " ".join(f"{size / 2**20:>10.0f}" for size in (*sizes, sum(sizes)))
            passing = max(passing, sizes[1] + sizes[2])
            kept = sizes[1] if name == "conditions" else kept
            seconds = time.perf_counter() - started
            print(f"{name:>12} {'before' if before else 'now':>10} {figures}   compiled in {seconds:.0f} s", flush=True)
        print(f"{'at most':>12} {'before' if before else 'now':>10} {(weights + kept + passing) / 2**20:>43.0f}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
