"""PyTorch's side of `device`: `torch_reference`'s networks on the device that is asked for. No JAX here."""

import statistics
from collections.abc import Mapping
from typing import Any

from experiments.benchmark import serving
from experiments.benchmark.torch_reference import NetworkWorker, torch


def main() -> None:
    """Serves as a worker of `workers.Contender`."""
    serving.serve({"network": Network}, lambda spec: torch.manual_seed(0))


class Network:
    """Trains and evaluates; `spec` is that of `NetworkWorker`."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._worker, self._num_images = NetworkWorker(spec), spec["num_images"]
        self._turn_s = spec["turn_s"]
        self._batch_size, self._is_on_gpu = spec["training"]["batch_size"], spec["device"] == "cuda"

    def train(self) -> dict[str, Any]:
        """Steps and images per second."""
        seconds = serving.time_many(self._worker.steps, self._turn_s)
        return {"steps_per_s": 1 / seconds, "images_per_s": self._batch_size / seconds, **self._memory()}

    def evaluate(self) -> dict[str, Any]:
        """Images per second of a pass that gives D and the rates of each, one draw."""
        self._worker.evaluate()
        seconds = statistics.median(self._worker.evaluate() for _ in range(serving.TURNS))
        return {"images_per_s": self._num_images / seconds, **self._memory()}

    def _memory(self) -> dict[str, float]:
        """As ours counts it."""
        if not self._is_on_gpu:
            return {"peak_mib": serving.peak_mib()}
        return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}


if __name__ == "__main__":
    main()
