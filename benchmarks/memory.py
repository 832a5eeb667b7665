"""Memory of a picture's programs at full size, compiled ahead of time for accelerators that need not be there.

    JAX_PLATFORMS=cpu python -m benchmarks.memory --target h100
    JAX_PLATFORMS=cpu python -m benchmarks.memory --target v5e --size 1024 768

Needs the compilers: `pip install "jax[cuda13]"` for the H100, `pip install "jax[tpu]"` for TPUs. Figures are XLA's own
`memory_analysis()`, in MiB: the arguments that a program reads (its weights above all), results, temporaries. What a
picture takes at most are all weights, the conditions, which stay, and the results and temporaries of the program that
has most of them. With --before there is a peer, products and softmax in plain JAX with all scores at once, and the
ratio of its temporaries to ours.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import SingleDeviceSharding

from fcjax import presets
from fcjax.hardware import HARDWARE, devices_of
from fcjax.models import attend
from fcjax.models.attend import attention_kernel
from train.sampling_programs import sampling_programs


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


@contextlib.contextmanager
def kernel(target: str, before: bool) -> Iterator[None]:
    """The attention to compile; without chunks for what there was before."""
    name = "portable" if before else HARDWARE[target].attention
    kept = attend._SCORES_ELSEWHERE
    attend._SCORES_ELSEWHERE = 2**62 if before else kept
    try:
        with attention_kernel(name):
            yield
    finally:
        attend._SCORES_ELSEWHERE = kept


def main(settings: Settings) -> None:
    sizes = {"h100": "1", "v5p": "1x1x1"}
    _, [chosen, *_] = devices_of(f"{settings.target}:{sizes.get(settings.target, '2x2')}")
    where = SingleDeviceSharding(chosen)
    preset = presets.sd15() if settings.preset == "sd15" else presets.mini()
    programs = sampling_programs(preset.sized(settings.size), settings.images, jnp.bfloat16)

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=where)

    height, width = settings.size
    print(f"jax {jax.__version__}, {chosen.device_kind}, bfloat16, {height}x{width}, {settings.images} images")
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(programs["conditions"][1][0]))
    print(f"all weights: {weights / 2**20:.0f} MiB")
    print(f"{'program':>12} {'attention':>10} {'arguments':>10} {'results':>10} {'temps':>10} {'sum':>10}")
    temporaries: dict[str, int] = {}
    for before in (True, False) if settings.before else (False,):
        passing, kept = 0, 0
        for name in settings.programs:
            function, arguments = programs[name]
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
            ratio = (
                f", {temporaries[name] / max(sizes[2], 1):.1f} times less than before" if name in temporaries else ""
            )
            print(
                f"{name:>12} {'before' if before else 'now':>10} {figures}   compiled in {seconds:.0f} s{ratio}",
                flush=True,
            )
            temporaries[name] = sizes[2]
        print(f"{'at most':>12} {'before' if before else 'now':>10} {(weights + kept + passing) / 2**20:>43.0f}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
