"""Memory of albums: what sampling so many pages at once takes, from XLA's own `memory_analysis()`.

    JAX_PLATFORMS=cpu python -m benchmarks.album --preset sd15

Pages of one batch look at the first one, so all lie in memory together; an album of any length is made in batches of
`batch_size` pages, the first one in each, by the programs of that many. Figures are MiB of bfloat16 at the preset's
size: what the conditions of all pages keep, the temporaries of making them, and those of a guided step whose tokens
use the first page's keys and values. "a page more" is the difference to the line above, for each page between: equal
numbers mean memory that grows in proportion. Weights come on top, once.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import SingleDeviceSharding

from fcjax import presets
from fcjax.config import ComposerConfig
from fcjax.hardware import devices_of
from fcjax.models.attention import Correspondence
from train.sampling_programs import sampling_programs

PRESETS = {"sd15": presets.sd15, "mini": presets.mini, "tiny": presets.tiny}


@dataclass
class Settings:
    """What to compile."""

    preset: Literal["sd15", "mini", "tiny"] = "sd15"
    size: tuple[int, int] | None = None
    batches: tuple[int, ...] = (1, 2, 4, 8)
    """Pages at once."""
    target: str = "cpu"
    """Hardware as `fcjax.hardware` names it, such as h100:1, which need not be there."""


def album_programs(config: ComposerConfig, pages: int, dtype: Any = jnp.bfloat16) -> dict[str, tuple[Any, Any]]:
    """The programs of a batch of pages, with guidance, and their abstract arguments."""
    shaped: Any = jax.ShapeDtypeStruct
    prepare, (params, given) = sampling_programs(config, 1, dtype)["conditions"]
    step, (unet, conditions, *rest) = sampling_programs(config, pages, dtype)["step"]
    rows = conditions.text.shape[0]
    levels = [(config.latent_height >> level) * (config.latent_width >> level) for level in range(config.unet.levels)]
    exchanged = [Correspondence(shaped((rows,), jnp.int32), shaped((rows, tokens), jnp.int32)) for tokens in levels]
    if pages > 1:
        conditions = conditions._replace(corresponding=tuple(exchanged))
    many = {
        name: leaf if name == "empty_ids" else shaped((pages, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in given._asdict().items()
        if leaf is not None
    }
    return {
        "conditions": (prepare, (params, given._replace(**many))),
        "step": (step, (unet, conditions, *rest)),
    }


def compiled_memory(program: tuple[Any, Any], device: Any) -> Any:
    """XLA's `memory_analysis()` of a program, compiled for a device."""
    function, arguments = program
    where = SingleDeviceSharding(device)
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), arguments)
    memory = jax.jit(function).lower(*placed).compile().memory_analysis()
    assert memory is not None
    return memory


def measure(config: ComposerConfig, pages: int, device: Any) -> dict[str, int]:
    """Bytes of a batch of pages: "kept", and the temporaries of "conditions" and of a "step"."""
    found = {name: compiled_memory(program, device) for name, program in album_programs(config, pages).items()}
    temporaries = {name: memory.temp_size_in_bytes for name, memory in found.items()}
    return {"kept": found["conditions"].output_size_in_bytes, **temporaries}


def main(settings: Settings) -> None:
    """Compile and print."""
    config = PRESETS[settings.preset]().sized(settings.size)
    device = jax.devices()[0] if settings.target == "cpu" else devices_of(settings.target)[1][0]
    print(f"jax {jax.__version__}, {device.device_kind}, {settings.preset}, {config.height}x{config.width}, MiB")
    names = ("kept", "conditions", "step")
    print("".join(f"{word:>16}" for word in ("pages at once", *names, "a page more")))
    before: tuple[int, int] | None = None
    for pages in settings.batches:
        started = time.perf_counter()
        found = measure(config, pages, device)
        whole = found["kept"] + max(found["conditions"], found["step"])
        more = "" if before is None else f"{(whole - before[1]) / (pages - before[0]) / 2**20:.1f}"
        cells = (str(pages), *(f"{found[name] / 2**20:.1f}" for name in names), more)
        print(
            "".join(f"{cell:>16}" for cell in cells), f"  compiled in {time.perf_counter() - started:.0f} s", flush=True
        )
        before = pages, whole


if __name__ == "__main__":
    main(tyro.cli(Settings))
