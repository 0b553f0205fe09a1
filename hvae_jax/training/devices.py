"""Programs and arrays over the devices: the one place that knows how JAX lays them out.

A program is written for one device. An array that differs from device to device leads with an axis of one
entry per local device; devices are numbered process after process, and each process holds its own part.
`jax.pmap` runs the programs; with HVAE_JAX_DEVICES=mesh in the environment `jax.jit` does, with shardings
over a mesh. Both give the same numbers.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.errors import RunError
from hvae_jax.training import processes

DEVICE_AXIS = "devices"
# pmap or mesh.
VARIABLE = "HVAE_JAX_DEVICES"


def over_devices(
    program: Callable[..., Any],
    is_split: Sequence[bool],
    *,
    donated: Sequence[int] = (),
    all_processes: bool = False,
) -> Callable[..., Any]:
    """Compiles the program of one device to run on every device at once.

    Args:
      program: pure; it may use collectives along DEVICE_AXIS.
      is_split: for each argument whether it leads with the local devices, of which each then gets its own
        entry; the others are the same everywhere.
      donated: places of arguments whose memory the results may take over.
      all_processes: whether the devices of all processes run together, each process bringing the entries
        of its own; else those of this process run alone.

    Returns:
      a function of the same arguments. Its results lead with the local devices, see `first`.

    Raises:
      RunError: processes differ in their number of devices, or a HVAE_JAX_DEVICES that is neither.
    """
    implementations = {"pmap": _by_pmap, "mesh": _by_mesh}
    name = os.environ.get(VARIABLE, "pmap")
    if name not in implementations:
        raise RunError(f"{VARIABLE}={name} must be {' or '.join(implementations)}")
    devices = _every_device() if all_processes else jax.local_devices()
    return implementations[name](program, tuple(is_split), tuple(donated), devices)


def _by_pmap(
    program: Callable[..., Any], is_split: tuple[bool, ...], donated: tuple[int, ...], devices: list[Any]
) -> Callable[..., Any]:
    # Naming all devices of a single process would only make calls slower.
    named = None if processes.count() == 1 else devices
    in_axes = tuple(0 if split else None for split in is_split)
    return jax.pmap(program, DEVICE_AXIS, in_axes=in_axes, donate_argnums=donated, devices=named)


def _by_mesh(
    program: Callable[..., Any], is_split: tuple[bool, ...], donated: tuple[int, ...], devices: list[Any]
) -> Callable[..., Any]:
    mesh = jax.sharding.Mesh(np.asarray(devices), (DEVICE_AXIS,))
    specs = tuple(jax.P(DEVICE_AXIS) if split else jax.P() for split in is_split)

    def one_device(*arguments: Any) -> Any:
        own = [
            jax.tree.map(lambda a: a[0], argument) if split else argument
            for argument, split in zip(arguments, is_split, strict=True)
        ]
        return jax.tree.map(lambda a: jnp.asarray(a)[None], program(*own))

    # Which results are equal on all devices is not asked for: each keeps its own, as under pmap.
    sharded = jax.shard_map(
        one_device, mesh=mesh, in_specs=specs, out_specs=jax.P(DEVICE_AXIS), check_vma=False
    )
    compiled = jax.jit(sharded, donate_argnums=donated)

    def call(*arguments: Any) -> Any:
        placed = [
            jax.tree.map(lambda a, spec=spec: _on_mesh(a, jax.NamedSharding(mesh, spec)), argument)
            for argument, spec in zip(arguments, specs, strict=True)
        ]
        return compiled(*placed)

    return call


def _on_mesh(array: Any, sharding: jax.NamedSharding) -> jax.Array:
    """An array of the local devices, or one that is the same everywhere, as part of one of all devices."""
    if isinstance(array, jax.Array) and array.sharding.is_equivalent_to(sharding, array.ndim):
        return array
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if sharding.spec == jax.P():
        return jax.make_array_from_process_local_data(sharding, np.asarray(array))
    local = array if isinstance(array, jax.Array) else split(np.asarray(array))
    pieces = [local.addressable_data(i) for i in range(len(local.addressable_shards))]
    shape = (sharding.mesh.size, *local.shape[1:])
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)


def _every_device() -> list[Any]:
    """The devices of all processes, process after process."""
    if processes.count() == 1:
        return jax.local_devices()
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


def local_part() -> slice:
    """Where this process's devices stand among all."""
    first_device = jax.process_index() * jax.local_device_count()
    return slice(first_device, first_device + jax.local_device_count())


def split(tree: Any) -> Any:
    """Lays each array's leading axis, one entry per local device, over the devices."""
    return jax.device_put(tree, sharding())


def sharding() -> jax.sharding.NamedSharding:
    """Of arrays that lead with the local devices."""
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (DEVICE_AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(DEVICE_AXIS))


def replicate(tree: Any) -> Any:
    """Each array once per local device, along a new leading axis."""
    num_devices = jax.local_device_count()
    return split(jax.tree.map(lambda a: np.broadcast_to(a, (num_devices, *np.shape(a))), tree))


def first(replicated: Any) -> Any:
    """The first local device's entry, on that device."""
    # Not a[0], which would be a program of all devices: waiting for each other while those of another
    # process are awaited can leave a CPU without a free thread.
    return jax.tree.map(lambda a: a.addressable_data(0)[0], replicated)
