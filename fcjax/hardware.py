"""Accelerators by name, and their devices for programs that are compiled where none is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

# What NVIDIA's driver says of a GPU, in the words of XLA's compiler.
_GPU = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
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
    minor=0,
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
    minor=0,
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
_RTX4090 = _GPU.format(
    major=8,
    minor=9,
    shared=101376,
    shared_core=102400,
    cores=128,
    fpus=128,
    clock=2.52,
    bandwidth=1008000000000,
    cache=75497472,
    memory=25757220864,
    name="NVIDIA GeForce RTX 4090",
)
_GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Hardware:
    """One device as its maker describes it: FLOP/s in bfloat16 (dense), bytes/s.

    memory: bytes that a program may use. Of a TPU those that its compiler allows; of a GPU 95 % of all, as with
      XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 (JAX takes 75 % by itself).
    link: into a device by one link: to one neighbour in a TPU's torus, by NVLink to all GPUs of a node.
    slow_network: into a device between slices or nodes.
    ring: the length from which a TPU slice's axis has its ends joined.
    tile: how many numbers of a head its matrix units take at once.
    clock: cycles/s, by which XLA counts a TPU's kernels.
    cores: of a TPU, which share its FLOP/s, bandwidth and batch.
    attention_cycles: of one core's attention kernel, forward and backward, for the blocks of `train.kernels` from the
      smallest, as libtpu 0.0.50 schedules them: `benchmarks.kernels`.
    attention: the kernel of `fcjax.models.attend` that it runs.
    """

    platform: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    slow_network: float = 6.25e9
    attention: str = "portable"
    target: str = ""
    host: tuple[int, ...] = (1, 1, 1)
    ring: int = 4
    tile: int = 128
    clock: float = 1e9
    cores: int = 1
    attention_cycles: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


_GIB = 2.0**30
_TORUS: dict[str, Any] = {"attention": "pallas", "host": (2, 2, 1), "ring": 4}
_FLAT: dict[str, Any] = {"attention": "pallas", "host": (2, 4, 1), "ring": 16}
# Cycles of attention.
_V4 = ((903, 6920, 13233), (1474, 10325, 18823))
_V5E = ((549, 4525, 8103), (1049, 7906, 12191))
_V5P = ((582, 4590, 8114), (1077, 8140, 12412))
_V6E = ((481, 3178, 6076), (767, 4647, 7848))
_TPU7X = ((442, 3108, 5749), (723, 4780, 7891))
HARDWARE: dict[str, Hardware] = {
    "v4": Hardware("tpu", 30.75 * _GIB, 275e12, 1228e9, 50e9, clock=1.05e9, cores=2, attention_cycles=_V4, **_TORUS),
    "v5e": Hardware("tpu", 15.75 * _GIB, 197e12, 819e9, 50e9, clock=1.5e9, attention_cycles=_V5E, **_FLAT),
    "v5p": Hardware("tpu", 95.73 * _GIB, 459e12, 2765e9, 100e9, clock=1.75e9, cores=2, attention_cycles=_V5P, **_TORUS),
    "v6e": Hardware("tpu", 31.24 * _GIB, 918e12, 1640e9, 112e9, tile=256, clock=1.75e9, attention_cycles=_V6E, **_FLAT),
    # A chip is two devices.
    "tpu7x": Hardware(
        "tpu", 94.74 * _GIB, 1153e12, 3690e9, 50e9, tile=256, clock=2.2e9, attention_cycles=_TPU7X, **_TORUS
    ),
    "h100": Hardware("cuda", 0.95 * 79.1 * _GIB, 989e12, 3352e9, 450e9, 50e9, "cudnn", _H100),
    "a100": Hardware("cuda", 0.95 * 79.1 * _GIB, 312e12, 2039e9, 300e9, 25e9, "cudnn", _A100),
    # Without NVLink: PCIe 4.
    "rtx4090": Hardware("cuda", 0.95 * 23.99 * _GIB, 165e12, 1008e9, 25e9, 3e9, "cudnn", _RTX4090),
    "cpu": Hardware("cpu", 8 * _GIB, 1e12, 20e9, 10e9),
}


def devices_of(name: str) -> tuple[Hardware, list[Any]]:
    """The devices of "v5p:2x2x4" (chips along each axis), "v5p:2x2x4:2" (two such slices), "h100:8" (GPUs), "cpu:8"
    (simulated). The compiler takes sizes, too, that nobody builds.

    ValueError for a name that is none of these, and, naming what to install, without the compiler.
    """
    kind, _, shape = name.partition(":")
    shape, _, count = shape.partition(":")
    sizes, slices = [_number(size) for size in shape.split("x")], _number(count or "1")
    if kind not in HARDWARE or len(sizes) > (3 if HARDWARE[kind].platform == "tpu" else 1) or min(*sizes, slices) < 1:
        raise ValueError(
            f"there is no hardware {name!r}: name one of {', '.join(HARDWARE)} and its size, as v5p:2x2x4, v5e:4x4, "
            "v5e:4x4:2 (two slices), h100:8 or cpu:8"
        )
    hardware = HARDWARE[kind]
    if slices > 1 and hardware.platform != "tpu":
        raise ValueError(f"{name}: slices are a TPU's; of GPUs every {_GPUS_PER_NODE} are a node, as in h100:16")
    if hardware.platform == "cpu":
        found = jax.devices("cpu")
        if len(found) < sizes[0]:
            raise ValueError(
                f"{name} needs {sizes[0]} devices, there are {len(found)}: set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={sizes[0]}"
            )
        return hardware, found[: sizes[0]]
    try:
        return hardware, list(_topology(kind, hardware, sizes, slices).devices)
    except Exception as error:
        package = "jax[tpu]" if hardware.platform == "tpu" else "jax[cuda13]"
        raise ValueError(
            f"no compiler for {name}: it comes with pip install '{package}', or this is no size that it knows ({error})"
        ) from error


def network_rate(hardware: Hardware, group: Sequence[Any], devices: Sequence[Any]) -> float:
    """Bytes/s into each device of a collective over `group`, some of all `devices`.

    Within a slice: all links that lie along the group, two on an axis that the group fills and whose ends are joined.
    Across slices or nodes: the slow network, of which a slice's part of the group has all its devices' shares.
    """
    islands = {_island(device) for device in group}
    if len(islands) > 1:
        return hardware.slow_network * len(group) / len(islands)
    if hardware.platform != "tpu":
        return hardware.link
    links = 0
    for axis in range(3):
        along, whole = (len({device.coords[axis] for device in some}) for some in (group, devices))
        links += 0 if along == 1 else 2 if along == whole >= hardware.ring else 1
    return hardware.link * max(links, 1)


def _island(device: Any) -> int:
    """The slice or node that a device is of."""
    if device.platform == "tpu":
        return getattr(device, "slice_index", None) or 0
    return device.id // _GPUS_PER_NODE if device.platform != "cpu" else 0


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _topology(kind: str, hardware: Hardware, sizes: list[int], slices: int) -> Any:
    if hardware.platform == "cuda":
        nodes, left = divmod(sizes[0], _GPUS_PER_NODE)
        if nodes and left:
            raise ValueError(f"{sizes[0]} GPUs are no whole nodes of {_GPUS_PER_NODE}")
        shape = f"1x{nodes}x{_GPUS_PER_NODE}" if nodes else f"1x1x{left}"
        return topologies.get_topology_desc("", platform="cuda", topology=shape, target_config=hardware.target)
    sizes = [*sizes, 1, 1][:3]
    bounds = tuple(math.gcd(size, most) for size, most in zip(sizes, hardware.host, strict=True))
    shape = "x".join(str(size) for size in (sizes[:2] if kind in ("v5e", "v6e") else sizes))
    given: dict[str, Any] = {"chips_per_host_bounds": bounds} | ({"num_slices": slices} if slices > 1 else {})
    if kind == "v4":
        # Both cores of a chip as one device, as they are where there is one.
        given["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(f"{kind}:{shape}", platform="tpu", **given)
