"""Where a run's state and its batches lie: on one device, or on the mesh of a strategy, in one process or several."""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding

from configs.sharding import strategy
from fcjax.sharding import batch_sharding, check, make_mesh, parameter_specs, tree_shardings
from train.config import TrainConfig

Tree = dict[str, Any]


def mesh_of(config: TrainConfig) -> Mesh | None:
    """The mesh of a run's devices; None on one.

    ValueError where the strategy does not suit the devices, the batch, or the model's heads and rows.
    """
    devices, chosen = jax.devices(), strategy(config.strategy, **dict(config.axes))
    if not 0 <= config.devices <= len(devices):
        raise ValueError(f"devices must lie in 0 (all) to {len(devices)}, as many as there are: {config.devices}")
    if config.devices and jax.process_count() > 1:
        raise ValueError("several processes use all their devices: leave `devices` at 0")
    devices = devices[: config.devices or None]
    if len(devices) == 1:
        return None
    mesh = make_mesh(chosen, devices)
    check(config.model, dict(mesh.shape), config.batch_size, config.accumulate)
    return mesh


class Placement:
    """The devices of a run and what lies where on them; every process makes its own, and all of them act together.

    ValueError where the strategy's mesh does not suit the devices, the batch, or the model.
    """

    def __init__(self, config: TrainConfig, params: Mapping[str, Any]):
        self._batch_size, self.mesh = config.batch_size, mesh_of(config)
        if self.mesh is not None:
            rules = strategy(config.strategy).parameters
            self._specs = parameter_specs(params, rules, dict(self.mesh.shape))
            self.batch = batch_sharding(self.mesh)

    @property
    def rows(self) -> list[int] | None:
        """The rows of every batch that lie on this process's devices; None: all."""
        if self.mesh is None:
            return None
        held = self.batch.addressable_devices_indices_map((self._batch_size,)).values()
        return sorted({row for (part,) in held for row in range(self._batch_size)[part]})

    def shardings(self, tree: Any) -> Any:
        """The sharding of every leaf of a training state or of parameters; None on one device."""
        return None if self.mesh is None else tree_shardings(tree, self._specs, self.mesh)

    def initial(self, make: Callable[[Tree], Any], params: Tree) -> Any:
        """The state that `make` gives for parameters that every process holds whole, NumPy arrays, laid on the devices.

        No device of a mesh ever holds more than its share of them.
        """
        if self.mesh is None:
            # On a CPU they are this very memory. The state is bound to the device, as those are that were read or that
            # steps give: for all of them the step is compiled once.
            return jax.device_put(make(jax.device_put(params, may_alias=True)), jax.devices()[0])
        laid = jax.device_put(params, self.shardings(params))
        return self.unshared(jax.jit(make, out_shardings=self.shardings(jax.eval_shape(make, params)))(laid))

    def unshared(self, state: Any) -> Any:
        """The state, every device with memory of its own.

        Devices that a CPU simulates may share the memory of what is whole on each of them, which a step with a donated
        state would then write into once for each.
        """
        if self.mesh is None or self.mesh.devices.flat[0].platform != "cpu":
            return state
        return jax.tree.map(jnp.copy, state)

    def abstract(self, make: Callable[[Tree], Any], params: Tree) -> Any:
        """Shapes, dtypes and shardings of what `initial` gives."""
        state = jax.eval_shape(make, params)
        single = SingleDeviceSharding(jax.devices()[0])
        places = jax.tree.map(lambda _: single, state) if self.mesh is None else self.shardings(state)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, places
        )

    def put_batch(self, rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch laid on the devices, from the rows of it that this process read."""
        if self.mesh is None:
            return jax.device_put(dict(rows))
        place = {row: number for number, row in enumerate(self.rows or ())}

        def lay(array: np.ndarray) -> jax.Array:
            def part(index: tuple[slice, ...]) -> np.ndarray:
                return array[[place[row] for row in range(self._batch_size)[index[0]]]]

            return jax.make_array_from_callback((self._batch_size, *array.shape[1:]), self.batch, part)

        return {name: lay(array) for name, array in rows.items()}

    def context(self) -> AbstractContextManager[Any]:
        """What the step must be called in."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def gathered(self, tree: Any) -> Any:
        """The whole tree in the memory of every process."""
        if self.mesh is None:
            return tree
        if jax.process_count() > 1:
            return multihost_utils.process_allgather(tree, tiled=True)
        return jax.tree.map(np.asarray, tree)
