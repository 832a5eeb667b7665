"""Where arrays lie on a mesh: the one place that names mesh axes for what the models compute.

Models say what an array's dimensions are; which axes of the mesh split them is the table AXES. A mesh is whatever
`jax.set_mesh` has set around the trace (`fcjax.sharding`); without one everything here does nothing.

Attention: queries and outputs are split by batch, tokens and heads; own keys and values, and those of the reference
behind them, by batch and heads, whole in their tokens, because every query looks at all of them.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "rows": ("sequence",),  # of a grid
    "tokens": ("sequence",),  # a grid's, row by row
    "heads": ("tensor",),
}
"""Mesh axes by the name of a dimension. Other dimensions are whole, channels among them: what splits those is the
parameters' layout, which XLA follows."""

GRID = ("batch", "rows", None, None)
QUERY = ("batch", "tokens", "heads", None)
KEY_VALUE = ("batch", None, "heads", None)


def is_set() -> bool:
    """Whether there is a mesh of several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1


def lay_out(x: Array, *dimensions: str | None) -> Array:
    """The array with its dimensions, by name or None, split as AXES says."""
    return jax.lax.with_sharding_constraint(x, spec(x, *dimensions)) if is_set() else x


def spec(x: Array, *dimensions: str | None) -> PartitionSpec:
    """What splits each dimension: those of its axes that the mesh has, if they divide it, else nothing.

    (The VAE's one head, the text encoder's twelve; `fcjax.sharding.check` refuses what a UNet cannot do without.)
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {name: size for name, size, kind in _axes(mesh) if kind == AxisType.Auto and size > 1}
    split: list[tuple[str, ...] | None] = []
    for length, dimension in zip(x.shape, dimensions, strict=True):
        axes = tuple(axis for axis in AXES.get(dimension or "", ()) if axis in free)
        ways = 1
        for axis in axes:
            ways *= free[axis]
        split.append(axes if axes and length % ways == 0 else None)
    return PartitionSpec(*split)


def _axes(mesh: Any) -> list[tuple[str, int, Any]]:
    return list(zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True))


def attend_on_shards(
    kernel: Callable[[Array, Array, Array, Array | None], Array],
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
) -> Array:
    """An attention kernel's output (b, q, n, d), every device working on its own queries and heads."""
    if not is_set():
        return kernel(query, key, value, mask)
    of_query, of_key = spec(query, *QUERY), spec(key, *KEY_VALUE)
    given = (query, key, value) if mask is None else (query, key, value, mask)
    specs = [of_query, of_key, of_key]
    if mask is not None and mask.ndim == 2:
        specs.append(PartitionSpec(of_key[0], None))
    elif mask is not None:
        # (b, n, q, k), whole where one row is for all samples, heads or queries.
        by_dimension = zip(mask.shape, (of_query[0], of_query[2], of_query[1], None), strict=True)
        specs.append(PartitionSpec(*(None if length == 1 else axes for length, axes in by_dimension)))

    def local(query: Array, key: Array, value: Array, *mask: Array) -> Array:
        return kernel(query, key, value, *(mask or (None,)))

    # The kernels' own primitives do not say which axes their results vary over.
    return jax.shard_map(local, in_specs=tuple(specs), out_specs=of_query, check_vma=False)(*given)
