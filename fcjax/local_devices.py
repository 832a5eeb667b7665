"""This process's devices, for work that each of them may have a part of."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped


def accelerators() -> list[Any]:
    """The process's accelerators; where it has none, its CPU, of which further devices are simulated."""
    devices = jax.local_devices()
    return devices[:1] if devices[0].platform == "cpu" else devices


def everywhere(tree: Any) -> Any:
    """The arrays whole on each accelerator; as they are where there is one."""
    devices = accelerators()
    return tree if len(devices) == 1 else jax.device_put(tree, _sharding(devices, PartitionSpec()))


def shared_out(batch: Shaped[np.ndarray, "b *d"]) -> Shaped[Array, "b *d"]:
    """An equal part of a batch on each accelerator; whole where it does not divide among them."""
    devices = accelerators()
    if len(devices) == 1 or len(batch) % len(devices):
        return jnp.asarray(batch)
    return jax.device_put(batch, _sharding(devices, PartitionSpec("data")))


def _sharding(devices: list[Any], spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), ("data",)), spec)
