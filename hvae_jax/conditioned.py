"""Asking a conditioned model: which betas give these rates, or this distortion? A root-find in log β.

`solve` and `solve_distortion` know no network: they take a function of the betas. `Measure` is that function
of a trained model, its means over a fixed set of images with the same draws at every beta, which makes them
smooth. Steps are Newton's with a Jacobian from differences, then updated (Broyden, 1965).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hvae_jax.data.stored import Rows
from hvae_jax.evaluation import rates as split_rates
from hvae_jax.evaluation.metrics import Rates
from hvae_jax.experiment import Experiment
from hvae_jax.keys import make_key
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import Params
from hvae_jax.training.split_evaluator import SplitEvaluator

# Relative error at which a target is reached, and the one that is aimed for, on few images and at last.
REACHED, SEARCH_TOLERANCE, TOLERANCE = 0.01, 0.005, 0.002
# In log β: of one step at most, and of the differences that a Jacobian is made from.
MAX_STEP, DIFFERENCE = 1.0, 0.1
MAX_PASSES = 40
# Rates and distortions below this count as this: of an empty layer only that it is empty is of interest.
MIN_RATE = 1e-4
# Values of each beta that a survey looks at, where it looks at all combinations of them.
NUM_SURVEYED = 5


class Means(NamedTuple):
    """Means over images at some betas, nats: the distortion, and the rates `[L]`."""

    distortion: float
    rates: np.ndarray


# Betas `[L]` → means.
MeasureFn = Callable[[np.ndarray], Means]


class Survey(NamedTuple):
    """Means at betas spread over the range: where a search starts, and how far rates reach.

    Attributes:
      betas: `[K, L]`.
      distortions: `[K]`, nats.
      rates: `[K, L]`, nats.
    """

    betas: np.ndarray
    distortions: np.ndarray
    rates: np.ndarray

    def reach(self) -> tuple[tuple[float, float], ...]:
        """The smallest and the largest rate of each layer that was seen, nats."""
        return tuple(zip(self.rates.min(axis=0).tolist(), self.rates.max(axis=0).tolist(), strict=True))


class Answer(NamedTuple):
    """What a search found.

    Attributes:
      betas: z_1 first.
      means: at these betas, of what was measured last.
      out_of_reach: why each target that is missed by more than `REACHED` is, in words; else empty.
      num_passes: calls of both functions.
    """

    betas: tuple[float, ...]
    means: Means
    out_of_reach: tuple[str, ...]
    num_passes: int


class Measure:
    """A conditioned model's means over images, at any betas, with one compiled program."""

    def __init__(self, built: Experiment, params: Params, images: Rows, num_samples: int = 1) -> None:
        """Compiles nothing yet.

        Args:
          built: the experiment that it is of.
          params: of the trained model.
          images: `[N, ...]` as stored.
          num_samples: posterior draws for each image.

        Raises:
          ValueError: the model is not conditioned.
        """
        if not built.model.config.is_conditioned:
            raise ValueError("the model is not conditioned on the betas: it has its own")
        self._built, self._params, self._key = built, params, make_key(built.training.seed)
        self._terms_fn = split_rates.make_repeated_terms(built.terms_fn, num_samples)
        self._evaluator = SplitEvaluator(images, built.preprocess_fn)

    def __call__(self, betas: Sequence[float] | np.ndarray) -> Means:
        """Means at betas `[L]`."""
        terms = self.terms(betas)
        distortion, rates = (np.asarray(array, np.float64) for array in terms)
        return Means(float(distortion.mean()), rates.mean(axis=0))

    def terms(self, betas: Sequence[float] | np.ndarray) -> LayerwiseTerms:
        """Distortion `[N]` and rates `[N, L]`, averaged over the draws."""
        params = self._built.at(self._params, np.asarray(betas, np.float32))
        return self._evaluator.map_images(self._terms_fn, params, self._key)

    def summary(self, betas: Sequence[float] | np.ndarray) -> Rates:
        """Means with their standard errors over the images."""
        return summarize(self._built, self.terms(betas))


def summarize(built: Experiment, terms: LayerwiseTerms) -> Rates:
    """Means of a split, as an experiment's evaluation reports them."""
    monte_carlo = built.model.config.monte_carlo_rates
    return split_rates.summarize(terms, built.num_dims, built.named_groups, monte_carlo_rates=monte_carlo)


def survey(measure: MeasureFn, lows: Sequence[float], highs: Sequence[float]) -> Survey:
    """Looks at betas over the whole range.

    Of one or two layers at all combinations of `NUM_SURVEYED` values; of more at equal places of the range,
    and at each layer alone at its ends.

    Args:
      measure: betas → means.
      lows, highs: the range of each beta.
    """
    low, high = np.log(lows), np.log(highs)
    num_layers, places = len(low), np.linspace(0.0, 1.0, NUM_SURVEYED)
    if num_layers <= 2:
        shares = np.stack(np.meshgrid(*[places] * num_layers, indexing="ij"), axis=-1).reshape(-1, num_layers)
    else:
        equal = np.repeat(places[:, None], num_layers, axis=1)
        alone = np.full((2 * num_layers, num_layers), 0.5)
        for layer in range(num_layers):
            alone[2 * layer, layer], alone[2 * layer + 1, layer] = 0.0, 1.0
        shares = np.concatenate([equal, alone])
    betas = np.exp(low + shares * (high - low))
    means = [measure(vector) for vector in betas]
    return Survey(betas, np.asarray([m.distortion for m in means]), np.stack([m.rates for m in means]))


def solve(
    measure: MeasureFn,
    targets_nats: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    search: MeasureFn | None = None,
    surveyed: Survey | None = None,
) -> Answer:
    """The betas at which every layer has the rate that is asked for.

    Args:
      measure: betas → means, in which targets are to be met: over a whole validation split, say.
      targets_nats: R_1 … R_L, positive.
      lows, highs: the range of each beta, outside of which nothing is asked of the model.
      search: the same of fewer images, for all but the last steps; `measure` itself by default.
      surveyed: `survey` of `search`, where it is at hand; else made here.

    Raises:
      ValueError: targets that are not positive, or not one per layer.

    Example:
      >>> def of_two_layers(betas):
      ...     return Means(5.0, np.array([4.0 / betas[0], 2.0 / betas[1]]))
      >>> answer = solve(of_two_layers, (8.0, 1.0), (0.1, 0.1), (10.0, 10.0))
      >>> [round(beta, 2) for beta in answer.betas], answer.out_of_reach
      ([0.5, 2.0], ())
    """
    targets = np.asarray(targets_nats, np.float64)
    if targets.shape != np.shape(lows) or not (targets > 0).all():
        raise ValueError(f"targets must be [{len(lows)}] positive rates, got {targets_nats}")

    def residuals(means: Means) -> np.ndarray:
        return np.log(np.maximum(means.rates, MIN_RATE) / targets)

    counted = _Counted(measure, search)
    surveyed = surveyed or survey(counted.search, lows, highs)
    misses = np.log(np.maximum(surveyed.rates, MIN_RATE) / targets)
    start = np.log(surveyed.betas[np.argmin(np.square(misses).sum(axis=1))])
    bounds = np.log(lows), np.log(highs)
    u, means = _two_stages(counted, np.exp, residuals, start, *bounds)
    reasons = []
    for layer, (rate, target) in enumerate(zip(means.rates, targets, strict=True), start=1):
        if abs(rate / target - 1.0) > REACHED:
            (least, most), beta = surveyed.reach()[layer - 1], np.exp(u[layer - 1])
            is_alone = least <= target <= most
            why = "not together with the other targets" if is_alone else "outside of what it reaches"
            reasons.append(
                f"z_{layer} has {rate:.4g} of {target:.4g} nats at beta_{layer}={beta:.4g}: {why}; for betas "
                f"from {lows[layer - 1]:g} to {highs[layer - 1]:g}, R_{layer} goes from {least:.4g} to "
                f"{most:.4g} nats"
            )
    return Answer(tuple(np.exp(u).tolist()), means, tuple(reasons), counted.num_passes)


def solve_distortion(
    measure: MeasureFn,
    target_nats: float,
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    ratios: Sequence[float] | None = None,
    search: MeasureFn | None = None,
) -> Answer:
    """The betas, all by one factor, at which the distortion is what is asked for.

    Args:
      measure, lows, highs, search: as of `solve`.
      target_nats: the distortion.
      ratios: betas up to their factor; equal by default.
    """
    base, low, high = np.log(ratios or np.ones(len(lows))), np.log(lows), np.log(highs)
    lowest, highest = (low - base).max(), (high - base).min()
    if lowest > highest:
        raise ValueError(f"betas in the ratios {ratios} do not fit into the range {lows} … {highs}")

    def betas_of(u: np.ndarray) -> np.ndarray:
        return np.clip(np.exp(base + u[0]), lows, highs)

    scale = max(abs(target_nats), 1.0)

    def residuals(means: Means) -> np.ndarray:
        return np.asarray([(target_nats - means.distortion) / scale])

    counted = _Counted(measure, search)
    ends = [counted.search(betas_of(np.asarray([u]))).distortion for u in (lowest, highest)]
    start = np.asarray([0.5 * (lowest + highest)])
    u, means = _two_stages(counted, betas_of, residuals, start, np.asarray([lowest]), np.asarray([highest]))
    betas, reasons = tuple(betas_of(u).tolist()), ()
    if abs(means.distortion - target_nats) > REACHED * scale:
        reasons = (
            f"D is {means.distortion:.5g} of {target_nats:.5g} nats: over the range of betas it goes from "
            f"{min(ends):.5g} to {max(ends):.5g} nats",
        )
    return Answer(betas, means, reasons, counted.num_passes)


class _Counted:
    """Both functions of a search, and how often they were called."""

    def __init__(self, measure: MeasureFn, search: MeasureFn | None) -> None:
        self._measure, self._search, self.num_passes = measure, search or measure, 0
        self.is_same = search is None

    def measure(self, betas: np.ndarray) -> Means:
        self.num_passes += 1
        return self._measure(betas)

    def search(self, betas: np.ndarray) -> Means:
        self.num_passes += 1
        return self._search(betas)


def _two_stages(
    counted: _Counted,
    betas_of: Callable[[np.ndarray], np.ndarray],
    residuals: Callable[[Means], np.ndarray],
    start: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
) -> tuple[np.ndarray, Means]:
    """On few images first, then the last steps on all, with the Jacobian that the former left."""
    u, jacobian = start, None
    if not counted.is_same:
        search = _Problem(counted.search, betas_of, residuals, lows, highs)
        u, _, jacobian = search.solve(u, SEARCH_TOLERANCE)
    u, means, _ = _Problem(counted.measure, betas_of, residuals, lows, highs).solve(u, TOLERANCE, jacobian)
    return u, means


class _Problem(NamedTuple):
    """Residuals of unknowns u within bounds; each falls as its own unknown rises."""

    measure: MeasureFn
    betas_of: Callable[[np.ndarray], np.ndarray]
    residuals: Callable[[Means], np.ndarray]
    lows: np.ndarray
    highs: np.ndarray

    def solve(
        self, u: np.ndarray, tolerance: float, jacobian: np.ndarray | None = None
    ) -> tuple[np.ndarray, Means, np.ndarray]:
        """The unknowns, the means there, and the Jacobian.

        Unknowns at a bound that their residual pushes against rest there, and the others are solved for.
        """
        means = self.measure(self.betas_of(u))
        r = self.residuals(means)
        radius = MAX_STEP
        for _ in range(MAX_PASSES):
            is_pinned = ((u <= self.lows) & (r < 0)) | ((u >= self.highs) & (r > 0))
            free = np.flatnonzero(~is_pinned)
            if not len(free) or np.abs(r[free]).max() <= tolerance:
                break
            if jacobian is None:
                jacobian = self._differences(u, r)
            step = np.zeros_like(u)
            step[free] = _newton_step(jacobian[np.ix_(free, free)], r[free])
            step *= min(1.0, radius / np.abs(step).max())
            new = np.clip(u + step, self.lows, self.highs)
            moved = new - u
            if np.abs(moved).max() < 1e-6:
                break
            new_means = self.measure(self.betas_of(new))
            new_r = self.residuals(new_means)
            jacobian = jacobian + np.outer(new_r - r - jacobian @ moved, moved) / (moved @ moved)
            # A layer that pins or unpins changes what is solved for: all residuals count.
            if np.linalg.norm(new_r) < np.linalg.norm(r) or np.abs(new_r[free]).max() <= tolerance:
                u, r, means, radius = new, new_r, new_means, min(MAX_STEP, 2.0 * radius)
            else:
                radius = 0.25 * np.abs(moved).max()
                if radius < 1e-4:
                    break
        if jacobian is None:
            jacobian = -np.eye(len(u))
        return u, means, jacobian

    def _differences(self, u: np.ndarray, r: np.ndarray) -> np.ndarray:
        columns = []
        for entry in range(len(u)):
            there = u.copy()
            there[entry] += DIFFERENCE if u[entry] + DIFFERENCE <= self.highs[entry] else -DIFFERENCE
            change = self.residuals(self.measure(self.betas_of(there))) - r
            columns.append(change / (there[entry] - u[entry]))
        return np.stack(columns, axis=1)


def _newton_step(jacobian: np.ndarray, r: np.ndarray) -> np.ndarray:
    """−J⁻¹ r; where J hardly says anything, each unknown by its own residual."""
    step = np.linalg.lstsq(jacobian, -r, rcond=1e-6)[0]
    is_usable = np.isfinite(step).all() and (step != 0).any()
    return step if is_usable else r / np.abs(r).max()
