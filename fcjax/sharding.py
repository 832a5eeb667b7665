"""Meshes, and where parameters, optimiser state and batches lie on them.

A `Strategy` is data: the sizes of the mesh's axes and a table of path rules. What it does to the arrays between is one
table for all strategies, `fcjax.models.layout`. The strategies themselves are in `configs/sharding.py`.

Axes: "data" and "fsdp" split the batch, "fsdp" the parameters as well; "tensor" splits heads and channels; "sequence"
splits rows of a grid and the queries of its attention.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fcjax import trees
from fcjax.config import ComposerConfig

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

Axis = str | tuple[str, ...] | None
Rule = tuple[str, tuple[Axis, ...]]


@dataclass(frozen=True)
class Strategy:
    """How a run is spread over devices.

    axes: size of each mesh axis that is not 1; one may be -1, which takes the devices that are left.
    parameters: first-match path rules; the value names the mesh axes of a parameter's LAST dimensions, those before
      are whole. An empty value: the parameter is whole on every device.
    slices: groups of devices behind a slower network; the data axis lies across them.
    most: the axis that takes the devices left gets the largest size that divides both them and this number; data takes
    the rest. 0: it takes them all.
    """

    name: str
    axes: tuple[tuple[str, int], ...]
    parameters: tuple[Rule, ...]
    slices: int = 1
    most: int = 0

    def __post_init__(self):
        names = [name for name, _ in self.axes]
        unknown = sorted(set(names) - set(MESH_AXES))
        if unknown or len(set(names)) < len(names):
            raise ValueError(f"strategy {self.name!r}: axes must be distinct ones of {MESH_AXES}, got {names}")
        if sum(size == -1 for _, size in self.axes) > 1 or any(size < 1 and size != -1 for _, size in self.axes):
            raise ValueError(f"strategy {self.name!r}: sizes must be positive, one of them at most -1, got {self.axes}")
        if self.slices < 1 or self.most < 0:
            raise ValueError(
                f"strategy {self.name!r}: slices must be at least 1 and most at least 0, got {self.slices}, {self.most}"
            )


def axis_sizes(strategy: Strategy, devices: int) -> dict[str, int]:
    """The size of every mesh axis on so many devices. ValueError where they do not fit."""
    sizes = {axis: 1 for axis in MESH_AXES} | dict(strategy.axes)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    rest, left_over = divmod(devices, fixed)
    if left_over or (rest != 1 and -1 not in sizes.values()):
        asked = ", ".join(f"{axis} {size}" for axis, size in strategy.axes)
        raise ValueError(
            f"strategy {strategy.name!r} ({asked}) needs {'a multiple of ' if -1 in sizes.values() else ''}{fixed} "
            f"devices, there are {devices}: change the axes' sizes or the number of devices"
        )
    taken = math.gcd(rest, strategy.most) if strategy.most else rest
    sizes = {axis: taken if size == -1 else size for axis, size in sizes.items()}
    sizes["data"] *= rest // taken
    if sizes["data"] % strategy.slices:
        raise ValueError(
            f"strategy {strategy.name!r}: a data axis of {sizes['data']} does not divide over {strategy.slices} slices"
        )
    return sizes


def make_mesh(strategy: Strategy, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a strategy over these devices (all there are). Its axes are Auto: XLA follows the layouts given.

    The data axis lies across the slices of TPUs that there are; ValueError where it does not divide over them.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(strategy, len(devices))
    slices = len({getattr(device, "slice_index", None) for device in devices if device.platform == "tpu"})
    if slices > 1:
        if sizes["data"] % slices:
            raise ValueError(
                f"strategy {strategy.name!r}: a data axis of {sizes['data']} does not divide over the {slices} slices "
                f"that there are: give it another size, as in {strategy.name}:data={slices}"
            )
        within = [sizes[axis] // (slices if axis == "data" else 1) for axis in MESH_AXES]
        across = [slices if axis == "data" else 1 for axis in MESH_AXES]
        grid = mesh_utils.create_hybrid_device_mesh(within, across, devices)
    else:
        grid = mesh_utils.create_device_mesh([sizes[axis] for axis in MESH_AXES], devices)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def parameter_specs(params: Mapping[str, Any], rules: Sequence[Rule], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The PartitionSpec of every parameter (arrays or ShapeDtypeStructs).

    sizes: of the mesh's axes. ValueError lists, all at once, every path that no rule covers, every dimension that its
    axes do not divide, every axis used twice and every rule for more dimensions than there are.
    """
    matched = trees.match_rules(params, rules)
    wrong: list[str] = []

    def resolve(path: str, leaf: Any, last: tuple[Axis, ...]) -> PartitionSpec:
        shape = tuple(leaf.shape)
        if len(last) > len(shape):
            wrong.append(f"{path} {shape}: the rule {last} is for {len(last)} dimensions or more")
            return PartitionSpec()
        split = (None,) * (len(shape) - len(last)) + last
        used = [axis for part in split for axis in _names(part)]
        unknown = sorted(set(used) - set(sizes))
        if unknown or len(set(used)) < len(used):
            wrong.append(
                f"{path} {shape}: the rule {last} names an axis twice or one that the mesh {dict(sizes)} lacks"
            )
            return PartitionSpec()
        for length, part in zip(shape, split, strict=True):
            ways = math.prod(sizes[axis] for axis in _names(part))
            if length % ways:
                wrong.append(f"{path} {shape}: {length} does not divide over {part!r} of {ways} devices")
        return PartitionSpec(*split)

    specs = trees.map_paths(resolve, params, matched)
    if wrong:
        raise ValueError(
            f"{len(wrong)} parameters cannot lie on the mesh {dict(sizes)} as the strategy says; choose other sizes of "
            "its axes or another rule: " + "; ".join(wrong)
        )
    return specs


def _names(part: Axis) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else part


def check(config: ComposerConfig, sizes: Mapping[str, int], batch_size: int, parts: int = 1) -> None:
    """ValueError where a batch, the UNets' heads or their rows do not divide over the mesh, all reasons at once.

    parts: into which a batch is cut, each to be computed by all devices.
    """
    if sizes["tensor"] > 1 and sizes["sequence"] > 1:
        # Measured on 8 simulated devices: the loss was 1 % off, where each alone equals one device's.
        raise ValueError("tensor and sequence together do not give a single device's numbers yet: use one of them")
    wrong = []
    ways = sizes["data"] * sizes["fsdp"]
    if batch_size // parts % ways:
        cut = f" in {parts} parts" if parts > 1 else ""
        wrong.append(f"a batch of {batch_size}{cut} over data x fsdp of {ways} devices")
    for name, unet in config.unets.items():
        for level in sorted(set(unet.attention_levels)):
            heads = unet.heads(level)
            if heads % sizes["tensor"]:
                wrong.append(f"the {heads} heads of {name}'s level {level} over tensor of {sizes['tensor']} devices")
        rows = config.latent_height >> (unet.levels - 1)
        if rows % sizes["sequence"]:
            wrong.append(f"the {rows} rows of {name}'s coarsest grid over sequence of {sizes['sequence']} devices")
    if wrong:
        raise ValueError(
            "the strategy does not suit the run; these do not divide: " + "; ".join(wrong) + ". Choose other sizes"
        )


def tree_shardings(tree: Any, specs: Mapping[str, Any], mesh: Mesh) -> Any:
    """The NamedSharding of every leaf of a training state.

    A leaf whose path ends with a parameter's path (the parameter itself, its average, its moments in the optimiser)
    lies as that parameter does if it has its shape; everything else (counters, factored moments) is whole everywhere.

    specs: `parameter_specs` of all parameters.
    """
    by_path = trees.flatten(specs)

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        found = next(
            (by_path[path] for start in range(len(names)) if (path := "/".join(names[start:])) in by_path), None
        )
        fits = found is not None and len(found) == np.ndim(leaf)
        return NamedSharding(mesh, found if fits and found is not None else PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Samples over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
