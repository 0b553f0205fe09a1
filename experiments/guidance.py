"""Makes guidance.json again from a table of evaluated models, without the models.

    results=experiments/results
    python -m experiments.guidance --table=$results/fashion_generalized_top_down_evaluation.csv \\
        --baseline=$results/fashion_generalized_top_down_guidance.json \\
        --out=$results/fashion_generalized_top_down_guidance.json
    python -m experiments.guidance --table=$results/fashion_ladder_evaluation.csv \\
        --seeds_from=$results/fashion_generalized_top_down_evaluation.csv \\
        --baseline=$results/fashion_ladder_guidance.json --out=$results/fashion_ladder_guidance.json

--table is an evaluation.csv of `experiments.evaluate`, also one of version 0.1.0. --baseline is such a table
of models of one layer, or a guidance.json that compared with them. Seconds; it prints guidance.md.
"""

import pathlib

from absl import flags

from experiments import program
from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import guidance, guidance_text, tables
from hvae_jax.evaluation.choices import Scored
from hvae_jax.evaluation.plain import to_plain


def main(arguments: list[str]) -> None:
    """Reads the tables, writes guidance.json, prints what it says."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    out = program.file_flag("out", flags.FLAGS.out, (".json",))
    table, others, baseline = (
        None if value is None else program.source_flag(name, value)
        for name, value in (
            ("table", flags.FLAGS.table),
            ("seeds_from", flags.FLAGS.seeds_from),
            ("baseline", flags.FLAGS.baseline),
        )
    )
    assert table is not None  # the flag is required
    content = guidance.make_guidance(
        read_scored(table),
        read_baseline(baseline) if baseline else [],
        read_scored(others) if others else [],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    records.write_json(out, to_plain(content))
    print(guidance_text.to_markdown(content))


def read_scored(table: pathlib.Path) -> list[Scored]:
    """The models of a table."""
    return [model.scored for model in tables.read_table(table)]


def read_baseline(file: pathlib.Path) -> list[Scored]:
    """The one-layer models of a table, or those that a guidance.json tells of.

    Raises:
      RunError: the file is neither, or its models have several layers.
    """
    if file.suffix == ".json":
        return guidance.baseline_of(records.read_json(file), f"--baseline={file}")
    models = read_scored(file)
    if any(len(model.betas) != 1 for model in models):
        raise RunError(f"--baseline={file} must hold models of one layer")
    return models


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("table", None, "evaluation.csv of the models.", required=True)
    flags.DEFINE_string(
        "seeds_from",
        None,
        "Table of other models, whose spread over seeds stands in where these have one each.",
    )
    flags.DEFINE_string("baseline", None, "Table of one-layer models, or a guidance.json.")
    flags.DEFINE_string("out", None, "guidance.json to write.", required=True)


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
