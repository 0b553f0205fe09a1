"""What a grid will take, before any of it is trained: models at a time, memory, time."""

import os
import pathlib
import resource
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from hvae_jax import training
from hvae_jax.data.stored import Rows, StoredArray
from hvae_jax.errors import RunError
from hvae_jax.experiment import Experiment
from hvae_jax.grid.members import GridConfig, Member
from hvae_jax.grid.packed import PackedTrainer, init_stack
from hvae_jax.keys import make_key
from hvae_jax.training import Params
from hvae_jax.training.streaming import CALL_BYTES

GIB = 2**30
# Of the memory that is free; the rest is for the compiler and for other programs.
FREE_SHARE = 0.8
# A state exists at most so often at a time: before and after a step on the device, as it was when the
# chunk began, as the copy that a checkpoint is written from, and as the bytes that are written.
STATE_COPIES = 6
# On CPUs the models of a device run one after the other, so more of them are not faster; fewer are
# complete, and safe, sooner.
CPU_MODELS_PER_DEVICE = 32
# Every intermediate result is written once and read at least twice, forward and backward.
TOUCHES = 3
TIMED_SECONDS = 2.0
# Compiling added 0.3 to 0.5 GiB to a training step of the three reference models; a grid compiles its
# evaluation, too, and the digits grid peaked 0.15 GiB above a sum with 0.5 here.
COMPILER_BYTES = 3 * GIB // 4


class Size(NamedTuple):
    """Attributes:
    chunk_size: models that are trained at a time.
    fixed_bytes: the program as it is now, compiling, the images and a gradient on every device.
    model_bytes: what each further model adds.
    budget_bytes: that all may take.
    """

    chunk_size: int
    fixed_bytes: int
    model_bytes: int
    budget_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Estimate of the most that training takes."""
        return self.fixed_bytes + self.chunk_size * self.model_bytes


def choose_size(grid: GridConfig, built: Experiment, members: Sequence[Member]) -> Size:
    """How many models to train at a time, from the memory at hand unless the config says it.

    Raises:
      RunError: not one model a device fits, or the chunk that the config asks for does not.
    """
    num_devices, on_cpu = jax.local_device_count(), jax.default_backend() == "cpu"
    state = jax.eval_shape(built.init_state)
    splits = built.dataset.train, built.dataset.valid, built.dataset.test
    fixed = num_devices * sum(_device_bytes(split.images) for split in splits)
    model_bytes, working = STATE_COPIES * _num_bytes(state), _working_bytes(built, state.params)
    if on_cpu:  # one model of each device is at work
        fixed += resident_bytes() + COMPILER_BYTES + num_devices * working
    else:  # all are
        model_bytes += working
    budget = int(grid.memory_gib * GIB) or int(FREE_SHARE * _free_bytes())
    fitting = (budget - fixed) // model_bytes // num_devices * num_devices
    useful = min(len(members), num_devices * CPU_MODELS_PER_DEVICE) if on_cpu else len(members)
    chunk_size = min(grid.chunk_size, len(members)) or min(useful, max(fitting, 0))
    size = Size(chunk_size, fixed, model_bytes, budget)
    if chunk_size == 0 or (grid.memory_gib and size.peak_bytes > budget):
        raise RunError(
            f"config.grid.memory_gib={grid.memory_gib} allows {budget / GIB:.2f} GiB, but "
            f"{chunk_size or num_devices} models at a time need about "
            f"{(fixed + (chunk_size or num_devices) * model_bytes) / GIB:.2f}; raise it, lower "
            "config.grid.chunk_size, or use fewer devices"
        )
    return size


def model_steps_per_second(built: Experiment, members: Sequence[Member], chunk_size: int) -> float:
    """Speed of a few timed steps of the first models, compiling excluded; nothing is kept."""
    num_devices = jax.local_device_count()
    if jax.default_backend() == "cpu":  # where a few models are as fast, each, as many
        chunk_size = min(chunk_size, num_devices)
    members = members[:chunk_size]
    trainer = PackedTrainer(built, chunk_size)
    stack = init_stack(built, members)
    most = min(built.training.log_every_steps, trainer.num_steps)
    once = trainer.time_steps(stack, members, 1)
    num_steps = int(np.clip(TIMED_SECONDS / once, 1, most))
    return len(members) * num_steps / trainer.time_steps(stack, members, num_steps)


def resident_bytes() -> int:
    """What this process occupies now; where that is not told, the most it ever did."""
    status = pathlib.Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes()


def peak_bytes() -> int:
    """The most that this process has occupied."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # getrusage starts from the maximum of the process that started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _working_bytes(built: Experiment, params: Params) -> int:
    """A bound on what one gradient keeps at a time, from the bytes that its operations touch."""
    image_shape = built.dataset.image_shape
    num_images = built.training.micro_batch or training.pick_micro_batch(
        (built.training.batch_size, *image_shape)
    )
    x = jax.ShapeDtypeStruct((num_images, *image_shape), np.float32)
    keys = jax.eval_shape(lambda: jax.random.split(make_key(0), num_images))

    def total(params: Params, x: jax.Array, keys: jax.Array) -> jax.Array:
        terms = built.terms_fn(built.at(params), x, keys)
        return terms.distortion.sum() + terms.rates.sum()

    cost = jax.jit(jax.grad(total)).lower(params, x, keys).cost_analysis()
    return int(cost["bytes accessed"]) // TOUCHES if cost else 0


def _free_bytes() -> int:
    """Memory that could be taken now: of the devices, or on CPUs of the machine and its limits."""
    if jax.default_backend() != "cpu":
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        if all("bytes_limit" in entry for entry in stats):
            return sum(entry["bytes_limit"] - entry.get("bytes_in_use", 0) for entry in stats)
    info = pathlib.Path("/proc/meminfo")
    if info.exists():
        free = int(info.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.exists() and limit.read_text().strip().isdigit():
        used = int((limit.parent / "memory.current").read_text())
        free = min(free, int(limit.read_text()) - used)
    return free + resident_bytes()


def _device_bytes(images: Rows) -> int:
    """Of a split's images that lie on a device; where they are streamed, of those being read and used."""
    return 2 * CALL_BYTES if isinstance(images, StoredArray) else images.nbytes


def _num_bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
