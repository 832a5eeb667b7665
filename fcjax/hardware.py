"""Accelerators by name, and their devices for programs that are compiled where none is."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

# What NVIDIA's driver says of a GPU, in the words of XLA's compiler.
_GPU = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared} shared_memory_per_core: {shared_core}
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "{name}"
"""
_H100 = _GPU.format(
    major=9,
    shared=232448,
    shared_core=233472,
    cores=132,
    fpus=128,
    clock=1.98,
    bandwidth=3352320000000,
    cache=52428800,
    memory=84929347584,
    name="NVIDIA H100 80GB HBM3",
)
_A100 = _GPU.format(
    major=8,
    shared=166912,
    shared_core=167936,
    cores=108,
    fpus=64,
    clock=1.41,
    bandwidth=2039000000000,
    cache=41943040,
    memory=84986691584,
    name="NVIDIA A100-SXM4-80GB",
)


@dataclass(frozen=True)
class Hardware:
    """One device as its maker describes it: bytes, FLOP/s in bfloat16 (dense), bytes/s.

    network: between the devices of a slice or node, into each device; between slices or nodes: `slow_network`.
    attention: the kernel of `fcjax.models.attend` that it runs.
    """

    platform: str
    memory: float
    flops: float
    bandwidth: float
    network: float
    slow_network: float = 6.25e9
    attention: str = "portable"
    target: str = ""
    host: tuple[int, ...] = (1, 1, 1)


_GIB = 2.0**30
HARDWARE: dict[str, Hardware] = {
    "v4": Hardware("tpu", 32 * _GIB, 275e12, 1228e9, 300e9, attention="splash", host=(2, 2, 1)),
    "v5e": Hardware("tpu", 16 * _GIB, 197e12, 819e9, 200e9, attention="splash", host=(2, 4, 1)),
    "v5p": Hardware("tpu", 95 * _GIB, 459e12, 2765e9, 600e9, attention="splash", host=(2, 2, 1)),
    "v6e": Hardware("tpu", 32 * _GIB, 918e12, 1640e9, 448e9, attention="splash", host=(2, 4, 1)),
    # A chip is two devices.
    "tpu7x": Hardware("tpu", 96 * _GIB, 1153e12, 3690e9, 600e9, attention="splash", host=(2, 2, 1)),
    "h100": Hardware("cuda", 79 * _GIB, 989e12, 3352e9, 450e9, 50e9, "cudnn", _H100),
    "a100": Hardware("cuda", 79 * _GIB, 312e12, 2039e9, 300e9, 25e9, "cudnn", _A100),
    "cpu": Hardware("cpu", 8 * _GIB, 1e12, 20e9, 10e9),
}


def devices_of(name: str) -> tuple[Hardware, list[Any]]:
    """The devices of "v5p:2x2x4" (chips along each axis), "h100:8" (GPUs), or "cpu:8" (simulated).

    ValueError for a name that is none of these, and, naming what to install, without the compiler.
    """
    kind, _, shape = name.partition(":")
    sizes = [int(size) if size.isdecimal() else 0 for size in shape.split("x")]
    if kind not in HARDWARE or min(sizes) < 1 or len(sizes) > (3 if HARDWARE[kind].platform == "tpu" else 1):
        raise ValueError(
            f"there is no hardware {name!r}: name one of {', '.join(HARDWARE)} and its size, as v5p:2x2x4, v5e:4x4, "
            "h100:8 or cpu:8"
        )
    hardware = HARDWARE[kind]
    if hardware.platform == "cpu":
        found = jax.devices("cpu")
        if len(found) < sizes[0]:
            raise ValueError(
                f"{name} needs {sizes[0]} devices, there are {len(found)}: set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={sizes[0]}"
            )
        return hardware, found[: sizes[0]]
    try:
        return hardware, list(_topology(kind, hardware, sizes).devices)
    except Exception as error:
        package = "jax[tpu]" if hardware.platform == "tpu" else "jax[cuda13]"
        raise ValueError(
            f"no compiler for {name}: it comes with pip install '{package}', or this is no size that it knows ({error})"
        ) from error


def _topology(kind: str, hardware: Hardware, sizes: list[int]) -> Any:
    if hardware.platform == "cuda":
        nodes = -(-sizes[0] // 8)
        shape = f"1x{nodes}x{sizes[0] // nodes}"
        return topologies.get_topology_desc("", platform="cuda", topology=shape, target_config=hardware.target)
    sizes = [*sizes, 1, 1][:3]
    bounds = tuple(math.gcd(size, most) for size, most in zip(sizes, hardware.host, strict=True))
    shape = "x".join(str(size) for size in (sizes[:2] if kind in ("v5e", "v6e") else sizes))
    return topologies.get_topology_desc(f"{kind}:{shape}", platform="tpu", chips_per_host_bounds=bounds)
