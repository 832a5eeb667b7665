"""A program compiled ahead of time for hardware that need not be there, and what its compilation says."""

import dataclasses
import math
import time
from typing import Any

import jax
from jax.sharding import Mesh

from fcjax.hardware import Hardware
from fcjax.models.attend import attention_kernel
from train.cost import Collective, collectives_of, cycles_of, needed_memory, traffic_of

# What plain products and copies reach of an H100's 989 TFLOP/s and 3.35 TB/s: 798 and 3.0 were measured.
PRODUCT_SHARE = 0.8
BANDWIDTH_SHARE = 0.9
# XLA's EFFORT_O1: the same kernels, neither fetched ahead nor laid out with care, in a fraction of the time.
_FIRST_LEVEL = {"optimization_level": 19}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a program's compilation says, of one device.

    flops, bytes, xla_seconds, cycles: on a TPU of the program without what it fetches ahead, which XLA counts as often
      as four times.
    laid_out: the cycles, loops as often as they run, of the program as it would run; 0 where that was not compiled.
    counted_ahead: XLA's estimate of that program as XLA gives it, with what is fetched ahead; None where not compiled.
    refused: for want of memory.
    """

    arguments: float
    temporaries: float
    results: float
    code: float
    flops: float | None
    bytes: float | None
    xla_seconds: float | None
    cycles: tuple[float, float]
    traffic: float
    collectives: list[Collective]
    compile_seconds: float
    laid_out: float = 0.0
    counted_ahead: float | None = None
    refused: bool = False

    def beside(self, held: float) -> dict[str, float]:
        """Bytes that lie beside the `held` numbers of the arguments: what their tiles pad, and the program."""
        return {"padding": max(self.arguments - held, 0.0), "program": self.code}

    def seconds(self, hardware: Hardware, flops: float, kernels: float, collectives: float) -> dict[str, float]:
        """By what takes them. flops: the model's own, on this device; kernels, collectives: their seconds."""
        if self.xla_seconds:
            return {
                "compute": self.ideal_seconds(hardware),
                "memory": 0.0,
                "attention": kernels,
                "collectives": collectives,
            }
        return {
            "compute": flops / (PRODUCT_SHARE * hardware.flops),
            "memory": self.traffic / (BANDWIDTH_SHARE * hardware.bandwidth),
            "attention": 0.0,
            "collectives": collectives,
        }

    def ideal_seconds(self, hardware: Hardware) -> float:
        """XLA's estimate, each kernel's FLOPs or bytes at the peak rates, mended where it is known to be wrong."""
        once, whole = (cycles / hardware.clock for cycles in self.cycles)
        assert self.xla_seconds is not None
        # It takes a second off for a kernel whose time it does not know. By its own count of cycles kernels that are
        # laid out without care take 3 to 4 times their ideal, small ones more. And it takes a loop's body once.
        unknown = max(math.ceil(max(once / 4 - 0.1, 0.0) - self.xla_seconds), 0)
        return (self.xla_seconds + unknown) * (whole / once if once else 1.0)


def compile_ahead(
    function: Any, arguments: tuple[Any, ...], mesh: Mesh, hardware: Hardware, quick: bool = False
) -> Compiled:
    """Of a jitted function and abstract arguments with shardings. What does not fit is `refused`, its needs told.

    quick: for a TPU at XLA's first level alone.
    """
    began = time.perf_counter()
    quick = quick and hardware.platform == "tpu"
    with jax.set_mesh(mesh), attention_kernel(hardware.attention):
        lowered = function.lower(*arguments)
        try:
            first = lowered.compile(compiler_options=_FIRST_LEVEL) if hardware.platform == "tpu" else None
            compiled = first if first and quick else lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed, held = needed_memory(str(error)), held_bytes(arguments)
            if needed is None:
                raise
            passed = time.perf_counter() - began
            return Compiled(held, needed - held, 0.0, 0.0, None, None, None, (0.0, 0.0), 0.0, [], passed, refused=True)
    passed = time.perf_counter() - began
    memory, text, cost = compiled.memory_analysis(), compiled.as_text() or "", (first or compiled).cost_analysis() or {}
    return Compiled(
        arguments=float(memory.argument_size_in_bytes),
        temporaries=float(memory.temp_size_in_bytes),
        results=float(memory.output_size_in_bytes),
        code=float(memory.generated_code_size_in_bytes),
        flops=cost.get("flops"),
        bytes=cost.get("bytes accessed"),
        xla_seconds=cost.get("optimal_seconds"),
        cycles=cycles_of((first or compiled).as_text() or ""),
        laid_out=0.0 if compiled is first else cycles_of(text)[1],
        counted_ahead=(compiled.cost_analysis() or {}).get("optimal_seconds") if first and not quick else None,
        # On a TPU the estimates of time know the bytes.
        traffic=0.0 if hardware.platform == "tpu" else traffic_of(text),
        collectives=collectives_of(text, mesh.size),
        compile_seconds=passed,
    )


def laid(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """An abstract array, placed."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def held_bytes(tree: Any) -> float:
    """Bytes on one device."""
    return float(
        sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    )
