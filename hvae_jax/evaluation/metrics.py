"""What evaluations find, one class for each section, nested as metrics.json and evaluation.json are.

`plain` says how fields become entries of files: the order and the names of fields here are those of the
files. A section that data without labels, or without a validation split, do not allow is None.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from hvae_jax.evaluation.plain import Estimate, Estimates, Inline, from_plain

Application = Literal["reconstruction", "representation", "generation"]
# Also the one that is measured where sets of images from elsewhere are given; it is in no metrics.json.
AnyApplication = Literal["reconstruction", "representation", "generation", "detection"]
# What generation can be scored with: pixels drawn from p(x|z), or its means, clipped.
Pixels = Literal["draws", "means"]
Split = Literal["valid", "test"]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerSplit(Generic[T]):
    """Of the validation split, where there is one, and of the test split."""

    valid: T | None = None
    test: T


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerApplication(Generic[T]):
    """Of each application, where there is such a thing for it."""

    reconstruction: T | None = None
    representation: T | None = None
    generation: T | None = None
    detection: T | None = None

    def get(self, application: AnyApplication) -> T | None:
        """By the application's name."""
        return getattr(self, application)

    def items(self) -> Iterator[tuple[AnyApplication, T]]:
        """Names of those that are there, in the order of the fields, and what there is."""
        for application in get_args(AnyApplication):
            if (found := self.get(application)) is not None:
                yield application, found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceBound:
    """The importance-weighted bound on −log p(x) of a run's own evaluation."""

    num_samples: int
    negative_importance_weighted_bound_nats: Estimate
    num_importance_samples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupRate:
    """The rate of neighbouring layers together: the sum of theirs."""

    name: str
    lowest_layer: int
    highest_layer: int
    rate_nats: Estimate
    rate_bits: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Means over a split at β = 1; rates of the layers z_1 → z_L, and of groups where there are any.

    Attributes:
      monte_carlo_rates: layers whose rate has no closed form: log q(z) − log p(z) at the draws.
      active_units: of each layer, latents with Var_x(E_q[z|x]) > 0.01, see `active_units.count`.
      num_units: of each layer, how many there are.
    """

    num_images: int
    negative_elbo_nats: Estimate
    distortion_nats: Estimate
    total_rate_nats: Estimate
    rates_nats: Estimates
    bits_per_dim: float
    groups: tuple[GroupRate, ...] | None = None
    monte_carlo_rates: tuple[int, ...] | None = None
    active_units: tuple[int, ...] | None = None
    num_units: tuple[int, ...] | None = None
    bound: Annotated[ImportanceBound | None, Inline()] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reached:
    """Rates and distortion on one split, for which rates or a distortion were asked."""

    rates_nats: Estimates
    distortion_nats: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetReport:
    """What became of the rates, or of the distortion, that a run was asked for; see `targets`.

    Attributes:
      target_groups: names of the groups, where layers share betas; "layer" then is "group" in all of this,
        and rates are sums over the layers of a group.
      targets_nats: of each layer, None for one without a target.
      betas: where they ended, between the `beta_bounds` of each layer.
    """

    target_groups: tuple[str, ...] | None = None
    target_distortion_nats: float | None = None
    targets_nats: tuple[float | None, ...] | None = None
    target_status: tuple[str, ...]
    betas: tuple[float, ...]
    beta_bounds: tuple[tuple[float, float], ...]
    train: Annotated[Reached, Inline("train_")]
    valid: Annotated[Reached | None, Inline("valid_")] = None
    test: Annotated[Reached | None, Inline("test_")] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunEvaluation:
    """evaluation.json of a run, or of a model of a grid; of one that diverged only `step` and `status`."""

    step: int
    status: str | None = None
    valid: Rates | None = None
    test: Rates | None = None
    targets: Annotated[TargetReport | None, Inline()] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedReconstruction:
    """Reconstructions of the images that are scored, in the eyes of the data set's classifier."""

    classifier_accuracy: Estimate
    prediction_entropy_nats: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionScores:
    """Images that come back from one layer and those above it."""

    psnr_db: Estimate
    ssim: Estimate
    judged: Annotated[JudgedReconstruction | None, Inline()] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataEntropy:
    """Of discrete images as a population of their own: H, and the bound H − ΣR on D."""

    empirical_data_entropy_nats: float
    min_distortion_nats: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How well images come back from all layers, from z_2 and up, …, from z_L.

    Attributes:
      layers: the lowest of each entry of `from_layer`, where it is not every layer: of a deep network, the
        lowest of each side of its maps.
    """

    from_layer: tuple[ReconstructionScores, ...]
    layers: tuple[int, ...] | None = None
    num_images_ssim: int | None = None
    entropy: Annotated[DataEntropy | None, Inline()] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeScores:
    """One kind of classifier that reads a latent: what was tuned, means over images.

    And over draws where it is the chosen kind; the others read the first draw.
    """

    setting: dict[str, float]
    valid_accuracy: float
    test_accuracy: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probes:
    """All kinds that read a latent, and which of them has the best validation accuracy on the first draw."""

    chosen: str
    logistic_regression: ProbeScores | None = None
    linear_svm: ProbeScores | None = None
    rbf_svm: ProbeScores | None = None
    knn: ProbeScores | None = None

    def kinds(self) -> Iterator[tuple[str, ProbeScores]]:
        """Names and scores of those that are there."""
        for field in dataclasses.fields(self)[1:]:
            if (scores := getattr(self, field.name)) is not None:
                yield field.name, scores

    @property
    def best(self) -> ProbeScores:
        """Scores of the chosen kind."""
        return dict(self.kinds())[self.chosen]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """What is read of posterior samples and means of one layer, and their main directions' variance."""

    layer: int
    samples: Probes | None = None
    means: Probes | None = None
    principal_component_shares: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Representation:
    """Classifiers that read z_1 → z_L; of a deep network the top layer of each side of its maps."""

    layers: tuple[Layer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelInformation:
    """What z_L tells of the class, I_q(y; z_L), and what accuracy that and the rates R_l + … + R_L allow."""

    label_histogram: tuple[int, ...]
    label_entropy_nats: float
    label_information_nats: Estimate
    max_accuracy_by_information: float
    max_accuracy_by_rates: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Population:
    """What z_L tells of images that are taken for the whole population, I_q(x; z_L), beside R_L.

    Attributes:
      top_rate_nats_standard_error: where R_L is a Monte Carlo estimate; None where it is analytic.
    """

    num_images: int
    image_information_nats: Estimate
    top_rate_nats: float
    top_rate_nats_standard_error: float | None = None
    label: Annotated[LabelInformation | None, Inline()] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Information:
    """Of a whole split, and of its images that probes are scored on, which 0.1.0 did not know."""

    whole: Annotated[Population, Inline()]
    scored: Population | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierScores:
    """Samples in the eyes of the data set's classifier."""

    inception_score_classifier: Estimate
    diversity: float
    sharpness: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Samples among images and images among samples."""

    precision_classifier: float
    recall_classifier: float
    num_precision_recall: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memorisation:
    """How near samples come to training images, beside how near test images come to them."""

    num_training_images: int | None = None
    median_distance_to_training: float
    median_distance_to_training_of_test_images: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleScores:
    """How good samples are, as far as there are classes and images enough."""

    num_samples: int
    judged: Annotated[ClassifierScores | None, Inline()] = None
    frechet_distance_classifier: float | None = None
    precision_recall: Annotated[PrecisionRecall | None, Inline()] = None
    memorisation: Annotated[Memorisation | None, Inline()] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """Scores of draws from p(x|z), or of means: a model has one kind."""

    draws: SampleScores | None = None
    means: SampleScores | None = None

    @property
    def pixels(self) -> Pixels | None:
        """What the samples are that are scored; None where none are."""
        return "draws" if self.draws else "means" if self.means else None

    @property
    def scores(self) -> SampleScores | None:
        """Those of the kind that there is."""
        return self.draws or self.means


@dataclasses.dataclass(frozen=True)
class Score:
    """The one number that stands for an application; without a standard error where none is known."""

    value: float
    standard_error: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """All of one model: metrics.json, without the settings that made it.

    Attributes:
      left_out: what could not be evaluated: place of a metric or of a group of them → why.
    """

    rates: PerSplit[Rates]
    reconstruction: PerSplit[Reconstruction]
    representation: Representation
    information: PerSplit[Information]
    generation: PerSplit[Generation]
    applications: PerSplit[PerApplication[Score]]
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)


def read(plain: Any, source: object) -> Metrics:
    """Metrics from the content of metrics.json, or of a row of a table, of this version or of 0.1.0.

    That version scored means only and did not say so; they are put where such scores now stand.

    Raises:
      RunError: damaged, or of a newer version; it names `source`.
    """
    if isinstance(plain, dict) and isinstance(plain.get("generation"), dict):
        generation = {
            split: {"means": scores} if "num_samples" in scores else scores
            for split, scores in plain["generation"].items()
        }
        plain = {name: entry for name, entry in plain.items() if name != "settings"} | {
            "generation": generation
        }
    return from_plain(Metrics, plain, source)
