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

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hvae_jax import bounds
from hvae_jax.evaluation.representation import KINDS

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


def check(metrics: Mapping[str, Any], num_standard_errors: float = NUM_STANDARD_ERRORS) -> list[Check]:
    """Every inequality that there are numbers for.

    Args:
      metrics: as `applications.ModelEvaluator` gives them.
      num_standard_errors: the allowance; 0 asks for the bare numbers.
    """
    info = metrics["information"]["test"]
    found = []
    if "label_histogram" in info:
        found += _check_information(info, num_standard_errors)
        found += _check_accuracies(info["scored"], metrics["representation"]["layers"], num_standard_errors)
    least = metrics["reconstruction"]["test"].get("min_distortion_nats")
    if least is not None:
        rates = metrics["rates"]["test"]
        distortion, error = rates["distortion_nats"], rates["distortion_nats_standard_error"]
        sentence = f"D = {distortion:.4f} ± {error:.4f} nats is below H − ΣR = {least:.4f}"
        excess = least - distortion - num_standard_errors * error - ROUNDING_NATS
        found.append(Check("distortion", least > 0, distortion - least, error, excess, sentence))
    return found


def violations(metrics: Mapping[str, Any], num_standard_errors: float = NUM_STANDARD_ERRORS) -> list[str]:
    """One sentence for every inequality that a model breaks beyond its sampling error."""
    return [one.sentence for one in check(metrics, num_standard_errors) if one.excess > 0]


def worth(models: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the checks of all models together are worth.

    Args:
      models: the metrics of each.

    Returns:
      kind → `says`, `could_fail_where`, `unit`, and counts over all models: `num_checked`;
      `num_could_fail`, of which a wrong number could have broken the bound; `num_violations` beyond
      `NUM_STANDARD_ERRORS`, `num_beyond_at_all`; and among those that could fail the `smallest_slack` with
      its `…_standard_errors`, each None where there is none. Kinds without a number are absent.
    """
    checks = [one for metrics in models for one in check(metrics)]
    bare = [one for metrics in models for one in check(metrics, 0.0)]
    out = {}
    for kind, (says, where, unit) in BOUNDS.items():
        own = [one for one in checks if one.kind == kind]
        if not own:
            continue
        nearest = min((one for one in own if one.could_fail), key=lambda one: one.slack, default=None)
        out[kind] = {
            "says": says,
            "could_fail_where": where,
            "unit": unit,
            "num_checked": len(own),
            "num_could_fail": sum(one.could_fail for one in own),
            "num_violations": sum(one.excess > 0 for one in own),
            "num_beyond_at_all": sum(one.excess > 0 for one in bare if one.kind == kind),
            "smallest_slack": nearest.slack if nearest else None,
            "smallest_slack_standard_errors": nearest.slack / nearest.standard_error
            if nearest and nearest.standard_error > 0
            else None,
        }
    return out


def describe(kind: Mapping[str, Any]) -> str:
    """One line about an entry of `worth`."""
    text = f"{kind['says']}: {kind['num_checked']} checked, {kind['num_could_fail']} could have failed"
    text += f" ({kind['could_fail_where']})"
    if kind["smallest_slack"] is None:
        return text
    unit, errors = kind["unit"], kind["smallest_slack_standard_errors"]
    text += f", smallest slack {kind['smallest_slack']:.4f}{unit and ' ' + unit}"
    return text if errors is None else f"{text} or {errors:.1f} standard errors"


def _check_information(info: Mapping[str, Any], num_errors: float) -> list[Check]:
    """Of the whole split, and of the scored images where they are not all."""
    populations = [info]
    if info["scored"]["num_images"] != info["num_images"]:
        populations.append(info["scored"])
    found = []
    for population in populations:
        label = population["label_information_nats"]
        error, rate = population["label_information_nats_standard_error"], population["top_rate_nats"]
        sentence = f"I_q(y; z_L) = {label:.4f} ± {error:.4f} nats is above R_L = {rate:.4f}"
        excess = label - rate - num_errors * error - ROUNDING_NATS
        # Whatever z is, I(y; z) ≤ H[p(y)].
        could_fail = rate < population["label_entropy_nats"]
        found.append(Check("label_information", could_fail, rate - label, error, excess, sentence))
    return found


def _check_accuracies(
    info: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], num_errors: float
) -> list[Check]:
    label, error = info["label_information_nats"], info["label_information_nats_standard_error"]
    most = label + num_errors * error + ROUNDING_NATS
    by_information = float(bounds.max_accuracy(most, info["label_histogram"]))
    found = []
    for layer in layers:
        number = layer["layer"]
        is_top = number == len(layers)
        by_rates = info["max_accuracy_by_rates"][number - 1]
        limit, bare = (
            (by_information, info["max_accuracy_by_information"]) if is_top else (by_rates, by_rates)
        )
        source = "f⁻¹(I_q(y; z_L))" if is_top else f"f⁻¹(R_{number} + … + R_L)"
        samples = layer.get("samples", {})
        for kind in KINDS:
            if kind not in samples:
                continue
            accuracy = samples[kind]["test_accuracy"]
            deviation = samples[kind]["test_accuracy_standard_error"]
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
