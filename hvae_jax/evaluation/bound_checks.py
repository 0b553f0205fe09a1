"""Whether a model's numbers keep to the theory.

Each check takes the test images for the whole population. Then the inequalities are theorems about that
population, not only in expectation over data sets, and what may hide them is the finite number of draws of
z alone:

* I_q(y; z_L) ≤ R_L, both over the same images and draws;
* accuracy from samples of z_L ≤ f⁻¹(I_q(y; z_L)), with the histogram of these very labels, for every probe:
  they were fitted on other images, so for this population they are fixed functions of z_L;
* accuracy from samples of z_l ≤ f⁻¹(R_l + … + R_L) for the layers below;
* D ≥ H − ΣR with H the entropy of the images as they are, where pixels are discrete.

Posterior means are left out on purpose: the bounds do not speak of them.
"""

from collections.abc import Mapping
from typing import Any

from hvae_jax import bounds
from hvae_jax.evaluation.representation import KINDS

# A number counts as a violation beyond this many standard errors of its draws …
NUM_STANDARD_ERRORS = 5.0
# … and beyond what float32 sums leave uncertain, nats.
ROUNDING_NATS = 1e-3


def violations(metrics: Mapping[str, Any], num_standard_errors: float = NUM_STANDARD_ERRORS) -> list[str]:
    """One sentence for every inequality that a model breaks beyond its sampling error.

    Args:
      metrics: as `applications.ModelEvaluator` gives them.
      num_standard_errors: 0 asks for the bare numbers.
    """
    found = []
    info = metrics["information"]["test"]
    label, error = info["label_information_nats"], info["label_information_nats_standard_error"]
    slack = num_standard_errors * error + ROUNDING_NATS
    top_rate = info["top_rate_nats"]
    if label > top_rate + slack:
        found.append(f"I_q(y; z_L) = {label:.4f} ± {error:.4f} nats is above R_L = {top_rate:.4f}")

    layers = metrics["representation"]["layers"]
    histogram = info["label_histogram"]
    for layer in layers:
        number = layer["layer"]
        if number == len(layers):
            limit, source = float(bounds.max_accuracy(label + slack, histogram)), "f⁻¹(I_q(y; z_L))"
        else:
            limit, source = info["max_accuracy_by_rates"][number - 1], f"f⁻¹(R_{number} + … + R_L)"
        for kind in KINDS:
            scored = layer["samples"][kind]
            accuracy, deviation = scored["test_accuracy"], scored["test_accuracy_standard_error"]
            if accuracy - num_standard_errors * deviation > limit:
                found.append(
                    f"{kind} reads the class from samples of z_{number} with accuracy {accuracy:.4f} ± "
                    f"{deviation:.4f}, above {source} = {limit:.4f}"
                )

    least = metrics["reconstruction"]["test"].get("min_distortion_nats")
    rates = metrics["rates"]["test"]
    distortion, error = rates["distortion_nats"], rates["distortion_nats_standard_error"]
    if least is not None and distortion + num_standard_errors * error + ROUNDING_NATS < least:
        found.append(f"D = {distortion:.4f} ± {error:.4f} nats is below H − ΣR = {least:.4f}")
    return found
