"""Cycles of attention's kernels on a TPU, by the schedules of its compiler.

    JAX_PLATFORMS=cpu python -m benchmarks.kernels --hardware v5p:1x1x1

XLA estimates no time for them. Compiled ahead of time (`pip install "jax[tpu]"`, half a minute a shape), the compiler
writes down the instructions of each kernel's one loop, a bundle a cycle of a core: what it waits for memory comes on
top. `fcjax.hardware.Hardware.attention_cycles` come of three shapes of Stable Diffusion 1.5 at 512x384.
"""

import dataclasses
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import SingleDeviceSharding

from fcjax.hardware import Hardware, devices_of
from fcjax.models.attend import attend, attention_kernel
from fcjax.models.tpu_attention import LANES, blocks

PASSES = ("forward", "backward")
SLOTS = ("MXU", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "FILL", "VSTORE", "SPILL", "SALU")


@dataclasses.dataclass
class Settings:
    """What to compile."""

    hardware: str = "v5p:1x1x1"
    shapes: tuple[str, ...] = ("3072,6144,8,40", "768,1536,8,80", "3072,77,8,40")
    """Queries, keys, heads and numbers of a head."""
    batch: int = 2
    """A chip with two cores gives each a half."""
    dtype: str = "bfloat16"


def compile_attention(hardware: Hardware, device: Any, settings: Settings, shape: tuple[int, ...]) -> Any:
    """Forward and backward, with a mask of keys, for one device."""
    queries, keys, heads, size = shape
    sharding = SingleDeviceSharding(device)

    def given(*shape: int, dtype: str = settings.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((settings.batch, *shape), jnp.dtype(dtype), sharding=sharding)

    def total(query: Any, key: Any, value: Any, mask: Any) -> jax.Array:
        return jnp.sum(attend(query, key, value, mask).astype(jnp.float32))

    tokens = given(queries, heads, size), given(keys, heads, size), given(keys, heads, size)
    with attention_kernel(hardware.attention):
        return jax.jit(jax.grad(total, (0, 1, 2))).lower(*tokens, given(keys, dtype="bool")).compile()


def schedule(folder: Path, name: str) -> tuple[int, dict[str, float]]:
    """Bundles of a kernel's loop, and how full each kind of slot is. ValueError for one that is not there as it was."""
    found = {kind: sorted(folder.glob(f"*attention_{name}*{kind}.txt")) for kind in ("-final_bundles", "-utilization")}
    bundles = [path for path in found["-final_bundles"] if "schedule" not in path.name]
    usage = [path for path in found["-utilization"] if "final_hlo" in path.name]
    if len(bundles) != 1 or len(usage) != 1:
        raise ValueError(f"the compiler wrote {len(bundles)} schedules of the kernel {name}: expected one")
    lines = re.findall(r"^ *(?:0x)?([0-9a-f]+) +([A-Z ]*):", bundles[0].read_text(), re.MULTILINE)
    starts = [int(address, 16) for address, mark in lines if "LB" in mark]
    if len(starts) != 1:
        raise ValueError(f"the kernel {name} has {len(starts)} loops: expected the one over blocks")
    count = int(lines[-1][0], 16) - starts[0]
    rows = [line.split() for line in usage[0].read_text().splitlines() if re.fullmatch(r"[\d ]+", line)]
    table = np.asarray([row for row in rows if len(row) == len(SLOTS)], float)
    shares = table[1:][starts[0] :].sum(0) / table[0] / count
    return count, dict(zip(SLOTS, shares.tolist(), strict=True))


def main(settings: Settings) -> None:
    shapes = [tuple(int(number) for number in shape.split(",")) for shape in settings.shapes]
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = " ".join(filter(None, (os.environ.get("LIBTPU_INIT_ARGS"), flags)))
        hardware, devices = devices_of(settings.hardware)
        columns = ("pass", "queries", "keys", "size", "block", "cycles", "of 1024x1024", *SLOTS)
        print(" ".join(f"{column:>14}" for column in columns))
        for queries, keys, heads, size in shapes:
            for path in Path(folder).iterdir():
                path.unlink()
            compile_attention(hardware, devices[0], settings, (queries, keys, heads, size))
            filled = -(-keys // LANES) * LANES
            for name, block in zip(
                PASSES, blocks(queries, filled, size * jnp.dtype(settings.dtype).itemsize), strict=True
            ):
                cycles, shares = schedule(Path(folder), name)
                scores = block[0] * block[1]
                cells = [name, queries, keys, size, "x".join(map(str, block)), cycles, f"{cycles * 2**20 / scores:.0f}"]
                cells += [f"{share:.0%}" for share in shares.values()]
                print(" ".join(f"{cell!s:>14}" for cell in cells), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
