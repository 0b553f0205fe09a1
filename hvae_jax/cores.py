"""How many cores there are to work with."""

import os


def num_cores() -> int:
    """That this process may use, which a batch system or a container makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
