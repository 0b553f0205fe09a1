"""The processes: each is one contender, pinned before it starts, and answers what it is asked in seconds."""

import contextlib
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from multiprocessing import Pipe
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import program
from experiments.benchmark import serving
from hvae_jax import experiment, training
from hvae_jax.errors import RunError
from hvae_jax.grid import members as grid_members
from hvae_jax.grid.packed import PackedTrainer, init_stack
from hvae_jax.keys import make_key
from hvae_jax.training import devices, intervals, processes, stacks
from hvae_jax.training.raveled import unravel
from hvae_jax.training.split_evaluator import SplitEvaluator
from hvae_jax.training.stacks import DataParallel


class Contender:
    """A process of its own, pinned before it starts, that does what it is asked and says how long it took."""

    def __init__(
        self,
        module: str,
        spec: Mapping[str, Any],
        cores: str,
        cache: str | None = None,
        is_on_cpu: bool = True,
    ) -> None:
        """Starts `python -m module`.

        Args:
          module: of a worker.
          spec: what it is to do.
          cores: "one" or "all".
          cache: a folder for what it compiles; an empty one by default.
          is_on_cpu: JAX gets the CPU, else whatever device it finds.
        """
        self._scratch = tempfile.TemporaryDirectory()
        cache = cache or self._scratch.name
        environment = {
            **os.environ,
            **({"JAX_PLATFORMS": "cpu"} if is_on_cpu else {}),
            "JAX_COMPILATION_CACHE_DIR": cache,
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else it leaves a pool of processes behind
        }
        self._name, self._is_late = f"{module} ({spec['kind']})", False
        self._errors = pathlib.Path(self._scratch.name, "errors.txt")
        self._pipe, theirs = Pipe()
        with theirs, self._errors.open("w", encoding="utf-8") as errors, _pinned(cores):
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdout=errors,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is the parent's affair; it then closes the pipe
            )
        self._pipe.send({**spec, "num_threads": 1 if cores == "one" else 0})

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        try:
            self._process.wait(timeout=0 if self._is_late else 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._scratch.cleanup()

    def ask(self, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """The worker's answer.

        Raises:
          RunError: it failed, or ended, or did not answer in time.
        """
        self.send(method, *arguments)
        return self.receive(timeout_s)

    def send(self, method: str, *arguments: Any) -> None:
        """Asks without waiting, so that several can be at work; `receive` has the answer."""
        # A worker that has ended says so when it is to answer.
        with contextlib.suppress(OSError):
            self._pipe.send((method, arguments))

    def receive(self, timeout_s: float | None = None) -> Any:
        """The answer to the oldest `send` that has none; errors are those of `ask`."""
        try:
            if timeout_s is not None and not self._pipe.poll(timeout_s):
                self._is_late = True
                raise RunError(f"{self._name} took longer than {timeout_s:.0f} s")
            kind, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            last = (self._errors.read_text("utf-8").strip().splitlines() or ["it left no message"])[-1]
            raise RunError(f"{self._name} ended: {last}") from error
        if kind == "error":
            raise RunError(f"{self._name} failed: {' '.join(answer.split())[:300]}")
        return answer


def main() -> None:
    """Our side of `Contender`; `torch_reference.main` is the other."""
    workers = {"network": NetworkWorker, "grid": GridWorker, "gemm": GemmWorker}
    serving.serve(workers, start=lambda _: ready())


def ready() -> None:
    """Compiles, and keeps what is compiled, as the programs do."""
    program.compile_sooner()
    program.use_compile_cache()


class NetworkWorker:
    """Trains and evaluates as `training.train` does, without its log; every answer is in seconds.

    `spec` holds the config, and may hold `num_devices` to split the CPU into and `process`, the arguments
    of `processes.start`.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        if "num_devices" in spec:
            program.split_cpu(spec["num_devices"])
        else:
            program.split_cpu_for_batch(spec["config"]["training"]["batch_size"])
        if "process" in spec:
            processes.start(**spec["process"])
        built = experiment.from_config(spec["config"])
        config, images = built.training, built.dataset.train.images
        self._built, self._config, self._num_images = built, config, len(images)
        self._batches = built.make_batches()
        step_fn = training.make_train_step(
            built.train_terms_fn, built.preprocess_fn, built.make_control(), config, devices.DEVICE_AXIS
        )
        self._interval = intervals.compile_interval(step_fn, self._batches.pick)
        self._layout, stack = DataParallel(), stacks.new_stack([built.init_state()])
        self._states, self._zeros = self._layout.put(stacks.ravel_states(stack.states)), stack.totals
        self._evaluator: SplitEvaluator | None = None
        self._done = 0

    def steps(self, count: int) -> float:
        """Training steps, in compiled calls of at most `log_every_steps`."""
        start = time.perf_counter()
        while count:
            part = min(count, self._batches.steps_per_call)
            totals, counts = self._layout.put((self._zeros, np.array([part], np.int32)))
            taken = self._batches.take(self._done, part)
            (self._states, totals), done = self._interval((self._states, totals), *taken, counts)
            jax.device_get((totals, done))
            count, self._done = count - part, self._done + part
        return time.perf_counter() - start

    def cpu_seconds(self) -> float:
        """CPU time of this process and of those that it has running."""
        tick = os.sysconf("SC_CLK_TCK")
        own = sum(os.times()[:2])
        for process in multiprocessing.active_children():
            fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            own += (int(fields[11]) + int(fields[12])) / tick
        return own

    def rest(self) -> float:
        """Reads nothing ahead until the next step; takes no time that counts."""
        self._batches.close()
        return 0.0

    def epoch(self) -> float:
        """As many steps as the images make batches."""
        return self.steps(self._num_images // self._config.batch_size)

    def evaluate(self) -> float:
        """Distortion and rates of every image, one draw each."""
        if self._evaluator is None:
            images = self._built.dataset.train.images
            self._evaluator = SplitEvaluator(images, self._built.preprocess_fn)
            self._terms_fn = self._built.terms_fn
        params = stacks.entry(unravel(self._layout.get(self._states, 1)), 0).eval_params
        start = time.perf_counter()
        self._evaluator.map_images(self._terms_fn, params, make_key(0))
        return time.perf_counter() - start

    def gflop(self) -> float:
        """Floating point operations of one step's gradient as XLA counts them, in billions; no seconds."""
        built = self._built
        shape = (self._config.batch_size, *built.dataset.image_shape)

        def total(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
            terms = built.terms_fn(params, x, key)
            return terms.distortion.sum() + terms.rates.sum()

        arguments = jax.eval_shape(built.init_state).params, jax.ShapeDtypeStruct(shape, np.float32)
        cost = jax.jit(jax.grad(total)).lower(*arguments, make_key(0)).cost_analysis()
        if cost is None:
            raise ValueError("XLA does not count operations here")
        return cost["flops"] / 1e9

    def peak_mib(self) -> float:
        """The process's largest resident set so far."""
        return serving.peak_mib()


class GridWorker:
    """Trains models side by side as `experiments.grid` does, two for each device."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        program.split_cpu(program.num_cores())
        config = spec["config"]
        built = experiment.from_config(config, num_devices=1)
        self._num_models = 2 * jax.local_device_count()
        self._members = [
            grid_members.Member(number, {**config, "training": {**config["training"], "seed": number}}, {})
            for number in range(self._num_models)
        ]
        self._trainer = PackedTrainer(built, self._num_models)
        self._stack = init_stack(built, self._members)

    def steps(self, count: int) -> float:
        """Seconds of `count` training steps of one model, its share of those of all."""
        return self._trainer.time_steps(self._stack, self._members, count) / self._num_models


class GemmWorker:
    """Float32 products of square matrices, by XLA."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        del spec
        self._product = jax.jit(jnp.matmul)

    def gemm(self, size: int, count: int) -> float:
        """Seconds for `count` products of two `[size, size]` matrices."""
        a, b = (jax.random.uniform(make_key(i), (size, size)) for i in range(2))
        self._product(a, b).block_until_ready()
        start = time.perf_counter()
        for _ in range(count):
            self._product(a, b).block_until_ready()
        return time.perf_counter() - start


@contextlib.contextmanager
def _pinned(cores: str) -> Iterator[None]:
    """What is started inside inherits the cores: thread pools are sized by them."""
    if not hasattr(os, "sched_setaffinity"):
        if cores == "one":
            raise RunError(
                "--cores=one needs Linux, where a process can be kept on one core; use --cores=all"
            )
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)} if cores == "one" else allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


if __name__ == "__main__":
    main()
