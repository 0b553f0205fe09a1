"""evaluation.csv: one row per model, every metric a column named by its place in metrics.json."""

import csv
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.evaluation.results import Evaluated

TABLE_FILE = "evaluation.csv"
# Of metrics.json, but no numbers of the model.
_NO_METRICS = ("settings", "left_out")


def write_table(folder: pathlib.Path, models: Sequence[Evaluated]) -> None:
    """Writes evaluation.csv; where a model has no such number its cell is empty."""
    rows = [
        {
            "model": model.name,
            **{f"beta_{layer}": beta for layer, beta in enumerate(model.betas, start=1)},
            "seed": model.seed,
            **flatten({name: value for name, value in model.metrics.items() if name not in _NO_METRICS}),
        }
        for model in models
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    records.write_text(folder / TABLE_FILE, text.getvalue())


def read_table(file: str | os.PathLike[str]) -> list[Evaluated]:
    """The models of an evaluation.csv, for guidance and for tables; there are no pictures with them.

    Tables of version 0.1.0 are read too: their scores of generation are those of means E[x|z], and are put
    where such scores now stand.

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
        return [_read_row(row) for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{file} is no {TABLE_FILE} of experiments.evaluate ({type(error).__name__}: {error})"
        ) from error


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists to one level, names joined by dots; entries of lists count from 1."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree, start=1)
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in items:
        flat.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def unflatten(flat: Mapping[str, Any]) -> Any:
    """The inverse of `flatten`: names that count from 1 are entries of a list."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *way, last = name.split(".")
        place = tree
        for part in way:
            place = place.setdefault(part, {})
        place[last] = value
    return _with_lists(tree)


def _with_lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    values = {name: _with_lists(value) for name, value in tree.items()}
    is_list = list(values) == [str(number) for number in range(1, len(values) + 1)]
    return list(values.values()) if values and is_list else values


def _read_row(row: Mapping[str, str]) -> Evaluated:
    betas, numbers = [], dict(row)
    name, seed = numbers.pop("model"), int(numbers.pop("seed"))
    while (column := f"beta_{len(betas) + 1}") in numbers:
        betas.append(float(numbers.pop(column)))
    metrics = unflatten({_new_name(n): _value(text) for n, text in numbers.items() if text != ""})
    model = Evaluated(name, pathlib.Path(name), tuple(betas), seed, metrics)
    if len(model.rates()) != len(betas):
        raise ValueError(f"{len(betas)} betas and {len(model.rates())} rates")
    return model


def _new_name(name: str) -> str:
    """Where a column of 0.1.0 now is: it scored means only, and did not say so."""
    parts = name.split(".")
    if parts[0] == "generation" and len(parts) == 3:
        return ".".join([*parts[:2], "means", parts[2]])
    return name


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
