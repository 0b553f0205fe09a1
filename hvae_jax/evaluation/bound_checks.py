"""Whether a model's numbers keep to the theory, and what it is worth that they do.

Each check takes the test images for the whole population. Then the inequalities are theorems about that
population, not only in expectation over data sets, and what may hide them is the finite number of draws of
z alone:

* I_q(y; z_L) ≤ R_L, both over the same images and draws;
* accuracy from samples of z_L ≤ f⁻¹(I_q(y; z_L)), with the information and the histogram of the very images
  that are scored, for every probe: they were fitted on other images, so for this population they are fixed
  functions of z_L;
* accuracy from samples of z_l ≤ f⁻¹(R_l + … + R_L) for the layers below, over the same images;
* D ≥ H − ΣR with H the entropy of the images as they are, where pixels are discrete.

Posterior means are left out on purpose: the bounds do not speak of them.

Many of these can't fail: an accuracy under a bound of 1, a distortion above a negative number. `worth` counts
the others, and tells how near they came.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hvae_jax import bounds
from hvae_jax.evaluation.metrics import Information, LabelInformation, Layer, Metrics

# A number counts as a violation beyond this many standard errors of its draws …
NUM_STANDARD_ERRORS = 5.0
# … and beyond what float32 sums leave uncertain, nats.
ROUNDING_NATS = 1e-3

# Kind of bound → what it says, where it could fail at all, and the unit of its slack.
BOUNDS: Mapping[str, tuple[str, str, str]] = {
    "label_information": ("I_q(y; z_L) ≤ R_L", "R_L below H[p(y)]", "nats"),
    "top_accuracy": ("accuracy from samples of z_L ≤ f⁻¹(I_q(y; z_L))", "bound below 1", ""),
    "lower_accuracy": ("accuracy from samples of z_l ≤ f⁻¹(R_l + … + R_L)", "bound below 1", ""),
    "distortion": ("D ≥ H − ΣR", "H − ΣR above 0", "nats"),
}


class Check(NamedTuple):
    """One inequality of one model.

    Attributes:
      kind: of `BOUNDS`.
      could_fail: whether some number that could have been measured would break it.
      slack: how far the number is on the right side of its bound, in the bound's unit; negative beyond it.
      standard_error: of the number.
      excess: how far it is beyond its bound after the allowance for sampling error; a violation above 0.
      sentence: that says it is broken.
    """

    kind: str
    could_fail: bool
    slack: float
    standard_error: float
    excess: float
    sentence: str


@dataclasses.dataclass(frozen=True)
class Worth:
    """What the checks of one kind are worth, over all models.

    Attributes:
      says, could_fail_where, unit: of `BOUNDS`.
      num_could_fail: of which a wrong number could have broken the bound.
      num_violations: beyond `NUM_STANDARD_ERRORS`.
      num_beyond_at_all: without an allowance.
      smallest_slack: among those that could fail, also in standard errors; None where there is none.
    """

    says: str
    could_fail_where: str
    unit: str
    num_checked: int
    num_could_fail: int
    num_violations: int
    num_beyond_at_all: int
    smallest_slack: float | None
    smallest_slack_standard_errors: float | None


@dataclasses.dataclass(frozen=True)
class Violation:
    """What a model breaks beyond its sampling error."""

    model: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Content of bounds.json; `bounds` by kind, without those that there is no number for."""

    num_models: int
    num_standard_errors: float
    bounds: dict[str, Worth]
    violations: tuple[Violation, ...]


def check(metrics: Metrics, num_standard_errors: float = NUM_STANDARD_ERRORS) -> list[Check]:
    """Every inequality that there are numbers for.

    Args:
      metrics: of one model.
      num_standard_errors: the allowance; 0 asks for the bare numbers.
    """
    found = _check_information(metrics.information.test, num_standard_errors)
    scored = metrics.information.test.scored
    if scored and scored.label:
        found += _check_accuracies(scored.label, metrics.representation.layers, num_standard_errors)
    if entropy := metrics.reconstruction.test.entropy:
        least, (distortion, error) = entropy.min_distortion_nats, metrics.rates.test.distortion_nats
        sentence = f"D = {distortion:.4f} ± {error:.4f} nats is below H − ΣR = {least:.4f}"
        excess = least - distortion - num_standard_errors * error - ROUNDING_NATS
        found.append(Check("distortion", least > 0, distortion - least, error, excess, sentence))
    return found


def violations(metrics: Metrics, num_standard_errors: float = NUM_STANDARD_ERRORS) -> list[str]:
    """One sentence for every inequality that a model breaks beyond its sampling error."""
    return [one.sentence for one in check(metrics, num_standard_errors) if one.excess > 0]


def worth(models: Sequence[Metrics]) -> dict[str, Worth]:
    """What the checks of all models together are worth, by kind; kinds without a number are absent."""
    checks = [one for metrics in models for one in check(metrics)]
    bare = [one for metrics in models for one in check(metrics, 0.0)]
    out = {}
    for kind, (says, where, unit) in BOUNDS.items():
        own = [one for one in checks if one.kind == kind]
        if not own:
            continue
        nearest = min((one for one in own if one.could_fail), key=lambda one: one.slack, default=None)
        out[kind] = Worth(
            says=says,
            could_fail_where=where,
            unit=unit,
            num_checked=len(own),
            num_could_fail=sum(one.could_fail for one in own),
            num_violations=sum(one.excess > 0 for one in own),
            num_beyond_at_all=sum(one.excess > 0 for one in bare if one.kind == kind),
            smallest_slack=nearest.slack if nearest else None,
            smallest_slack_standard_errors=nearest.slack / nearest.standard_error
            if nearest and nearest.standard_error > 0
            else None,
        )
    return out


def describe(kind: Worth) -> str:
    """One line about an entry of `worth`."""
    text = f"{kind.says}: {kind.num_checked} checked, {kind.num_could_fail} could have failed"
    text += f" ({kind.could_fail_where})"
    if kind.smallest_slack is None:
        return text
    text += f", smallest slack {kind.smallest_slack:.4f}{kind.unit and ' ' + kind.unit}"
    errors = kind.smallest_slack_standard_errors
    return text if errors is None else f"{text} or {errors:.1f} standard errors"


def _check_information(info: Information, num_errors: float) -> list[Check]:
    """Of the whole split, and of the scored images where they are not all."""
    populations = [info.whole]
    if info.scored and info.scored.num_images != info.whole.num_images:
        populations.append(info.scored)
    found = []
    for population in populations:
        if population.label is None:
            continue
        (label, error), rate = population.label.label_information_nats, population.top_rate_nats
        error = math.hypot(error, population.top_rate_nats_standard_error or 0.0)
        sentence = f"I_q(y; z_L) = {label:.4f} ± {error:.4f} nats is above R_L = {rate:.4f}"
        excess = label - rate - num_errors * error - ROUNDING_NATS
        # Whatever z is, I(y; z) ≤ H[p(y)].
        could_fail = rate < population.label.label_entropy_nats
        found.append(Check("label_information", could_fail, rate - label, error, excess, sentence))
    return found


def _check_accuracies(info: LabelInformation, layers: Sequence[Layer], num_errors: float) -> list[Check]:
    label, error = info.label_information_nats
    most = label + num_errors * error + ROUNDING_NATS
    by_information = float(bounds.max_accuracy(most, info.label_histogram))
    found = []
    for layer in layers:
        number = layer.layer
        is_top = layer is layers[-1]
        by_rates = info.max_accuracy_by_rates[number - 1]
        limit, bare = (by_information, info.max_accuracy_by_information) if is_top else (by_rates, by_rates)
        source = "f⁻¹(I_q(y; z_L))" if is_top else f"f⁻¹(R_{number} + … + R_L)"
        for kind, scores in layer.samples.kinds() if layer.samples else ():
            accuracy, deviation = scores.test_accuracy
            sentence = (
                f"{kind} reads the class from samples of z_{number} with accuracy {accuracy:.4f} ± "
                f"{deviation:.4f}, above {source} = {limit:.4f}"
            )
            found.append(
                Check(
                    "top_accuracy" if is_top else "lower_accuracy", bare < 1, bare - accuracy, deviation,
                    accuracy - num_errors * deviation - limit, sentence,
                )
            )  # fmt: skip
    return found
