"""What `experiments.evaluate --ood` does: every model looks at images from elsewhere."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from hvae_jax import experiment, records
from hvae_jax.evaluation import ood_files, ood_sets, results
from hvae_jax.evaluation.detection import Detection, DetectionSizes, Detector
from hvae_jax.evaluation.metrics import PerSplit
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.evaluation.settings import Settings
from hvae_jax.experiment import Experiment
from hvae_jax.figures import detection as figures
from hvae_jax.figures.style import describe_betas

HISTOGRAMS = "detection_histograms"
NO_VALID = "there is no validation split to choose the score by; see config.data.num_valid"


class Detectors:
    """Sets from elsewhere, read once; one detector for all models that differ in betas and seed only."""

    def __init__(
        self, names: Sequence[str], sizes: DetectionSizes, folder: pathlib.Path, report: Callable[[str], None]
    ) -> None:
        """Reads the sets.

        Args:
          names: of `ood_sets.parse`.
          sizes: how much to do.
          folder: of a run, whose config says where TFDS data lie.
          report: called with what the user should know.

        Raises:
          RunError: data that are not there, or damaged.
        """
        config = results.read_config(folder)["data"]
        is_checked = config.get("check_values", True)
        self._sizes, self._report = sizes, report
        self._sources = ood_sets.read(names, config["data_dir"], is_checked, sizes.max_images, report)
        self._built: Experiment | None = None
        self._detector: Detector | None = None
        self._described: dict[str, Any] = {}

    def check(self, built: Experiment) -> None:
        """Raises RunError where the sets cannot stand beside the images of these models; reads no image."""
        ood_sets.check(self._sources, built.source.image_shape)

    def add(self, model: Evaluated, built: Experiment, of_run: Settings) -> Evaluated:
        """A model with what it tells of the sets, measured now unless its folder has it.

        Args:
          model: evaluated.
          built: what it was built from; the same object for models of one network and data.
          of_run: what decides its other numbers.
        """
        if self._detector is None or built is not self._built:
            # Before the next one is made: two may not fit.
            self._detector = None
            self._detector = Detector(
                built.model,
                built.dataset,
                built.preprocess_fn,
                self._sources,
                self._sizes,
                built.named_groups,
            )
            self._built, self._described = built, self._detector.described()
        folder, detector = model.folder, self._detector
        wanted = ood_files.settings_of(of_run, self._sizes, self._described)
        why = ood_files.why_stale(folder, wanted)
        if why is not None:
            if (folder / ood_files.OOD_FILE).exists():
                self._report(f"{folder} looks at images from elsewhere again: {why}")
            params = experiment.restore(built, folder).eval_params
            params = built.at(params, results.read_config(folder)["objective"]["betas"])
            ood_files.save(folder, detector.detect(params, seed=0), wanted)
        model = with_detection(model, ood_files.load(folder))
        figures_folder = folder / records.FIGURES_FOLDER
        if why is not None or not (figures_folder / f"{HISTOGRAMS}.png").exists():
            draw_histograms(model, figures_folder)
        return model


def with_detection(model: Evaluated, detection: Detection) -> Evaluated:
    """A model whose applications have detection too, or the reason that it has no number."""
    metrics, mean = model.metrics, detection.mean_auroc
    valid, test = metrics.applications.valid, metrics.applications.test
    if mean is None or valid is None:
        left_out = {**metrics.left_out, "applications.detection": NO_VALID}
        return model._replace(metrics=dataclasses.replace(metrics, left_out=left_out), detection=detection)
    applications = PerSplit(
        valid=dataclasses.replace(valid, detection=mean.valid),
        test=dataclasses.replace(test, detection=mean.test),
    )
    return model._replace(
        metrics=dataclasses.replace(metrics, applications=applications), detection=detection
    )


def draw_histograms(model: Evaluated, folder: pathlib.Path) -> None:
    """The scores of a model's own images and of the sets, into a folder of figures."""
    assert model.detection is not None
    folder.mkdir(exist_ok=True)
    rates = ", ".join(f"{rate:.2f}" for rate in model.rates_nats)
    if len(model.rates_nats) > 6:
        rates = f"{sum(model.rates_nats):.2f} in all"
    title = f"{describe_betas(model.betas)}, rates {rates} nats"
    figures.histograms(model.detection, ood_files.load_scores(model.folder), title, folder / HISTOGRAMS)


def describe(model: Evaluated) -> str:
    """A table of one model's AUROCs, in Markdown."""
    detection = model.detection
    assert detection is not None
    names = [entry.score for entry in detection.sets[0].scores]
    labels = [figures.score_label(name).replace("$", "") for name in names]
    lines = ["| AUROC, test split | " + " | ".join(labels) + " |", "|---|" + "---|" * len(names)]
    for of_set in detection.sets:
        cells = [of_set.by(name).test.auroc for name in names]
        values = [f"{cell.value:.4f} ± {cell.standard_error:.4f}" for cell in cells]
        lines.append(f"| {of_set.name} | " + " | ".join(values) + " |")
    return "\n".join(lines)
