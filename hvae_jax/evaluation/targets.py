"""What became of the rates that were asked for: the part of evaluation.json that targets add."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hvae_jax.keys import make_key
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.objective_config import ObjectiveConfig
from hvae_jax.training import Params, TermsFn
from hvae_jax.training.split_evaluator import SplitEvaluator

# Relative error of the rate on the training split within which a target counts as reached.
TOLERANCE = 0.01
# A beta within this share of its bound is at it: noise in the rates keeps pushing it off by a little.
_AT_BOUND = 0.1
# Folded into a run's key for these draws, which are none of the other evaluation's.
FRESH_KEY = 2


def fresh_terms(
    evaluator: SplitEvaluator, terms_fn: TermsFn, params: Params, seed: int, num_passes: int
) -> LayerwiseTerms:
    """`mean_terms` of one model over every image of a split."""
    key = jax.random.fold_in(make_key(seed), FRESH_KEY)
    return mean_terms(
        lambda number: evaluator.map_images(terms_fn, params, jax.random.fold_in(key, number)), num_passes
    )


def mean_terms(one_pass: Callable[[int], LayerwiseTerms], num_passes: int) -> LayerwiseTerms:
    """The terms of every image, averaged over passes that each draw anew, binarisation included.

    What training averages over, and so what a target is about.
    """
    passes = [one_pass(number) for number in range(num_passes)]
    return jax.tree.map(lambda *terms: np.mean(terms, axis=0, dtype=np.float64), *passes)


def report_targets(
    objective: ObjectiveConfig,
    num_dims: int,
    betas: Sequence[float],
    splits: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Targets beside what was reached on every split.

    Args:
      objective: with a control that has targets.
      num_dims: H · W · C.
      betas: `[L]`, where they ended.
      splits: "train" and others → summary of `evaluation.rates.summarize`.

    Returns:
      plain numbers: `targets_nats` (None for a layer without a target) or `target_distortion_nats`,
      `betas`, `beta_bounds` per layer, `target_status` of every target (see `target_status`), and of
      every split `…_rates_nats`, `…_distortion_nats` and their standard errors.
    """
    targets, kinds = objective.resolve_targets(num_dims), objective.kinds()
    lower, upper = objective.bounds()
    report: dict[str, Any] = {}
    if objective.control == "target_distortion":
        # Less distortion takes a smaller beta, as a larger rate does; at a bound, all betas must be.
        reached = -splits["train"]["distortion_nats"]
        at_lower = all(_is_near(beta, bound) for beta, bound in zip(betas, lower, strict=True))
        at_upper = all(_is_near(beta, bound) for beta, bound in zip(betas, upper, strict=True))
        report["target_distortion_nats"] = targets[0]
        report["target_status"] = [target_status("equal", -targets[0], reached, at_lower, at_upper)]
    else:
        report["targets_nats"] = [
            None if kind == "free" else target for kind, target in zip(kinds, targets, strict=True)
        ]
        report["target_status"] = [
            target_status(kind, target, rate, _is_near(beta, low), _is_near(beta, high))
            for kind, target, rate, beta, low, high in zip(
                kinds, targets, splits["train"]["rates_nats"], betas, lower, upper, strict=True
            )
        ]
    report["betas"] = list(betas)
    report["beta_bounds"] = [list(pair) for pair in zip(lower, upper, strict=True)]
    for split, summary in splits.items():
        for name in ("rates_nats", "distortion_nats"):
            report[f"{split}_{name}"] = summary[name]
            report[f"{split}_{name}_standard_error"] = summary[f"{name}_standard_error"]
    return report


def target_status(kind: str, target: float, reached: float, at_lower: bool, at_upper: bool) -> str:
    """One word, or few, for one target.

    Args:
      kind: "equal", "at_most" or "free".
      target, reached: nats.
      at_lower, at_upper: whether beta ended at a bound.

    Returns:
      "reached" (within TOLERANCE), "below" (an upper bound that holds by itself), "free",
      "not_reached_beta_at_lower_bound" (the layer cannot carry so much, or has collapsed),
      "not_reached_beta_at_upper_bound" (it cannot be made to carry so little), or "not_reached" (beta
      was still moving, or the rate does not answer it).
    """
    if kind == "free":
        return "free"
    if abs(reached - target) <= TOLERANCE * abs(target):
        return "reached"
    if kind == "at_most" and reached < target:
        return "below"
    if at_lower and reached < target:
        return "not_reached_beta_at_lower_bound"
    if at_upper and reached > target:
        return "not_reached_beta_at_upper_bound"
    return "not_reached"


def describe_targets(report: Mapping[str, Any]) -> str:
    """A line for every target: what was asked for, what was reached on each split, at which beta."""
    lines = ["Targets, nats per image:"]
    splits = [name.removesuffix("_rates_nats") for name in report if name.endswith("_rates_nats")]
    if "target_distortion_nats" in report:
        reached = ", ".join(f"{report[f'{split}_distortion_nats']:.4f} {split}" for split in splits)
        betas = ", ".join(f"{beta:.4g}" for beta in report["betas"])
        status = report["target_status"][0].replace("_", " ")
        lines.append(f"  D: asked {report['target_distortion_nats']:.4f}, {reached}; betas {betas}: {status}")
        return "\n".join(lines)
    for index, (target, status) in enumerate(
        zip(report["targets_nats"], report["target_status"], strict=True)
    ):
        asked = "free" if target is None else f"asked {target:.4f}"
        reached = ", ".join(f"{report[f'{split}_rates_nats'][index]:.4f} {split}" for split in splits)
        beta = f"beta_{index + 1} = {report['betas'][index]:.4g}"
        lines.append(f"  R_{index + 1}: {asked}, {reached}; {beta}: {status.replace('_', ' ')}")
    return "\n".join(lines)


def _is_near(beta: float, bound: float) -> bool:
    return abs(beta - bound) <= _AT_BOUND * bound
