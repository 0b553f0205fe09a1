r"""Train a whole grid of betas, or of target rates, as one program, and evaluate every model at β = 1.

    python -m experiments.grid --config=experiments/digits_grid.py
    python -m experiments.grid --config=experiments/cifar_grid.py --dry_run

The folder then holds grid.csv, one row a model, figures/, and in models/ a run folder for every model.
The same command resumes a grid that was stopped. Other launchers train chunks of the models as tasks of
their own, in processes of this machine or in Slurm:

    python -m experiments.grid --config=experiments/digits_grid.py --launcher=local --tasks=8
    python -m experiments.grid --config=experiments/cifar_grid.py --launcher=slurm --tasks=21 \
        --partition=gpu --gpus_per_task=1 --cpus_per_task=8 --time=4:00:00

Of a conditioned model, which was trained for all betas at once, nothing is left to train: its grid takes the
betas, or the rates, of the config's grid and all else from the run (or runs, one per seed):

    python -m experiments.grid --config=experiments/digits_grid.py --from_model=runs/digits_conditioned
"""

import math

import jax
from absl import flags
from ml_collections import config_flags

from experiments import grid_from_model, grid_here, grid_launch, grid_results, program
from hvae_jax import experiment
from hvae_jax.errors import RunError
from hvae_jax.grid import folders, packed, slurm
from hvae_jax.grid import members as grid_members
from hvae_jax.grid import size as grid_size

# No machine has more; what is typed by mistake would run it out of memory.
_MOST_CORES, _MOST_TASKS = 1024, 100_000


def main(arguments: list[str]) -> None:
    """Reads the flags, trains, evaluates, draws."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    name, config = program.read_config()
    given = {flag for flag in grid_launch.LAUNCHERS["slurm"] if flags.FLAGS[flag].present}
    grid_launch.check_flags(flags.FLAGS.launcher, given)
    workdir = program.folder_flag(
        "workdir",
        f"runs/{name}{'_from_model' * bool(flags.FLAGS.from_model)}"
        if flags.FLAGS.workdir is None
        else flags.FLAGS.workdir,
    )
    if flags.FLAGS.from_model:
        if flags.FLAGS.dry_run:
            raise RunError("--dry_run says what training would take, and --from_model trains nothing")
        runs = [program.folder_flag("from_model", folder) for folder in flags.FLAGS.from_model]
        baseline_folder = find_baseline()
        baseline = None if baseline_folder is None else grid_results.load_baseline(baseline_folder)
        grid_from_model.make(workdir, config, runs, baseline)
        print(grid_results.describe(workdir, done="asked"))
        return
    grid_config, members = grid_members.read_config(config)
    grid_from_model.refuse_training(members)
    folders.check(workdir, config, members)
    options = task_options()
    baseline = None if options.baseline is None else grid_results.load_baseline(options.baseline)
    if flags.FLAGS.launcher != "here":
        # The accelerators of this machine, if it has any, are for the tasks.
        jax.config.update("jax_platforms", "cpu")
        built = experiment.from_config(members[0].config, num_devices=1)
        program.show_notices(built.dataset)
        packed.check_orders(built, members)
        grid_launch.launch(
            workdir,
            config,
            grid_config,
            members,
            options,
            built.num_steps,
            flags.FLAGS.dry_run,
            built.dataset.describe(),
        )
        return
    program.split_cpu(flags.FLAGS.cpu_devices or program.num_cores())
    built = experiment.from_config(members[0].config, num_devices=1)
    program.show_notices(built.dataset)
    packed.check_orders(built, members)
    if flags.FLAGS.dry_run:
        grid_here.dry_run(workdir, grid_config, built, members)
        return
    grid_here.train(workdir, config, grid_config, built, members, baseline)
    print(grid_results.describe(workdir))
    print(f"The most memory in use was {grid_size.peak_bytes() / grid_size.GIB:.2f} GiB")


def find_baseline() -> str | None:
    """The folder that --baseline names."""
    return (
        None if flags.FLAGS.baseline is None else str(program.folder_flag("baseline", flags.FLAGS.baseline))
    )


def task_options() -> grid_launch.Options:
    """How to start tasks, from the flags.

    Raises:
      RunError: one that is no number.
    """
    if flags.FLAGS.mem_gib is not None and not math.isfinite(flags.FLAGS.mem_gib):
        raise RunError(f"--mem_gib={flags.FLAGS.mem_gib} must be a finite number of GiB")
    return grid_launch.Options(
        launcher=flags.FLAGS.launcher,
        num_tasks=flags.FLAGS.tasks,
        num_cpu_devices=flags.FLAGS.cpu_devices or flags.FLAGS.cpus_per_task or 1,
        baseline=find_baseline(),
        slurm=slurm.Options(
            time=flags.FLAGS.time or "",
            partition=flags.FLAGS.partition,
            gpus_per_task=flags.FLAGS.gpus_per_task,
            cpus_per_task=flags.FLAGS.cpus_per_task,
            mem_gib=flags.FLAGS.mem_gib,
            parallel_tasks=flags.FLAGS.parallel_tasks,
            signal_s=flags.FLAGS.signal_s,
            extra=tuple(flags.FLAGS.sbatch),
            setup=tuple(flags.FLAGS.setup),
        ),
    )


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    config_flags.DEFINE_config_file("config", None, "One of experiments/*_grid.py.", lock_config=True)
    flags.DEFINE_string("workdir", None, "The grid's folder; runs/NAME_OF_CONFIG by default.")
    flags.DEFINE_list(
        "from_model", [], "Folders of conditioned runs, one per seed: their grid, without training."
    )
    flags.DEFINE_boolean("dry_run", False, "Say how many models, chunks, how much memory and time.")
    flags.DEFINE_integer(
        "cpu_devices", None, "Devices to split a CPU into; one per core by default.",
        lower_bound=1, upper_bound=_MOST_CORES,
    )  # fmt: skip
    flags.DEFINE_string("baseline", None, "Folder of a grid with L = 1, to draw beside this one.")
    flags.DEFINE_enum(
        "launcher", "here", ["here", "local", "slurm"],
        "Who trains: this process, several processes of this machine, or tasks of Slurm.",
    )  # fmt: skip
    flags.DEFINE_integer(
        "tasks", None, "Tasks to divide the grid into, unless config.grid.chunk_size does.", lower_bound=1
    )
    flags.DEFINE_integer(
        "parallel_tasks", None, "At most so many at a time; locally by default one per cpus_per_task cores.",
        lower_bound=1, upper_bound=_MOST_TASKS,
    )  # fmt: skip
    flags.DEFINE_integer("gpus_per_task", 0, "GPUs of each task.", lower_bound=0, upper_bound=_MOST_CORES)
    flags.DEFINE_integer("cpus_per_task", None, "Cores of each task.", lower_bound=1, upper_bound=_MOST_CORES)
    flags.DEFINE_string("partition", None, "Slurm's; its default partition by default.")
    flags.DEFINE_string("time", None, "Limit of each task as sbatch writes it; a task at it is requeued.")
    flags.DEFINE_float("mem_gib", None, "Memory of each task in Slurm.", lower_bound=0.1)
    flags.DEFINE_integer(
        "signal_s", 90, "Seconds before the time limit when a task of Slurm saves and ends.", lower_bound=30
    )
    flags.DEFINE_multi_string("sbatch", [], "A further option of sbatch, as account=NAME.")
    flags.DEFINE_multi_string("setup", [], "A shell line to run before a task of Slurm.")
    flags.mark_flag_as_required("config")


if __name__ == "__main__":
    define_flags()
    program.run(main)
