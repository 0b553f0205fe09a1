"""What became of the rates that were asked for: the part of evaluation.json that targets add."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from hvae_jax.evaluation.metrics import Rates, Reached, TargetReport
from hvae_jax.evaluation.plain import Estimates
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
    train: Rates,
    valid: Rates | None = None,
    test: Rates | None = None,
) -> TargetReport:
    """Targets beside what was reached on every split.

    Args:
      objective: with a control that has targets.
      num_dims: H · W · C.
      betas: `[L]`, where they ended; those of the groups where its layers share betas.
      train, valid, test: of `rates.summarize`, with these groups.
    """
    targets, kinds = objective.resolve_targets(num_dims), objective.kinds()
    lower, upper = objective.bounds()
    in_groups = bool(objective.beta_groups) and train.groups is not None
    reached = _reached(train, in_groups)
    is_distortion = objective.control == "target_distortion"
    if is_distortion:
        # Less distortion takes a smaller beta, as a larger rate does; at a bound, all betas must be.
        at_lower = all(_is_near(beta, bound) for beta, bound in zip(betas, lower, strict=True))
        at_upper = all(_is_near(beta, bound) for beta, bound in zip(betas, upper, strict=True))
        status = [target_status("equal", -targets[0], -train.distortion_nats.value, at_lower, at_upper)]
    else:
        status = [
            target_status(kind, target, rate, _is_near(beta, low), _is_near(beta, high))
            for kind, target, rate, beta, low, high in zip(
                kinds, targets, reached.rates_nats.value, betas, lower, upper, strict=True
            )
        ]
    asked = [None if kind == "free" else target for kind, target in zip(kinds, targets, strict=False)]
    return TargetReport(
        target_groups=tuple(group.name for group in train.groups or ()) if in_groups else None,
        target_distortion_nats=targets[0] if is_distortion else None,
        targets_nats=None if is_distortion else tuple(asked),
        target_status=tuple(status),
        betas=tuple(betas),
        beta_bounds=tuple(zip(lower, upper, strict=True)),
        train=reached,
        valid=valid and _reached(valid, in_groups),
        test=test and _reached(test, in_groups),
    )


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


def describe_targets(report: TargetReport) -> str:
    """A line for every target: what was asked for, what was reached on each split, at which beta."""
    lines = ["Targets, nats per image:"]
    splits = {"train": report.train, "valid": report.valid, "test": report.test}
    reached = {name: split for name, split in splits.items() if split is not None}
    if report.target_distortion_nats is not None:
        found = ", ".join(f"{split.distortion_nats.value:.4f} {name}" for name, split in reached.items())
        betas = ", ".join(f"{beta:.4g}" for beta in report.betas)
        status = report.target_status[0].replace("_", " ")
        lines.append(f"  D: asked {report.target_distortion_nats:.4f}, {found}; betas {betas}: {status}")
    for index, target in enumerate(report.targets_nats or ()):
        asked = "free" if target is None else f"asked {target:.4f}"
        found = ", ".join(f"{split.rates_nats.value[index]:.4f} {name}" for name, split in reached.items())
        beta, status = report.betas[index], report.target_status[index].replace("_", " ")
        rate, name = f"R_{index + 1}", f"beta_{index + 1}"
        if report.target_groups is not None:
            rate, name = f"R of {report.target_groups[index]}", "its beta"
        lines.append(f"  {rate}: {asked}, {found}; {name} = {beta:.4g}: {status}")
    return "\n".join(lines)


def _reached(rates: Rates, in_groups: bool) -> Reached:
    found = rates.rates_nats
    if in_groups:
        values, errors = zip(*(group.rate_nats for group in rates.groups or ()), strict=True)
        found = Estimates(values, errors)
    return Reached(rates_nats=found, distortion_nats=rates.distortion_nats)


def _is_near(beta: float, bound: float) -> bool:
    return abs(beta - bound) <= _AT_BOUND * bound
