"""Times this library against the same networks in plain PyTorch, on the CPU, side by side.

    pip install -e ".[benchmark]" && python -m experiments.benchmark --out=rows.json --figure=steps.png
    python -m experiments.benchmark --only=digits --cores=all --repeats=5
    python -m experiments.benchmark --scaling --figure=scaling.png

Every contender (ours, PyTorch eager, torch.compile) is one long-lived process; they are asked in turn,
A B C A B C, and never run at the same time. Numbers are medians, a ratio is the median of the ratios of
neighbours. Before anything is timed, both networks get the same parameters, images and noise, and must
agree in distortion, rates and gradients. Images are random bytes; an epoch has 10,240 of them.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments import cifar, digits, mnist, program
from hvae_jax import experiment, records, training
from hvae_jax.errors import RunError
from hvae_jax.evaluation import rates
from hvae_jax.figures import style
from hvae_jax.models import blocks
from hvae_jax.models.hvae import ModelConfig, make_hvae

NUM_IMAGES = 10_240
TOLERANCE = 1e-3
GEMM_SIZES = (512, 1024, 2048, 4096)
# Long enough for the clock and the scheduler, short enough for neighbours to see the same machine.
SECONDS_PER_TURN = 0.5
CORES = ("one", "all")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network that both sides build: a config of `experiments`, on images of one shape."""

    make_config: Callable[[], Any]
    image_shape: tuple[int, int, int]
    num_parameters: int

    @property
    def config(self) -> dict[str, Any]:
        """The config as plain values; its data is still the real data set's."""
        return self.make_config().to_dict()


CASES = {
    "cifar_reference": Case(cifar.get_config, (32, 32, 3), 475_811),
    "reference_28": Case(mnist.get_config, (28, 28, 1), 122_713),
    "digits": Case(digits.get_config, (8, 8, 1), 32_113),
}


@dataclasses.dataclass
class Measurements:
    """What one case gave on one number of cores, turn by turn; a missing contender is a missing key.

    Attributes:
      step_s, epoch_s, eval_s: contender → seconds per step, epoch and pass over the images.
      gemm_flops: library → floating point operations per second of its best matrix product.
      peak_mib: contender → largest resident set, the framework itself included; "ours" compiled,
        "ours_warm" found everything in the compile cache.
      first_step_s: "cold" and "warm" → seconds from process start to the end of the first step.
    """

    step_s: dict[str, list[float]]
    epoch_s: dict[str, list[float]]
    eval_s: dict[str, list[float]]
    gemm_flops: dict[str, list[float]]
    peak_mib: dict[str, float]
    first_step_s: dict[str, list[float]]


def main(arguments: list[str]) -> None:
    """Reads the flags, measures, prints, draws."""
    options = flags.FLAGS
    if options.worker_pipe is not None:
        return serve(options.worker_pipe)
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    for flag, file in (("out", options.out), ("figure", options.figure)):
        if file and not pathlib.Path(file).absolute().parent.is_dir():
            raise RunError(f"--{flag}={file}: there is no folder {pathlib.Path(file).absolute().parent}")
    cores = pick("cores", options.cores, CORES)
    names = pick("only", options.only, tuple(CASES))
    jax.config.update("jax_platforms", "cpu")
    if options.scaling:
        rows = [row for number in cores for row in measure_scaling(number, options.repeats)]
        print(format_scaling(rows))
    else:
        require_torch()
        for name in names:
            print(f"{name}: {verify(CASES[name])}", flush=True)
        rows = []
        for name in names:
            for number in cores:
                _say(f"{name}, {number} core{'s' * (number == 'all')}, load {os.getloadavg()[0]:.1f}")
                measured, notes = measure(CASES[name], number, options.repeats)
                rows.append(make_row(name, number, measured, step_flops(CASES[name])))
                for note in notes:
                    print(note, flush=True)
                if options.out:  # after every row, so that a run cut short leaves what it has
                    records.write_json(pathlib.Path(options.out), rows)
        print(format_table(rows))
    if options.out:
        records.write_json(pathlib.Path(options.out), rows)
    if options.figure:
        (draw_scaling if options.scaling else draw_steps)(rows, options.figure)


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_list("only", list(CASES), "Cases to time.")
    flags.DEFINE_list("cores", list(CORES), "Core counts to time.")
    flags.DEFINE_integer("repeats", 20, "Turns that count; epochs take a quarter of them.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON to write: a list of rows.")
    flags.DEFINE_string("figure", None, "PNG to write.")
    flags.DEFINE_boolean("scaling", False, "Instead: our step against batch, channels, layers and side.")
    flags.DEFINE_integer("worker_pipe", None, "For the program itself.")


def pick(flag: str, chosen: Sequence[str], known: Sequence[str]) -> list[str]:
    """`chosen`, checked.

    Raises:
      RunError: nothing, or something that is not known.
    """
    for name in chosen:
        if name not in known:
            raise RunError(f"--{flag}={name} is unknown; choose from {', '.join(known)}")
    if not chosen:
        raise RunError(f"--{flag} is empty; choose from {', '.join(known)}")
    return list(dict.fromkeys(chosen))


def require_torch() -> None:
    """Raises RunError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise RunError('the benchmark needs PyTorch to compare with; pip install -e ".[benchmark]"')


# What the networks are


def describe_network(config: Mapping[str, Any], image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The two-layer GHVAE of a config in plain values, from which `torch_reference` builds its own."""
    model = config["model"]
    z_1, z_2 = model["latent_shapes"]
    return {
        "image_shape": image_shape,
        "channels": model["channels"],
        "stages": [stage._asdict() for stage in blocks.make_stages(image_shape[0], model["num_stages"])],
        "z_1": z_1,
        "z_2": z_2,
        "likelihood": model["likelihood"],
        "likelihood_std": model["likelihood_std"],
    }


def step_flops(case: Case) -> float:
    """Floating point operations of the products in one training step, from their shapes alone.

    A multiply and an add are two. A product counts three times, forward and for the gradients of both
    factors, except the first convolutions: nobody needs the gradient of the image. Taps on the padding
    count, as in every implementation by matrix products.
    """
    config = case.config
    network = describe_network(config, case.image_shape)
    stages, c, image_channels = network["stages"], network["channels"], case.image_shape[2]
    (side, _, z_1_channels), (z_2,) = network["z_1"], network["z_2"]
    features, size = stages[-1]["side_out"] ** 2 * c, side * side * z_1_channels

    def conv(stage: Mapping[str, int], c_in: int, c_out: int) -> int:
        # Transposed, it has the same products: every small pixel meets the whole kernel.
        return stage["side_out"] ** 2 * blocks.KERNEL_SIZE**2 * c_in * c_out

    first = conv(stages[0], image_channels, c)
    inner = [conv(stage, c, c) for stage in stages[1:]]
    head = side * side * blocks.HEAD_KERNEL_SIZE**2 * c * 2 * z_1_channels
    products = [
        *inner,  # q(z_2|x)
        features * 2 * z_2,
        *inner[:-1],  # q(z_1|z_2, x)
        z_2 * features,
        conv(stages[-1], c, c),
        conv(stages[-1], 2 * c, c),
        head,
        z_2 * (size // 2),  # p(z_1|z_2)
        (size // 2) * 2 * size,
        *inner[:-1],  # p(x|z_1)
        conv(stages[-1], z_1_channels, c),
        first,
    ]
    return 2.0 * config["training"]["batch_size"] * (3 * sum(products) + 2 * 2 * first)


def verify(case: Case) -> str:
    """Proves that both sides compute the same, and says how closely.

    Raises:
      RunError: distortion, rates or gradients differ by more than 1e-3, or parameters by number.
    """
    torch_reference = importlib.import_module("experiments.torch_reference")
    config, betas = case.config, (0.7, 1.3)
    model = make_hvae(ModelConfig(**config["model"]), case.image_shape)
    x = np.random.default_rng(0).random((8, *case.image_shape), np.float32).round(1)
    if config["data"]["binarize"] == "round":
        x = x.round()
    key = jax.random.key(1)
    params: Any = jax.jit(model.init)(jax.random.key(0), x, key)
    codes: Any = model.apply(params, x, key, method="encode")
    noises = [np.asarray((code.sample - code.mean) / code.std) for code in codes]

    def loss_fn(params: Any) -> Any:
        terms: Any = model.apply(params, x, key)
        return (terms.distortion + terms.rates @ jnp.asarray(betas)).mean(), terms

    (_, terms), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    network = describe_network(config, case.image_shape)
    distortion, layer_rates, torch_grads = torch_reference.evaluate_same(network, params, x, noises, betas)
    ours = {"distortion": terms.distortion, "rate R_1": terms.rates[:, 0], "rate R_2": terms.rates[:, 1]}
    theirs = {"distortion": distortion, "rate R_1": layer_rates[:, 0], "rate R_2": layer_rates[:, 1]}
    for name, grad in torch_reference.from_flax(grads, network).items():
        ours[f"gradient of {name}"], theirs[f"gradient of {name}"] = grad, torch_grads[name]
    num_parameters = sum(grad.size for grad in torch_grads.values())
    return compare(ours, theirs, num_parameters, case.num_parameters)


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], num_parameters: int, expected: int) -> str:
    """The largest relative difference |a − b| / |a| of each pair of arrays, in one line; see `verify`."""
    differences = {
        name: float(np.linalg.norm(np.asarray(a) - theirs[name]) / np.linalg.norm(a))
        for name, a in ours.items()
    }
    worst = max(differences, key=lambda name: np.nan_to_num(differences[name], nan=np.inf))
    if not differences[worst] <= TOLERANCE or num_parameters != expected:  # NaN must not pass
        raise RunError(
            f"the PyTorch network is not ours, so there is nothing to compare: {worst} differs by "
            f"{differences[worst]:.1e} (at most {TOLERANCE:g}), {num_parameters} parameters for {expected}"
        )
    return (
        f"the same network, {num_parameters:,} parameters; {worst} differs most, by {differences[worst]:.1e}"
    )


# The processes


class Contender:
    """A process of its own, pinned before it starts, that does what it is asked and says how long it took."""

    def __init__(self, module: str, spec: Mapping[str, Any], cores: str, cache: str | None = None) -> None:
        """Starts `python -m module`; `cache` is a folder for what it compiles, empty by default."""
        self._scratch = tempfile.TemporaryDirectory()
        cache = cache or self._scratch.name
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else it leaves a pool of processes behind
        }
        self._name = f"{module} ({spec['kind']})"
        self._errors = pathlib.Path(self._scratch.name, "errors.txt")
        self._pipe, theirs = Pipe()
        flag = str(theirs.fileno()) if module.endswith("reference") else f"--worker_pipe={theirs.fileno()}"
        with theirs, self._errors.open("w") as errors, _pinned(cores):
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, flag],
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
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._scratch.cleanup()

    def ask(self, method: str, *arguments: Any) -> float:
        """The worker's answer.

        Raises:
          RunError: it failed, or ended.
        """
        try:
            self._pipe.send((method, arguments))
            kind, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            last = (self._errors.read_text().strip().splitlines() or ["it left no message"])[-1]
            raise RunError(f"{self._name} ended: {last}") from error
        if kind == "error":
            raise RunError(f"{self._name} failed: {' '.join(answer.split())[:300]}")
        return answer


def serve(pipe_descriptor: int) -> None:
    """Our side of `Contender`; `torch_reference.main` is the other, which may not import JAX."""
    with Connection(pipe_descriptor) as pipe:
        spec, worker = pipe.recv(), None
        make_worker = {"network": NetworkWorker, "gemm": GemmWorker}[spec["kind"]]
        while True:
            try:
                method, arguments = pipe.recv()
            except EOFError:
                return
            try:
                worker = worker or make_worker(spec)
                pipe.send(("ok", getattr(worker, method)(*arguments)))
            except Exception as error:  # whatever it is, the parent reports it
                pipe.send(("error", f"{type(error).__name__}: {error}"))


class NetworkWorker:
    """Trains and evaluates as `training.train` does, without its log; every answer is in seconds."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        built = experiment.from_config(spec["config"])
        config, images = built.training, built.dataset.train.images
        self._built, self._config, self._num_images = built, config, len(images)
        step_fn = training.make_train_step(
            built.terms_fn,
            built.preprocess_fn,
            built.make_control(),
            config,
            training.pick_micro_batch(config.batch_size),
            axis_name=training.DEVICE_AXIS,
        )
        self._interval = jax.pmap(
            training.make_interval(step_fn),
            axis_name=training.DEVICE_AXIS,
            in_axes=(0, 0, 0, None),
            donate_argnums=0,
        )
        self._evaluator: rates.SplitEvaluator | None = None
        self._state, self._images = training.shard_devices(
            jax.tree.map(lambda a: np.asarray(a)[None], (built.init_state(), images))
        )
        self._done = 0

    def steps(self, count: int) -> float:
        """Training steps, in compiled calls of at most `log_every_steps`."""
        start, length, config = time.perf_counter(), self._config.log_every_steps, self._config
        while count:
            part = min(count, length)
            indices = np.zeros((1, length, config.batch_size), np.int32)
            batches = training.batch_indices(
                config.seed, self._num_images, config.batch_size, self._done, part
            )
            indices[0, :part] = batches
            self._state, means, done = self._interval(self._state, self._images, indices, part)
            jax.device_get((means, done))
            count, self._done = count - part, self._done + part
        return time.perf_counter() - start

    def epoch(self) -> float:
        """As many steps as the images make batches."""
        return self.steps(self._num_images // self._config.batch_size)

    def evaluate(self) -> float:
        """Distortion and rates of every image, one draw each."""
        if self._evaluator is None:
            images = self._built.dataset.train.images
            self._evaluator = rates.SplitEvaluator(images, self._built.preprocess_fn)
            self._terms_fn = self._built.terms_fn
        params = jax.tree.map(lambda a: a[0], self._state).eval_params
        start = time.perf_counter()
        self._evaluator.map_images(self._terms_fn, params, jax.random.key(0))
        return time.perf_counter() - start

    def peak_mib(self) -> float:
        """The process's largest resident set so far."""
        # Not getrusage: on Linux its maximum starts from that of the process that started this one.
        status = pathlib.Path("/proc/self/status")
        if not status.exists():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024


class GemmWorker:
    """Float32 products of square matrices, by XLA."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        del spec
        self._product = jax.jit(jnp.matmul)

    def gemm(self, size: int, count: int) -> float:
        """Seconds for `count` products of two `[size, size]` matrices."""
        a, b = (jax.random.uniform(jax.random.key(i), (size, size)) for i in range(2))
        self._product(a, b).block_until_ready()
        start = time.perf_counter()
        for _ in range(count):
            self._product(a, b).block_until_ready()
        return time.perf_counter() - start


# What they are asked


def measure(case: Case, cores: str, repeats: int) -> tuple[Measurements, list[str]]:
    """All of one case on one number of cores, and notes on what could not be measured."""
    ours_module, torch_module = "experiments.benchmark", "experiments.torch_reference"
    out, notes = Measurements({}, {}, {}, {}, {}, {}), []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config = with_random_images(case.config, case.image_shape, NUM_IMAGES, pathlib.Path(folder))
        ours_spec = {"kind": "network", "config": config}
        torch_spec = {
            "kind": "network",
            "network": describe_network(config, case.image_shape),
            "training": config["training"],
            "betas": config["objective"]["betas"],
            "binarize": config["data"]["binarize"],
            "data": config["data"]["name"].removeprefix("npz:"),
            "compile": False,
        }
        out.first_step_s, warm_peak_mib = measure_first_step(ours_spec, cores, min(repeats, 3))

        def start(module: str, spec: Mapping[str, Any]) -> Contender:
            return stack.enter_context(Contender(module, spec, cores))

        networks = {"ours": start(ours_module, ours_spec), "torch": start(torch_module, torch_spec)}
        networks["torch_compile"] = start(torch_module, {**torch_spec, "compile": True})
        products = {
            name: start(m, {"kind": "gemm"}) for name, m in (("xla", ours_module), ("torch", torch_module))
        }

        for name, contender in list(networks.items()):
            try:
                contender.ask("steps", 2)  # compiles
            except RunError as error:
                if name != "torch_compile":
                    raise
                notes.append(f"torch.compile does not work here, its column stays empty: {error}")
                del networks[name]
        slowest = max(contender.ask("steps", 2) / 2 for contender in networks.values())
        count = min(max(round(SECONDS_PER_TURN / slowest), 2), config["training"]["log_every_steps"])
        sizes = {name: best_gemm(contender) for name, contender in products.items()}
        out.step_s = {name: [] for name in networks}
        out.gemm_flops = {name: [] for name in products}
        for _ in range(repeats):
            for name, contender in networks.items():
                out.step_s[name].append(contender.ask("steps", count) / count)
            for name, contender in products.items():
                size, number = sizes[name]
                seconds = contender.ask("gemm", size, number)
                out.gemm_flops[name].append(2.0 * size**3 * number / seconds)

        pair = {name: networks[name] for name in ("ours", "torch")}
        out.epoch_s = take_turns(pair, "epoch", -(-repeats // 4))
        out.peak_mib = {name: contender.ask("peak_mib") for name, contender in networks.items()}
        out.peak_mib["ours_warm"] = warm_peak_mib
        out.eval_s = take_turns(pair, "evaluate", -(-repeats // 4), warm_up=True)
    return out, notes


def take_turns(
    contenders: Mapping[str, Contender], method: str, repeats: int, warm_up: bool = False
) -> dict[str, list[float]]:
    """Answers of every contender, asked A B A B."""
    if warm_up:
        for contender in contenders.values():
            contender.ask(method)
    answers: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            answers[name].append(contender.ask(method))
    return answers


def measure_first_step(
    spec: Mapping[str, Any], cores: str, repeats: int
) -> tuple[dict[str, list[float]], float]:
    """From the start of our process to the end of its first step, compile cache empty and filled.

    Returns:
      "cold" and "warm" → seconds; the warm process's peak memory, MiB, which holds no compiling.
    """
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    warm_peak_mib = 0.0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for answers in seconds.values():
                start = time.perf_counter()
                with Contender("experiments.benchmark", spec, cores, cache) as contender:
                    contender.ask("steps", 1)
                    answers.append(time.perf_counter() - start)
                    warm_peak_mib = contender.ask("peak_mib")
    return seconds, warm_peak_mib


def best_gemm(contender: Contender) -> tuple[int, int]:
    """The size of square matrix that gives the most operations per second, and how many fill a turn."""
    found = []
    for size in GEMM_SIZES:
        number = max(round(0.5 * SECONDS_PER_TURN / contender.ask("gemm", size, 1)), 1)
        found.append((size**3 * number / contender.ask("gemm", size, number), size, number))
    return max(found)[1:]


def with_random_images(
    config: dict[str, Any], image_shape: tuple[int, int, int], num_images: int, folder: pathlib.Path
) -> dict[str, Any]:
    """The config with its data replaced by a file of random bytes in `folder`."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, *image_shape), np.uint8)
    file = folder / "images.npz"
    np.savez(file, train_images=images, test_images=images[:1])
    return {**config, "data": {**config["data"], "name": f"npz:{file}", "num_valid": 0}}


# What came out


def make_row(case: str, cores: str, measured: Measurements, num_flops: float) -> dict[str, Any]:
    """Medians and ratios of one case on one number of cores, as `--out` writes them.

    `roofline_ms` is what the products of the step would take at the speed of the best matrix product
    that either library reached in the same run; `roofline_fraction` is the part of it that ours reaches.
    """
    step = {name: 1e3 * statistics.median(seconds) for name, seconds in measured.step_s.items()}
    roofline_ms = 1e3 * num_flops / max(map(statistics.median, measured.gemm_flops.values()))
    return {
        "case": case,
        "cores": cores,
        "ours_ms": step["ours"],
        "torch_ms": step["torch"],
        "torch_compile_ms": step.get("torch_compile"),
        "ratio": paired_ratio(measured.step_s),
        "roofline_ms": roofline_ms,
        "roofline_fraction": roofline_ms / step["ours"],
        "ours_peak_mib": measured.peak_mib["ours"],
        "ours_warm_peak_mib": measured.peak_mib["ours_warm"],
        "torch_peak_mib": measured.peak_mib["torch"],
        "ours_epoch_s": statistics.median(measured.epoch_s["ours"]),
        "torch_epoch_s": statistics.median(measured.epoch_s["torch"]),
        "epoch_ratio": paired_ratio(measured.epoch_s),
        "ours_eval_images_per_s": NUM_IMAGES / statistics.median(measured.eval_s["ours"]),
        "torch_eval_images_per_s": NUM_IMAGES / statistics.median(measured.eval_s["torch"]),
        "first_step_cold_s": statistics.median(measured.first_step_s["cold"]),
        "first_step_warm_s": statistics.median(measured.first_step_s["warm"]),
    }


def paired_ratio(seconds: Mapping[str, Sequence[float]]) -> float:
    """Median of ours / PyTorch over neighbouring turns, which saw the same machine."""
    return statistics.median(a / b for a, b in zip(seconds["ours"], seconds["torch"], strict=True))


TABLE = {
    "ours_ms": ("training step, ours (ms)", ".2f"),
    "torch_ms": ("  PyTorch eager (ms)", ".2f"),
    "torch_compile_ms": ("  torch.compile (ms)", ".2f"),
    "ratio": ("  ours / PyTorch eager", ".2f"),
    "roofline_ms": ("  products alone at best GEMM speed (ms)", ".2f"),
    "roofline_fraction": ("  part of that speed that ours reaches", ".0%"),
    "ours_epoch_s": ("epoch with data, ours (s)", ".2f"),
    "torch_epoch_s": ("  PyTorch eager, DataLoader (s)", ".2f"),
    "epoch_ratio": ("  ours / PyTorch eager", ".2f"),
    "ours_eval_images_per_s": ("evaluation, ours (images/s)", ",.0f"),
    "torch_eval_images_per_s": ("  PyTorch eager (images/s)", ",.0f"),
    "ours_peak_mib": ("peak memory, ours, compiling (MiB)", ",.0f"),
    "ours_warm_peak_mib": ("  ours, from the compile cache (MiB)", ",.0f"),
    "torch_peak_mib": ("  PyTorch eager (MiB)", ",.0f"),
    "first_step_cold_s": ("start to first step, compiling (s)", ".1f"),
    "first_step_warm_s": ("  from the compile cache (s)", ".1f"),
}


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One column per row of `--out`; what could not be measured is a dash."""
    cells = [["", *(f"{row['case']}, {row['cores']}" for row in rows)]]
    for name, (label, spec) in TABLE.items():
        cells.append([label, *("—" if row[name] is None else format(row[name], spec) for row in rows)])
    notes = (
        f"Medians; float32, CPU. An epoch and an evaluation pass are {NUM_IMAGES:,} random images.",
        "Peak memory includes the framework itself. An epoch's losses are read once, at its end.",
    )
    return "\n".join([*_align(cells), *notes])


def draw_steps(rows: Sequence[Mapping[str, Any]], file: str) -> None:
    """Bars of the time per step of each contender, and a line where its products alone would be."""
    figure = Figure(figsize=(max(4.8, 1.9 * len(rows)), 3.8), layout="constrained")
    panels = figure.subplots(1, len(rows), squeeze=False)[0]
    contenders = {"ours_ms": "ours", "torch_ms": "PyTorch", "torch_compile_ms": "compile"}
    for axes, row in zip(panels, rows, strict=True):
        shown = {label: row[name] for name, label in contenders.items() if row[name] is not None}
        axes.bar(list(shown), list(shown.values()), color=style.LAYER_COLORS[: len(shown)])
        axes.axhline(row["roofline_ms"], color=style.DISTORTION_COLOR, ls="--", lw=1.2)
        axes.set_title(f"{row['case']}\n{row['cores']} core{'s' * (row['cores'] == 'all')}", fontsize=10)
        axes.tick_params(axis="x", rotation=30)
        for place, value in enumerate(shown.values()):
            axes.text(place, value, f"{value:.3g}", ha="center", va="bottom", fontsize=8)
    panels[0].set_ylabel("training step (ms)")
    figure.suptitle("Training step; dashed: its products at best GEMM speed", fontsize=10)
    figure.savefig(file, dpi=160)


# How our step grows

SCALING = {
    "batch size": (32, 64, 128, 256, 512),
    "channels": (8, 16, 32, 64),
    "layers": (1, 2, 3, 4),
    "image side": (8, 16, 32, 64),
}


def scaling_config(axis: str, value: int) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """The CIFAR reference with one thing changed, and its image shape.

    Channels are those of the convolutions and of every latent. Layers above two are maps of the larger
    sides, put below the reference's two. Image sides add or drop a stage, so the smallest map stays 4×4.
    """
    config = cifar.get_config().to_dict()
    channels = value if axis == "channels" else 32
    side = value if axis == "image side" else 32
    num_layers = value if axis == "layers" else 2
    num_stages = (side // 4).bit_length() - 1
    maps = tuple((map_side, map_side, channels) for map_side in (16, 8, 4))
    latents = (*maps, (channels,))[-max(num_layers, 2) :][:num_layers]
    config["model"].update(channels=channels, num_stages=num_stages, latent_shapes=latents)
    config["objective"]["betas"] = (1.0,) * num_layers
    if axis == "batch size":
        config["training"]["batch_size"] = value
    return config, (side, side, 3)


def measure_scaling(cores: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Rows of `axis`, `value`, `cores`, `step_ms`, `peak_mib`: each point in a process of its own."""
    for axis, values in SCALING.items():
        for value in values:
            _say(f"scaling: {axis} {value}, {cores}")
            config, image_shape = scaling_config(axis, value)
            with tempfile.TemporaryDirectory() as folder:
                config = with_random_images(config, image_shape, 1024, pathlib.Path(folder))
                spec = {"kind": "network", "config": config}
                with Contender("experiments.benchmark", spec, cores) as contender:
                    contender.ask("steps", 1)
                    count = min(max(round(SECONDS_PER_TURN / contender.ask("steps", 1)), 1), 100)
                    step_s = [contender.ask("steps", count) / count for _ in range(repeats)]
                    peak_mib = contender.ask("peak_mib")
            step_ms = 1e3 * statistics.median(step_s)
            yield {"axis": axis, "value": value, "cores": cores, "step_ms": step_ms, "peak_mib": peak_mib}


def format_scaling(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per point."""
    cells = [["CIFAR reference, changed in", "", "cores", "step (ms)", "peak (MiB)"]]
    for row in rows:
        numbers = f"{row['step_ms']:.2f}", f"{row['peak_mib']:,.0f}"
        cells.append([row["axis"], str(row["value"]), row["cores"], *numbers])
    return "\n".join(_align(cells))


def draw_scaling(rows: Sequence[Mapping[str, Any]], file: str) -> None:
    """Step time above, peak memory below, a panel for each thing that changes."""
    figure = Figure(figsize=(11.0, 5.2), layout="constrained")
    panels = figure.subplots(2, len(SCALING), sharex="col", sharey="row", squeeze=False)
    for column, (axis, values) in enumerate(SCALING.items()):
        for number, cores in enumerate(dict.fromkeys(row["cores"] for row in rows)):
            points = [row for row in rows if row["axis"] == axis and row["cores"] == cores]
            for axes, name in zip(panels[:, column], ("step_ms", "peak_mib"), strict=True):
                color = style.LAYER_COLORS[number]
                y = [point[name] for point in points]
                axes.plot([point["value"] for point in points], y, "o-", color=color, label=f"cores: {cores}")
        for axes in panels[:, column]:
            axes.set_yscale("log")
            if axis != "layers":
                axes.set_xscale("log", base=2)
            axes.set_xticks(list(values), [str(value) for value in values])
            axes.minorticks_off()
        panels[1, column].set_xlabel(axis)
    panels[0, 0].set_ylabel("training step (ms)")
    panels[1, 0].set_ylabel("peak memory (MiB)")
    panels[0, -1].legend(frameon=False)
    figure.suptitle("The CIFAR reference with one thing changed")
    figure.savefig(file, dpi=160)


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


def _align(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    define_flags()
    program.run(main)
