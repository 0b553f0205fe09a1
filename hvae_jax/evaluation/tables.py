"""evaluation.csv: one row per model, every metric a column named by its place in metrics.json."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

from hvae_jax.errors import RunError
from hvae_jax.evaluation import metrics
from hvae_jax.evaluation.plain import nest, to_row
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.files.text import write_rows

TABLE_FILE = "evaluation.csv"


def write_table(folder: pathlib.Path, models: Sequence[Evaluated]) -> None:
    """Writes evaluation.csv; where a model has no such number its cell is empty.

    Column `made_with` differs wherever config, checkpoint, data, classifier, sizes or version do; `network`
    says which conditioned network a row is of.
    """
    rows = [
        {
            "model": model.name,
            **{f"beta_{layer}": beta for layer, beta in enumerate(model.betas, start=1)},
            "seed": model.seed,
            "made_with": model.made_with,
            "network": model.network,
            **to_row(dataclasses.replace(model.metrics, left_out={})),
        }
        for model in models
    ]
    write_rows(folder / TABLE_FILE, rows)


def read_table(file: str | os.PathLike[str]) -> list[Evaluated]:
    """The models of an evaluation.csv, for guidance and for tables; there are no pictures with them.

    Tables of version 0.1.0 are read too.

    Raises:
      RunError: absent, or not such a table.
    """
    file = pathlib.Path(file)
    try:
        with file.open(newline="", encoding="utf-8") as content:
            rows = list(csv.DictReader(content))
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise RunError(f"{file} is not a table of evaluated models: {error}") from error
    if not rows:
        raise RunError(f"{file} has no row")
    try:
        return [_read_row(row, file) for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{file} is no {TABLE_FILE} of experiments.evaluate ({type(error).__name__}: {error})"
        ) from error


def _read_row(row: Mapping[str, str], file: pathlib.Path) -> Evaluated:
    betas, numbers = [], dict(row)
    name, seed = numbers.pop("model"), int(numbers.pop("seed"))
    made_with, network = numbers.pop("made_with", ""), numbers.pop("network", "")
    while (column := f"beta_{len(betas) + 1}") in numbers:
        betas.append(float(numbers.pop(column)))
    found = metrics.read(nest(numbers), f"{file}: model {name}")
    model = Evaluated(
        name, pathlib.Path(name), tuple(betas), seed, found, made_with=made_with, network=network
    )
    if len(model.rates_nats) != len(betas):
        raise ValueError(f"{len(betas)} betas and {len(model.rates_nats)} rates")
    return model
