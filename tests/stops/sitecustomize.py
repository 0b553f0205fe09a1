"""Stops a process, as SIGSTOP does, where a test wants to find it: as it is about to add to a rate log.

Python imports a module of this name when it starts, so programs that programs start are stopped, too. Where:
`HVAE_JAX_TEST_STOPS`, JSON of [log file, rows that it has by then, file to leave the process id in] each.
Each of them stops one process, once. Who waits for it may then send any signal, SIGCONT with it.
"""

import json
import os
import signal
import sys
from typing import Any


def heed() -> None:
    """Has this process stop as the environment asks."""
    stops = json.loads(os.environ.get("HVAE_JAX_TEST_STOPS", "[]"))

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or arguments[1] != "a":
            return
        for file, num_rows, said in stops:
            if os.fspath(arguments[0]) == file and _count_rows(file) >= num_rows and not os.path.exists(said):
                with open(said + ".new", "w") as new:
                    new.write(str(os.getpid()))
                os.rename(said + ".new", said)
                os.kill(os.getpid(), signal.SIGSTOP)

    if stops:
        sys.addaudithook(look)


def _count_rows(file: str) -> int:
    if not os.path.exists(file):
        return 0
    with open(file, "rb") as rows:
        return rows.read().count(b"\n")


heed()
