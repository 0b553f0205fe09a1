"""Arrays over the devices, as pmap wants them: a leading axis with one entry per local device."""

from typing import Any

import jax
import numpy as np

DEVICE_AXIS = "devices"


def shard_devices(tree: Any) -> Any:
    """Lays each array's leading axis, one entry per local device, over the devices for pmap."""
    return jax.device_put(tree, sharding())


def sharding() -> jax.sharding.NamedSharding:
    """Of arrays that lead with the local devices."""
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (DEVICE_AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(DEVICE_AXIS))


def replicate(tree: Any) -> Any:
    """Each array once per local device, along a new leading axis."""
    num_devices = jax.local_device_count()
    return shard_devices(jax.tree.map(lambda a: np.broadcast_to(a, (num_devices, *np.shape(a))), tree))


def first(replicated: Any) -> Any:
    """The first device's copy."""
    return jax.tree.map(lambda a: a[0], replicated)
