"""What decides the numbers of an evaluation: kept beside them, so that none outlives what made it."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from hvae_jax import records
from hvae_jax.evaluation.sizes import Sizes

# Fields of a run's config that change no number of its evaluation. The data are known by their fingerprints,
# not by where they lie.
_FREE = ("data.name", *records.NOT_TRAINING)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of one model's evaluation.

    Attributes:
      version: of this package.
      sizes: how much was done.
      data: their fingerprints, and how they are binarised.
      classifier: report of the training of that which judges; None where there is none.
      config: hash of the run's.
      step, checksum: of the checkpoint.
    """

    version: str | None
    sizes: Sizes
    data: dict[str, Any]
    classifier: dict[str, Any] | None
    config: str
    step: int
    checksum: str | None


def package_version() -> str | None:
    """Of this package; None in a checkout that is not installed."""
    try:
        return importlib.metadata.version("hvae_jax")
    except importlib.metadata.PackageNotFoundError:
        return None


def config_hash(config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that another field of a run's config would change, if it decides numbers."""
    kept = {
        group: {name: value for name, value in fields.items() if f"{group}.{name}" not in _FREE}
        for group, fields in config.items()
        if group != "evaluation"  # that of `experiments.run`
    }
    return digest(kept)


def digest(content: Any) -> str:
    """16 hexadecimal digits of what JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def data_fingerprints(described: Mapping[str, Any]) -> dict[str, Any]:
    """`Dataset.describe()` without where the data lie."""
    return {name: value for name, value in described.items() if name != "name"}


def difference(old: Any, new: Mapping[str, Any]) -> str | None:
    """The first setting that is another, in words; None where all are the same."""
    if not isinstance(old, dict):
        return "its settings are not there"
    for name in [*new, *(name for name in old if name not in new)]:
        before, now = old.get(name, "absent"), new.get(name, "absent")
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            return f"{name}: {difference(before, now)}"
        before, now = (_shorten(value) for value in (before, now))
        return f"{name} was {before}, is {now}"
    return None


def _shorten(value: Any) -> str:
    text = "unknown" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "…"
