"""Arrays over the devices, as pmap wants them: a leading axis with one entry per local device.

Devices are numbered process after process; with several processes each holds its own part.
"""

from typing import Any

import jax
import numpy as np

from hvae_jax.errors import RunError
from hvae_jax.training import processes

DEVICE_AXIS = "devices"


def every_device() -> list[Any] | None:
    """What `jax.pmap(devices=…)` needs to number the devices process after process.

    Raises:
      RunError: processes differ in their number of devices.
    """
    if processes.count() == 1:
        return None
    if jax.device_count() != processes.count() * jax.local_device_count():
        raise RunError(
            f"{jax.device_count()} devices are not {processes.count()} processes with "
            f"{jax.local_device_count()} each; give every process as many"
        )
    ordered = sorted(jax.devices(), key=lambda device: device.process_index)
    mine = [device for device in ordered if device.process_index == jax.process_index()]
    if mine != jax.local_devices():
        raise RunError("JAX lists this process's devices in two orders; start one process per host")
    return ordered


def local_devices() -> list[Any] | None:
    """What `jax.pmap(devices=…)` needs to leave out the devices of other processes."""
    return None if processes.count() == 1 else jax.local_devices()


def local_part() -> slice:
    """Where this process's devices stand among all."""
    first_device = jax.process_index() * jax.local_device_count()
    return slice(first_device, first_device + jax.local_device_count())


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
    """The first device's copy, on that device."""
    # Not a[0], which would be a program of all devices: waiting for each other while those of another
    # process are awaited can leave a CPU without a free thread.
    return jax.tree.map(lambda a: a.addressable_data(0)[0], replicated)
