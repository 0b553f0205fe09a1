"""Our side of `device`: each process measures one thing on the devices that JAX finds."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments import program
from experiments.benchmark import serving, workers
from hvae_jax import codec, experiment
from hvae_jax.errors import RunError
from hvae_jax.grid import size
from hvae_jax.grid.members import GridConfig, Member
from hvae_jax.grid.packed import PackedTrainer, init_stack

MIB = 2**20


def main() -> None:
    """Serves as a worker of `workers.Contender`."""
    kinds = {"about": About, "network": Network, "grid": Grid, "codec": Codec}
    serving.serve(kinds, start=lambda _: workers.ready())


class About:
    """What there is."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        del spec
        program.start_devices()

    def describe(self) -> dict[str, Any]:
        """Of one device, and how many there are."""
        first = jax.devices()[0]
        limit = (first.memory_stats() or {}).get("bytes_limit")
        if limit is None and first.platform == "cpu":
            limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return {
            "platform": first.platform,
            "device": first.device_kind,
            "num_devices": jax.device_count(),
            "memory_mib": None if limit is None else limit / MIB,
            "cores": program.num_cores(),
            "jax": jax.__version__,
        }


class Network:
    """Trains and evaluates one model on all devices; `spec` has its `config`."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._worker = workers.NetworkWorker(spec)
        self._batch_size = spec["config"]["training"]["batch_size"]
        self._num_images, self._turn_s = spec["num_images"], spec["turn_s"]

    def train(self) -> dict[str, Any]:
        """Steps and images per second."""
        seconds = serving.time_many(self._worker.steps, self._turn_s)
        return {"steps_per_s": 1 / seconds, "images_per_s": self._batch_size / seconds, **_memory()}

    def evaluate(self) -> dict[str, Any]:
        """Images per second of a pass that gives D and the rates of each, one draw."""
        self._worker.evaluate()
        seconds = statistics.median(self._worker.evaluate() for _ in range(serving.TURNS))
        return {"images_per_s": self._num_images / seconds, **_memory()}


class Grid:
    """Trains models side by side, all in one order; `spec` has their `config`, and how many there are."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        program.split_cpu(program.num_cores())
        config = spec["config"]
        self._built, self._batch_size = experiment.from_config(config, 1), config["training"]["batch_size"]
        self._turn_s = spec["turn_s"]
        self._members = [
            Member(number, {**config, "training": {**config["training"], "seed": number}}, {})
            for number in range(spec["num_models"])
        ]

    def train(self) -> dict[str, Any]:
        """Of as many models as fit: steps of a model per second, and images."""
        seeds = tuple(range(len(self._members)))
        grid = GridConfig(((1.0,), (1.0,)), (), (), (), seeds, "shared", chunk_size=0, memory_gib=0.0)
        num = size.choose_size(grid, self._built, self._members).chunk_size
        while True:
            try:
                seconds = self._time(self._members[:num])
                break
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or num == 1:
                    raise
                num //= 2
        speed = {"steps_per_s": num / seconds, "images_per_s": num * self._batch_size / seconds}
        return {"num_models": num, **speed, **_memory()}

    def _time(self, members: list[Member]) -> float:
        trainer, stack = PackedTrainer(self._built, len(members)), init_stack(self._built, members)
        most = min(self._built.training.log_every_steps, trainer.num_steps)  # that one call takes
        return serving.time_many(lambda count: trainer.time_steps(stack, members, count), self._turn_s, most)


class Codec:
    """Encodes and decodes images under a model that has not been trained; `spec` has its `config`."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        program.split_cpu(1)
        built = experiment.from_config(spec["config"], 1)
        self._model, self._params = built.model, built.at(built.init_params(0))
        images = np.asarray(built.dataset.train.images[: spec["num_coded"]])
        self._images = (255 * (images > 127)).astype(np.uint8)

    def code(self) -> dict[str, Any]:
        """Images per second, there and back; fails where they do not come back as they were."""
        found, answers = {}, {}
        steps: dict[str, Callable[[], Any]] = {
            "encode": lambda: codec.encode(self._model, self._params, self._images),
            "decode": lambda: codec.decode(self._model, self._params, answers["encode"]),
        }
        for name, work in steps.items():
            work()  # compiles
            start = time.perf_counter()
            answers[name] = work()
            found[f"{name}_images_per_s"] = len(self._images) / (time.perf_counter() - start)
        if not (answers["decode"] == self._images).all():
            raise RunError("decoded images are not those that were encoded")
        return {**found, **_memory()}


def _memory() -> dict[str, float]:
    """The most that this process took: of its first device, or on CPUs of the machine."""
    device = jax.local_devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if device.platform == "cpu":
        return {"peak_mib": serving.peak_mib()}
    return {} if peak is None else {"peak_mib": peak / MIB}


if __name__ == "__main__":
    main()
