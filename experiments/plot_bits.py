"""Draw the bits on disk of every layer against its rate, from reports of `experiments.compress`.

    python -m experiments.plot_bits --out=FILE.png --results=FILE.json REPORT.json REPORT.json ...

The results are the reports without what they say of single images, with the name of each, and with the
standard error, over the images, of what bits and rate of a layer differ by.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import program
from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.figures import bits as figures


def main(reports: list[str]) -> None:
    """Reads the reports, draws, and prints how far each layer is from its rate."""
    options = flags.FLAGS
    out = program.file_flag("out", options.out)
    results = None if options.results is None else program.file_flag("results", options.results, (".json",))
    rows = read_rows(reports)
    for row in rows:
        parts = [
            f"z_{layer} {net:.3f} of {rate:.3f} ± {error:.3f} bits"
            for layer, (net, rate, error) in enumerate(
                zip(row["net_bits"], row["rates_bits"], row["difference_error_bits"], strict=True), start=1
            )
        ]
        print(f"{row['name']}: {'  '.join(parts)}")
    program.make_parent(out)
    figures.bits_against_rates(rows, out)
    if results:
        program.make_parent(results)
        records.write_json(results, {"rows": rows})


def read_rows(reports: Sequence[str]) -> list[dict[str, Any]]:
    """What each report says of its file, in order.

    Raises:
      RunError: none is given, or one is no report.
    """
    if not reports:
        raise RunError("give the reports of experiments.compress")
    rows = []
    for name in reports:
        report = records.read_json(program.source_flag("REPORT", name))
        try:
            single = report.pop("images")
            difference = np.subtract(single["net_bits"], single["rates_bits"])
            error = difference.std(axis=0, ddof=1) / math.sqrt(len(difference))
            del report["totals"]
            own = {"name": pathlib.Path(name).stem, "difference_error_bits": error.tolist()}
            rows.append({**report, **own})
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise RunError(f"{name} is no report of experiments.compress") from problem
    return rows


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("out", None, "Picture to write.", required=True)
    flags.DEFINE_string("results", None, "JSON to write the numbers to.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
