"""Starts programs as a user does, each as a process of its own, but a fork: the imports are done once.

A `Server` is a process that has imported all programs and has not started JAX's devices; it forks one for
each start. Signals, exit statuses and outputs are those of `python -m experiments.PROGRAM ARGUMENTS`.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import matplotlib.figure
import PIL.Image

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
PROGRAMS = (
    *("run", "grid", "grid_task", "evaluate", "plot_betas", "targets_table", "made_images"),
    *("own_networks", "set_latents", "ask", "excess", "compress", "decompress", "explorer"),
    "benchmark.__main__",
)
# For whatever a test waits for; nothing takes nearly as long.
DEADLINE_SECONDS = 200.0
# Half of the tests' time is compilation. jax 0.10 can leave out what later ones always do: a third less. One
# module of LLVM for each program, instead of many for many cores, is another sixth less.
QUICK = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if version("jax").startswith("0.10.")
    else ""
)
# Of programs, which compile more and run less than tests do in their own process.
XLA_FLAGS = f"{QUICK} --xla_backend_optimization_level=0".strip()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Returns when the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


class Stop(NamedTuple):
    """Where a process stops as at SIGSTOP, see stops/sitecustomize.py.

    Attributes:
      log: it is about to add a row to this file,
      num_rows: which has so many.
    """

    log: pathlib.Path
    num_rows: int

    @property
    def said(self) -> pathlib.Path:
        """The file that then holds the process's id."""
        name = str(self.log).replace(os.sep, "-")
        return _said_folder() / f"{name}-{self.num_rows}"

    def pid(self) -> int:
        """Of the process, once it has stopped there."""
        wait_for(self.said.exists, f"a process stops at row {self.num_rows} of {self.log}")
        pid = int(self.said.read_text())
        wait_for(lambda: _is_stopped(pid), f"process {pid} stops")
        return pid


@functools.cache
def _said_folder() -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="stopped-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def with_stops(environment: Mapping[str, str], *stops: Stop) -> dict[str, str]:
    """The environment of a program that is to stop there, or of one that starts such."""
    content = [[str(stop.log), stop.num_rows, str(stop.said)] for stop in stops]
    path = os.pathsep.join(filter(None, (str(TESTS / "stops"), environment.get("PYTHONPATH"))))
    return {**environment, "HVAE_JAX_TEST_STOPS": json.dumps(content), "PYTHONPATH": path}


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):  # it has ended
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


class Ended(NamedTuple):
    """How a program ended: its exit status, minus a signal's number if that ended it, and its output."""

    status: int
    out: str
    err: str


class Started:
    """A program that was started; much as a `subprocess.Popen` of it."""

    def __init__(self, folder: pathlib.Path, server: subprocess.Popen[str]) -> None:
        self._folder = folder
        wait_for(lambda: (folder / "pid").exists() or server.poll() is not None, "a program starts")
        self.pid = int((folder / "pid").read_text())

    def is_over(self) -> bool:
        """Whether it has ended."""
        return (self._folder / "status").exists()

    def send_signal(self, number: int) -> None:
        """Also wakes it, if it is stopped."""
        os.kill(self.pid, number)
        os.kill(self.pid, signal.SIGCONT)

    def wait(self, seconds: float = DEADLINE_SECONDS) -> Ended:
        """What became of it."""
        wait_for(self.is_over, "a program ends", seconds)
        status = int((self._folder / "status").read_text())
        return Ended(status, *((self._folder / name).read_text(errors="replace") for name in ("out", "err")))


class Server:
    """Starts programs; to be closed, which ends those that have not ended."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="programs-"))
        self._started: list[Started] = []
        self._process: subprocess.Popen[str] | None = None

    def start(
        self,
        program: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        folder: pathlib.Path = ROOT,
        stop: Stop | None = None,
        largest_file: int | None = None,
        closed_pipe: bool = False,
        draws: bool = False,
    ) -> Started:
        """`python -m experiments.PROGRAM ARGUMENTS`.

        Args:
          program, arguments: of the command.
          environment: variables that differ from those of the others.
          folder: where it is started.
          stop: where it is to stop.
          largest_file: that it can write, in bytes, as if the disk were full.
          closed_pipe: whether nobody is to read its standard output.
          draws: whether figures are drawn; else each is one dot.
        """
        if self._process is None:
            path = os.pathsep.join(map(str, (ROOT, TESTS, TESTS / "stops")))
            command = [sys.executable, str(TESTS / "programs.py")]
            server_environment = {**self._environment, "PYTHONPATH": path}
            self._process = subprocess.Popen(
                command,
                env=server_environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,  # so that Python thinks of a pipe, as programs mostly have
                text=True,
                start_new_session=True,
            )
        own = self._folder / str(len(self._started))
        own.mkdir()
        changes = dict(environment or {})
        if stop is not None:
            changes = with_stops(changes, stop)
        row = {
            "program": program,
            "arguments": arguments,
            "environment": changes,
            "folder": str(folder),
            "largest_file": largest_file,
            "closed_pipe": closed_pipe,
            "draws": draws,
            "own": str(own),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(row) + "\n")
        self._process.stdin.flush()
        self._started.append(Started(own, self._process))
        return self._started[-1]

    def run(self, program: str, *arguments: str, **options: Any) -> Ended:
        """Starts it and waits for it."""
        return self.start(program, *arguments, **options).wait()

    def close(self) -> None:
        """Ends what was started, and the process that started it."""
        left = [started.pid for started in self._started if not started.is_over()]
        # A test that failed may have left one that stopped; programs that were started start others.
        stopped = [int(file.read_text()) for file in _said_folder().iterdir()]
        for pid in {*left, *filter(_is_stopped, stopped)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


# What the server does


def main() -> None:
    """Reads rows, a line each, and starts a program for each."""
    warnings.filterwarnings("ignore", message=".*fork.*")
    import sklearn.datasets  # noqa: F401

    import hvae_jax.figures.applications  # what programs import late
    import hvae_jax.grid.run  # noqa: F401
    from experiments import environment

    # Else each program asks XLA whether it knows them, which takes a third of a second.
    known = environment._KNOWN_XLA_FLAGS.pattern, *map(re.escape, QUICK.split())
    environment._KNOWN_XLA_FLAGS = re.compile("|".join(known))
    _draw()
    modules = {name: importlib.import_module(f"experiments.{name}") for name in PROGRAMS}
    gc.collect()
    gc.freeze()  # a collection would touch, and so copy, what forks share
    for line in sys.stdin:
        if not os.fork():
            _wait(json.loads(line), modules)
            os._exit(0)
    with contextlib.suppress(ChildProcessError):  # none is left
        while True:
            os.wait()


def _draw() -> None:
    """What the first figure of a process takes longer for: fonts, a parser of formulas, a renderer."""
    figure = matplotlib.figure.Figure()
    figure.subplots().set_title("$z_1$")
    figure.savefig(io.BytesIO(), format="png")


def _draw_a_dot(figure: matplotlib.figure.Figure, file: str, **options: Any) -> None:
    """In place of `savefig`, which takes a quarter of a second for each figure and kind of file."""
    del figure, options
    PIL.Image.new("L", (1, 1)).save(file)


def _wait(row: dict[str, Any], modules: Mapping[str, Any]) -> None:
    """Starts a program, and leaves its process id and its exit status in files."""
    own = pathlib.Path(row["own"])
    child = os.fork()
    if not child:
        _start(row, modules[row["program"]], own)

    def say(name: str, number: int) -> None:
        (own / f"{name}.new").write_text(str(number))
        (own / f"{name}.new").rename(own / name)

    say("pid", child)
    _, status = os.waitpid(child, 0)
    say("status", os.waitstatus_to_exitcode(status))


def _start(row: dict[str, Any], module: Any, own: pathlib.Path) -> None:
    """What `python -m experiments.PROGRAM ARGUMENTS` does after the imports; does not return."""
    import jax

    from experiments import program

    status: Any = 1
    # A shell that runs the tests in the background has Ctrl-C ignored, and what is ignored stays so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        streams = [os.open(own / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("out", "err")]
        for number, stream in enumerate((nothing, *streams)):
            os.dup2(stream, number)
        if row["closed_pipe"]:
            read_end, write_end = os.pipe()
            os.close(read_end)
            os.dup2(write_end, 1)
        if row["largest_file"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (row["largest_file"], resource.RLIM_INFINITY))
        if not row["draws"]:
            setattr(matplotlib.figure.Figure, "savefig", _draw_a_dot)  # noqa: B010
        os.chdir(row["folder"])
        os.environ.update(row["environment"])
        if "JAX_PLATFORMS" in row["environment"]:  # JAX reads it when it is imported
            jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
        importlib.import_module("sitecustomize").heed()
        sys.argv = [row["program"], *row["arguments"]]
        getattr(module, "define_flags", lambda: None)()
        module.main() if row["program"] == "grid_task" else program.run(module.main)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        if isinstance(status, str):
            print(status, file=sys.stderr)
        # As at the end of any program.
        getattr(threading, "_shutdown", lambda: None)()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    main()
