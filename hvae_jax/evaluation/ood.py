"""Is an image from here at all? Scores of images by layer, and how well they tell images from elsewhere.

Of an image x, with the layers up to k drawn from their conditional prior,

    L^{>k} = E[log p(x|z) − Σ_{l>k} KL],      LLR^{>k} = ELBO − L^{>k}

(Havtorn et al., Hierarchical VAEs Know What They Don't Know, ICML 2021): the ratio is large where an image
needs its low layers more than what its high layers say of it. Every score here is oriented alike: larger
means more likely from elsewhere, so the likelihood enters by its negative. Images from elsewhere are the
positives of every statistic.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.evaluation import measuring
from hvae_jax.evaluation.plain import Estimate
from hvae_jax.evaluation.rates import NamedGroups
from hvae_jax.keys import fold_in
from hvae_jax.models.hvae import HVAE
from hvae_jax.training import Params
from hvae_jax.training.split_evaluator import ImageFn, SplitEvaluator

TPR = 0.8
NUM_RESAMPLES = 200
# Numbers of one bootstrap block at a time.
_BLOCK_NUMBERS = 2**21


class Bounds(NamedTuple):
    """Of N images, nats.

    Attributes:
      elbo: `[N]`, mean over the draws.
      importance_weighted: `[N]`, log of the mean weight of as many draws (Burda et al., 2016).
      above: for each k `[N]`, L^{>k}, mean over the draws.
    """

    elbo: Any
    importance_weighted: Any
    above: Sequence[Any]


def layers_below(model: HVAE, grouped: NamedGroups | None = None) -> tuple[int, ...]:
    """The k of L^{>k}: each layer but the top; of a deep network, where its sides or groups end.

    Args:
      model: the network.
      grouped: layers that share a beta; a deep network is also cut where such a group ends.

    Returns:
      rising, in 1 … L − 1; empty for one layer. Of a deep network that is one group, the middle alone.
    """
    highest = set(measuring.read_layers(model)[1])
    if grouped is not None:
        highest |= {last for _, last in grouped.groups.ranges}
    ends = highest - {model.num_layers}
    return tuple(sorted(ends or {model.num_layers // 2} - {0}))


def make_bounds_fn(model: HVAE, num_draws: int, layers: Sequence[int]) -> ImageFn:
    """(params, x `[B, ...]`, keys `[B]`) → `Bounds` of each image; one draw is in memory at a time.

    Args:
      model: the network.
      num_draws: posterior draws of each image, for the means and for the importance-weighted bound.
      layers: the k of L^{>k}. Its layers above k are drawn as the ELBO's are.
    """
    apply: Any = model.apply

    def bounds(params: Params, x: jax.Array, keys: jax.Array) -> Bounds:
        def draw(number: Any) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
            draw_keys = fold_in(keys, number)
            terms = [apply(params, x, draw_keys)]
            terms += [apply(params, x, draw_keys, layer, method="terms_above") for layer in layers]
            elbo, *above = [-of.distortion - of.rates.sum(axis=1) for of in terms]
            return elbo, apply(params, x, draw_keys, method="log_weight"), above

        elbo, log_weight, above = jax.lax.map(draw, jnp.arange(num_draws))
        weighted = jax.nn.logsumexp(log_weight, axis=0) - math.log(num_draws)
        return Bounds(elbo.mean(axis=0), weighted, [nats.mean(axis=0) for nats in above])

    return bounds


def measure_bounds(bounds_fn: ImageFn, images: SplitEvaluator, params: Params, key: jax.Array) -> Bounds:
    """`Bounds` of every image, float64, in one compiled pass.

    Args:
      bounds_fn: of `make_bounds_fn`; the same object from call to call, or it compiles anew.
      images: with the preprocessing of the model's own data.
      params: of the model.
      key: a typed key. What is drawn of an image depends on it and on the image's place alone.
    """
    found: Bounds = images.map_images(bounds_fn, params, key)
    return jax.tree.map(lambda nats: np.asarray(nats, np.float64), found)


def scores(bounds: Bounds, layers: Sequence[int]) -> dict[str, np.ndarray]:
    """Every score by name, `[N]` each, nats, larger for images from elsewhere.

    Where a bound overflows a ratio may be no number; such an image is as far from here as can be: +inf.

    Args:
      bounds: of N images.
      layers: the k of `bounds.above`.

    Returns:
      `negative_elbo`, `negative_importance_weighted_bound`, then for each k `negative_elbo_above_k` and
      `llr_above_k`.
    """
    found = {
        "negative_elbo": -bounds.elbo,
        "negative_importance_weighted_bound": -bounds.importance_weighted,
    }
    with np.errstate(invalid="ignore"):  # inf − inf, which becomes inf
        for layer, above in zip(layers, bounds.above, strict=True):
            found |= {f"negative_elbo_above_{layer}": -above, f"llr_above_{layer}": bounds.elbo - above}
    return {name: np.where(np.isnan(values), np.inf, values) for name, values in found.items()}


def auroc(inside: np.ndarray, outside: np.ndarray, are_pairs: bool = False) -> Estimate:
    """The area under the ROC curve, P(outside > inside) + ½ P(equal), and DeLong's standard error.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988. The error is 0 where no two images of
    different origin are out of order: so many images then say no more.

    Args:
      inside: scores of images from here, `[N]`.
      outside: scores of images from elsewhere, `[M]`.
      are_pairs: whether `outside[i]` is made from the image of `inside[i]`, so that they vary together.

    Raises:
      ValueError: not vectors, no image, NaN, or pairs of different length.

    Example:
      >>> auroc(np.array([0.0, 1.0, 2.0, 4.0]), np.array([1.5, 5.0])).value
      0.75
    """
    return mean_auroc(inside, [outside], [are_pairs])


def mean_auroc(
    inside: np.ndarray, outsides: Sequence[np.ndarray], are_pairs: Sequence[bool] | None = None
) -> Estimate:
    """The mean of `auroc` over several samples from elsewhere, which all count alike.

    Its error knows that all are set against the same images from here.

    Args:
      inside: `[N]`.
      outsides: `[M_1]`, `[M_2]`, …
      are_pairs: of each, see `auroc`; none by default.
    """
    pairs = [False] * len(outsides) if are_pairs is None else are_pairs
    num = len(outsides)
    areas, variance, of_inside = [], 0.0, np.zeros(len(inside))
    for outside, is_paired in zip(outsides, pairs, strict=True):
        _check(inside, outside, is_paired)
        below, above = _share_below(inside, outside), 1.0 - _share_below(outside, inside)
        areas.append(below.mean())
        of_inside += above / num
        if is_paired:
            of_inside += below / num
        else:
            variance += _variance_of_mean(below) / num**2
    return Estimate(float(np.mean(areas)), math.sqrt(variance + _variance_of_mean(of_inside)))


def auprc(inside: np.ndarray, outside: np.ndarray, are_pairs: bool = False, seed: int = 0) -> Estimate:
    """The area under the precision-recall curve as average precision, and its bootstrap standard error.

    Images from here and from elsewhere have half of the weight each, however many there are: chance is 0.5
    then, and the number does not depend on the sizes of the samples.

    Args:
      inside, outside, are_pairs: see `auroc`.
      seed: of the bootstrap, which draws both samples anew `NUM_RESAMPLES` times, pairs as pairs.
    """
    return _bootstrapped(_average_precision, inside, outside, are_pairs, seed)


def fpr_at_tpr(
    inside: np.ndarray, outside: np.ndarray, are_pairs: bool = False, tpr: float = TPR, seed: int = 0
) -> Estimate:
    """The share of images from here that are flagged where `tpr` of those from elsewhere are.

    The threshold is the highest that flags as many. The standard error is a bootstrap's, see `auprc`.
    """

    def fpr(true: np.ndarray, false: np.ndarray) -> np.ndarray:
        place = np.argmax(true >= tpr * true[:, -1:] - 1e-9, axis=1)
        return np.take_along_axis(false, place[:, None], axis=1)[:, 0] / false[:, -1]

    return _bootstrapped(fpr, inside, outside, are_pairs, seed)


def best_score(
    inside: Mapping[str, np.ndarray], outsides: Sequence[Mapping[str, np.ndarray]], are_pairs: Sequence[bool]
) -> str:
    """The score with the largest mean AUROC over the samples from elsewhere; the first of equal ones."""
    return max(
        inside, key=lambda name: mean_auroc(inside[name], [of[name] for of in outsides], are_pairs).value
    )


def _check(inside: np.ndarray, outside: np.ndarray, are_pairs: bool) -> None:
    shapes = f"inside {inside.shape} and outside {outside.shape}"
    if inside.ndim != 1 or outside.ndim != 1 or not len(inside) or not len(outside):
        raise ValueError(f"{shapes} must be vectors of at least one score")
    if are_pairs and len(inside) != len(outside):
        raise ValueError(f"{shapes} must have equal lengths to be pairs")
    if np.isnan(inside).any() or np.isnan(outside).any():
        raise ValueError(f"{shapes} must not hold NaN")


def _share_below(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """For each of `of`, the share of `values` that are smaller, plus half of those that are equal."""
    ordered = np.sort(values)
    sides = np.searchsorted(ordered, of, "left") + np.searchsorted(ordered, of, "right")
    return sides / (2 * len(values))


def _variance_of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def _average_precision(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    steps, recall = np.diff(true, prepend=0, axis=1), true / true[:, -1:]
    flagged = recall + false / false[:, -1:]
    precision = np.divide(recall, flagged, out=np.zeros_like(recall), where=flagged > 0)
    return (steps * precision).sum(axis=1) / true[:, -1]


def _bootstrapped(
    statistic: Any, inside: np.ndarray, outside: np.ndarray, are_pairs: bool, seed: int
) -> Estimate:
    """A statistic of the numbers of true and of false positives `[R, T]` at falling thresholds, and its
    error; the last threshold flags all."""
    _check(inside, outside, are_pairs)
    num, num_inside = len(inside) + len(outside), len(inside)
    both = np.concatenate([inside, outside])
    order = np.argsort(-both, kind="stable")
    falling = both[order]
    # Equal scores are flagged together.
    ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), num - 1)
    is_inside = order < num_inside

    def positives(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts = counts[:, order]
        true = np.cumsum(np.where(is_inside, 0, counts), axis=1)[:, ends]
        return true, np.cumsum(np.where(is_inside, counts, 0), axis=1)[:, ends]

    value = statistic(*positives(np.ones((1, num), np.int64)))[0]
    drawn = [statistic(*positives(c)) for c in _resamples(num_inside, len(outside), are_pairs, seed)]
    return Estimate(float(value), float(np.concatenate(drawn).std(ddof=1)))


def _resamples(num_inside: int, num_outside: int, are_pairs: bool, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, `[R, N + M]`, in blocks of resamples."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_NUMBERS // (num_inside + num_outside))

    def draw(num: int, rows: int) -> np.ndarray:
        places = generator.integers(num, size=(rows, num)) + num * np.arange(rows)[:, None]
        return np.bincount(places.ravel(), minlength=rows * num).reshape(rows, num)

    for start in range(0, NUM_RESAMPLES, block):
        rows = min(block, NUM_RESAMPLES - start)
        inside = draw(num_inside, rows)
        yield np.concatenate([inside, inside if are_pairs else draw(num_outside, rows)], axis=1)
