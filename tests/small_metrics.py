"""Metrics of a model that was never evaluated, for what only reads them."""

import math
from typing import TypeVar

from hvae_jax import bounds
from hvae_jax.evaluation.metrics import (
    DataEntropy,
    Generation,
    Information,
    LabelInformation,
    Layer,
    Metrics,
    PerApplication,
    PerSplit,
    Population,
    Probes,
    ProbeScores,
    Rates,
    Reconstruction,
    ReconstructionScores,
    Representation,
    SampleScores,
    Score,
)
from hvae_jax.evaluation.plain import Estimate, Estimates

T = TypeVar("T")


def there(found: T | None) -> T:
    """What must not be None."""
    assert found is not None
    return found


def make_rates(distortion: float, rates: list[float], bits_per_dim: float = 0.5) -> Rates:
    """Of nine images, all with standard errors of 0.1."""
    return Rates(
        num_images=9,
        negative_elbo_nats=Estimate(distortion + sum(rates), 0.1),
        distortion_nats=Estimate(distortion, 0.1),
        total_rate_nats=Estimate(sum(rates), 0.1),
        rates_nats=Estimates(tuple(rates), (0.1,) * len(rates)),
        bits_per_dim=bits_per_dim,
    )


def make_population(label_information: float, top_rate: float, num_images: int = 200) -> Population:
    """Of four classes with as many images each."""
    histogram = (50, 50, 50, 50)
    label = LabelInformation(
        label_histogram=histogram,
        label_entropy_nats=math.log(4),
        label_information_nats=Estimate(label_information, 0.01),
        max_accuracy_by_information=float(bounds.max_accuracy(label_information, histogram)),
        max_accuracy_by_rates=(0.6, 0.9),
    )
    return Population(
        num_images=num_images,
        image_information_nats=Estimate(label_information, 0.01),
        top_rate_nats=top_rate,
        label=label,
    )


def make_metrics(
    label_information: float = 0.5,
    top_rate: float = 0.6,
    accuracy: float = 0.5,
    lower_accuracy: float = 0.1,
    min_distortion: float = 4.0,
) -> Metrics:
    """Of two layers, on a test split alone that is scored as a whole."""
    population = make_population(label_information, top_rate)

    def layer(number: int, accuracy: float) -> Layer:
        scores = ProbeScores(setting={"C": 1.0}, valid_accuracy=0.5, test_accuracy=Estimate(accuracy, 0.01))
        kinds = dict.fromkeys(("logistic_regression", "linear_svm", "rbf_svm", "knn"), scores)
        probes = Probes(chosen="knn", **kinds)
        return Layer(layer=number, samples=probes, principal_component_shares=(0.7, 0.2))

    rates = Rates(
        num_images=200,
        negative_elbo_nats=Estimate(6.0, 0.1),
        distortion_nats=Estimate(5.0, 0.1),
        total_rate_nats=Estimate(1.0, 0.1),
        rates_nats=Estimates((1.0 - top_rate, top_rate), (0.1, 0.1)),
        bits_per_dim=0.1,
    )
    whole = ReconstructionScores(psnr_db=Estimate(20.0, 0.1), ssim=Estimate(0.9, 0.01))
    entropy = DataEntropy(empirical_data_entropy_nats=5.0, min_distortion_nats=min_distortion)
    return Metrics(
        rates=PerSplit(test=rates),
        reconstruction=PerSplit(test=Reconstruction(from_layer=(whole, whole), entropy=entropy)),
        representation=Representation(layers=(layer(1, lower_accuracy), layer(2, accuracy))),
        information=PerSplit(test=Information(whole=population, scored=population)),
        generation=PerSplit(test=Generation(means=SampleScores(num_samples=300))),
        applications=PerSplit(test=PerApplication(reconstruction=Score(20.0, 0.1))),
    )
