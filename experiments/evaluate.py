"""Evaluate a run or a grid for reconstruction, representation learning and generation.

    python -m experiments.evaluate --workdir=runs/digits
    python -m experiments.evaluate --workdir=grids/digits --baseline=grids/digits_one_layer --check_bounds
    python -m experiments.evaluate --workdir=grids/fashion --repeats=grids/fashion_seed_1

Every model gets metrics.json and pictures.npz in its run folder; DIR gets evaluation.csv, guidance.json,
guidance.md, bounds.json, figures/ and report.html. A model that was already evaluated with the same settings,
of the same checkpoint and data and by the same version, is not evaluated again, so the same command resumes.
The data set's classifier is trained once, in DIR/classifiers. --repeats names grids of the same models with
other seeds, with commas, over fewer betas if need be: the error bars of all betas then know the spread over
seeds.
--data names data that moved. --ood names sets of images from elsewhere, as config.data.name names data, or
noise, constant or inverted (the run's own images): every model then gets ood.json and ood.npz, how well its
likelihood and its ratios by layer tell them; DIR gets ood.csv, and the guidance a fourth application.
--check_bounds exits with status 1 if a model breaks a bound beyond its sampling error. --codes also writes
codes.npz into each run folder: posterior means, standard deviations and samples of every layer, with labels,
for programs of your own. What the data do not allow, for want of labels, of a validation split or of images,
is named.
"""

import functools
import importlib.util
import sys

from absl import flags

from experiments import evaluate_models, evaluate_ood, evaluate_outputs, program
from experiments.evaluate_models import Evaluators, Reporter
from experiments.evaluate_ood import Detectors
from hvae_jax import experiment
from hvae_jax.errors import RunError
from hvae_jax.evaluation import classifier, guidance, guidance_text, ood_sets, results, tables
from hvae_jax.evaluation.detection import DetectionSizes
from hvae_jax.evaluation.sizes import Sizes
from hvae_jax.models.classifier import NETWORKS

_SIZES = (
    ("num_draws", 3, "Posterior draws per image."),
    ("num_samples", 5000, "Generated images per split."),
    ("num_splits", 5, "Parts of them for the score's error bar."),
    ("max_fit_images", 2000, "Training images that classifiers of latents are fitted on."),
    (
        "max_scored_images",
        2000,
        "Images that they, their bound, precision and recall read, and that the classifier judges.",
    ),
)


def main(arguments: list[str]) -> None:
    """Reads the flags, evaluates what is not yet evaluated, compares, draws, checks."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    require_packages()
    workdir = program.folder_flag("workdir", flags.FLAGS.workdir)
    sizes = Sizes(**{name: getattr(flags.FLAGS, name) for name, *_ in _SIZES})
    most = flags.FLAGS.max_codes
    if most is not None and not flags.FLAGS.codes:
        raise RunError(f"--max_codes={most} needs --codes")
    outside = None if flags.FLAGS.ood is None else ood_sets.parse(flags.FLAGS.ood)
    outside_sizes = DetectionSizes(flags.FLAGS.ood_draws, flags.FLAGS.max_ood_images)
    runs = results.find_runs(workdir)
    folders, baseline_runs, repeats = [workdir], None, []
    if flags.FLAGS.baseline is not None:
        folders.append(program.folder_flag("baseline", flags.FLAGS.baseline))
        baseline_runs = evaluate_models.find_baseline(folders[-1], runs)
    if flags.FLAGS.repeats is not None:
        repeats_folders = [program.folder_flag("repeats", one) for one in flags.FLAGS.repeats.split(",")]
        folders += repeats_folders
        repeats = evaluate_models.find_repeats(repeats_folders, runs)
    beside = [*repeats, *([baseline_runs] if baseline_runs else [])]
    others = []
    if flags.FLAGS.seeds_from is not None:
        others = tables.read_table(program.source_flag("seeds_from", flags.FLAGS.seeds_from))
    if flags.FLAGS.classifiers is not None:
        classifiers = program.folder_flag("classifiers", flags.FLAGS.classifiers)
    else:
        classifiers = workdir / "classifiers"
    classifier.check_folder(classifiers)
    evaluate_outputs.check(workdir)

    reporter, num_models = Reporter(), max(len(one.folders) for one in (runs, *beside))
    program.split_cpu(min(program.num_cores(), num_models))
    capacity = evaluate_models.pick_capacity(num_models)
    choose_training = functools.partial(
        classifier.choose_training,
        network=flags.FLAGS.classifier,
        channels=flags.FLAGS.classifier_channels,
        num_epochs=flags.FLAGS.classifier_epochs,
    )
    evaluators = Evaluators(classifiers, sizes, flags.FLAGS.data, reporter, capacity, choose_training)
    built, detectors = evaluators.check(runs.folders[0]), None
    if outside is not None:
        detectors = Detectors(outside, outside_sizes, runs.folders[0], reporter)
        detectors.check(built)
        for one in beside:
            detectors.check(experiment.from_folder(one.folders[0], data=flags.FLAGS.data))
    if flags.FLAGS.codes:
        evaluators.check_codes(runs, most)
    with evaluate_models.locked(folders):
        models = evaluate_models.evaluate_runs(runs, evaluators, reporter, detectors)
        if flags.FLAGS.codes:
            evaluate_models.write_codes(runs, evaluators, most, reporter)
        for of_seeds in repeats:
            repeated = evaluate_models.evaluate_runs(of_seeds, evaluators, reporter, detectors)
            models += [m._replace(name=evaluate_models.name_repeat(m.folder)) for m in repeated]
        baseline = []
        if baseline_runs:
            baseline = evaluate_models.evaluate_runs(baseline_runs, evaluators, reporter, detectors)
        content = guidance.make_guidance(*([model.scored for model in s] for s in (models, baseline, others)))
        bounds = evaluate_outputs.write(workdir, models, content)
    print(guidance_text.to_markdown(content))
    if detectors and len(models) == 1:
        print(evaluate_ood.describe(models[0]) + "\n")
    if flags.FLAGS.check_bounds:
        evaluate_outputs.print_bounds(bounds)
    if runs.num_left_out:
        print(f"{runs.num_left_out} models of the grid diverged or are not trained yet; they are left out")
    print(f"{guidance_text.describe_models(content)}. Everything is in {workdir}")
    if flags.FLAGS.check_bounds and bounds.violations:
        sys.exit(1)


def require_packages() -> None:
    """Raises RunError where the extra `evaluation` is not installed, before any work."""
    if importlib.util.find_spec("plotly") is None:
        raise RunError('evaluation needs plotly; pip install -e ".[evaluation]"')


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("workdir", None, "Folder of a run or of a grid.", required=True)
    flags.DEFINE_string("baseline", None, "Folder of a run or grid with L = 1, to compare with.")
    flags.DEFINE_string("repeats", None, "Folders of grids of the same models with other seeds, with commas.")
    flags.DEFINE_string(
        "seeds_from",
        None,
        "evaluation.csv of other models, whose spread over seeds stands in where these have one seed each.",
    )
    flags.DEFINE_string("data", None, "A config.data.name instead of the runs' own, for data that moved.")
    flags.DEFINE_string(
        "ood", None, "Data from elsewhere, with commas: config.data.name, noise, constant, inverted."
    )
    flags.DEFINE_integer("ood_draws", 5, "Posterior draws per image that --ood looks at.")
    flags.DEFINE_integer("max_ood_images", 2000, "Images of each split, and of each set of --ood.")
    flags.DEFINE_string("classifiers", None, "Where classifiers lie; DIR/classifiers by default.")
    flags.DEFINE_enum(
        "classifier",
        None,
        list(NETWORKS),
        "That judges images; by default resnet18 for colour, which wants an accelerator.",
    )
    flags.DEFINE_integer(
        "classifier_channels", None, "Of its first layer; 16, of a resnet18 64.", lower_bound=1
    )
    flags.DEFINE_integer(
        "classifier_epochs", None, "Of its training; by the number of images.", lower_bound=1
    )
    flags.DEFINE_boolean("check_bounds", False, "Exit with status 1 if a bound is broken.")
    flags.DEFINE_boolean("codes", False, "Also write codes.npz, the latents of every image.")
    flags.DEFINE_integer("max_codes", None, "Images of each split in it; all by default.", lower_bound=1)
    for name, default, description in _SIZES:
        flags.DEFINE_integer(name, default, description)


if __name__ == "__main__":
    define_flags()
    program.run(main)
