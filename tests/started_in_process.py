"""Starts programs many times in one process, as a user would each time: a fork for every start.

    python tests/started_in_process.py < ROWS.json > ANSWERS.json

What takes the seconds of a start, the imports, is done once. A row is {"program", "arguments", "folder",
"environment", "closed_pipe"}, the last if nobody is to read standard output; its answer is {"status", "out",
"err", "changed"}, where `changed` names the files of the folder that are new, gone or different after it.
"""

import contextlib
import hashlib
import importlib
import json
import os
import pathlib
import signal
import sys
import tempfile
import traceback
import warnings
from typing import Any

LIMIT_SECONDS = 60


def answer(row: dict[str, Any], module: Any) -> dict[str, Any]:
    """Starts a program and waits for it."""
    folder = pathlib.Path(row["folder"])
    before = snapshot(folder)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            if row.get("closed_pipe"):
                read_end, write_end = os.pipe()
                os.close(read_end)
                os.dup2(write_end, 1)
            _start(row, module)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        after = snapshot(folder)
        return {
            "status": os.waitstatus_to_exitcode(status),
            "out": out.read().decode(errors="replace"),
            "err": err.read().decode(errors="replace"),
            "changed": sorted(n for n in {*before, *after} if before.get(n) != after.get(n)),
        }


def snapshot(folder: pathlib.Path) -> dict[str, str]:
    """Every file and folder in it → what tells its content."""
    content = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        content[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return content


def _start(row: dict[str, Any], module: Any) -> None:
    """What `python -m experiments.PROGRAM ARGUMENTS` does after the imports; does not return."""
    import jax

    from experiments import program

    status: Any = 1
    try:
        signal.alarm(LIMIT_SECONDS)
        os.chdir(row["folder"])
        os.environ.update(row.get("environment", {}))
        if "JAX_PLATFORMS" in os.environ:  # JAX reads it when it is imported
            jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
        sys.argv = [row["program"], *row["arguments"]]
        module.main() if row["program"] == "grid_task" else program.run(module.main)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status if isinstance(status, int) else 1)


def main() -> None:
    """Reads rows, prints answers: a child for each program, and in it a child for each of its rows."""
    warnings.filterwarnings("ignore", message=".*fork.*")
    rows = json.load(sys.stdin)
    import hvae_jax.evaluation.results
    import hvae_jax.figures.applications
    import hvae_jax.grid.run  # noqa: F401  # what most programs share is imported once

    answers: dict[int, Any] = {}
    for name in dict.fromkeys(row["program"] for row in rows):
        numbers = [number for number, row in enumerate(rows) if row["program"] == name]
        with tempfile.TemporaryFile("w+") as file:
            child = os.fork()
            if not child:
                module = importlib.import_module(f"experiments.{name}")
                getattr(module, "define_flags", lambda: None)()
                json.dump({number: answer(rows[number], module) for number in numbers}, file)
                file.flush()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status:
                sys.exit(f"experiments.{name} could not be started")
            file.seek(0)
            answers.update({int(number): entry for number, entry in json.load(file).items()})
    json.dump([answers[number] for number in range(len(rows))], sys.stdout)


if __name__ == "__main__":
    main()
