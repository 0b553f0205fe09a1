"""What the last digits of a program depend on, as a file names it."""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import re
from typing import Any

import jax
import numpy as np

from hvae_jax.cores import num_cores
from hvae_jax.models import conditioning
from hvae_jax.models.hvae import HVAE
from hvae_jax.training.checkpoints import sum_state

_PACKAGES = ("hvae_jax", "jax", "jaxlib", "flax", "numpy", "scipy", "constriction")


def versions() -> dict[str, str]:
    """Of all packages whose numbers decide how images are coded."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            found[package] = "unknown"
    return found


def device() -> str:
    """The kind of the device that computes; of a CPU also its model and the cores that share its sums."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{first.platform} {first.device_kind}"
    return f"cpu {_processor()}, {num_cores()} cores"


def betas_of(variables: Any) -> list[float]:
    """That the variables of a conditioned model have in them; none of others."""
    told = variables.get(conditioning.COLLECTION, {})
    return np.asarray(told["betas"], float).tolist() if told else []


def model_hash(model: HVAE, variables: Any) -> str:
    """32 hexadecimal digits that another config or another bit of a parameter would change."""
    said = json.dumps([list(model.image_shape), dataclasses.asdict(model.config)], sort_keys=True)
    return hashlib.blake2b(f"{said} {sum_state(variables)}".encode(), digest_size=16).hexdigest()


def _processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()
