"""The fourth application: how well a model tells images from elsewhere from its own, by every score.

The score that stands for a model is chosen on the validation split, as betas are, and reported on the test
split; see `ood` for the scores and `ood_sets` for the images.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import jax
import numpy as np

from hvae_jax.data import Dataset
from hvae_jax.data.sources import STREAM_BYTES
from hvae_jax.data.stored import HostArray
from hvae_jax.errors import RunError
from hvae_jax.evaluation import ood, ood_sets, parts
from hvae_jax.evaluation.metrics import PerSplit, Score, Split
from hvae_jax.evaluation.ood_sets import Source
from hvae_jax.evaluation.plain import Estimate
from hvae_jax.evaluation.rates import NamedGroups
from hvae_jax.keys import make_key
from hvae_jax.models.hvae import HVAE
from hvae_jax.training import Params, PreprocessFn
from hvae_jax.training.split_evaluator import SplitEvaluator

SPLITS: tuple[Split, ...] = get_args(Split)
MIN_SIZE = 50
# Folded into the key of these draws, which are none of the other evaluation's.
_KEY = 3

# A sample's scores by name, each `[N]`.
Scores = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DetectionSizes:
    """How much is drawn and scored.

    Attributes:
      num_draws: posterior draws of each image, for the bounds' means and the importance-weighted bound.
      max_images: of each split, and of each set from elsewhere; drawn once by a fixed seed.
    """

    num_draws: int
    max_images: int

    def __post_init__(self) -> None:
        flags = {"ood_draws": (self.num_draws, 1), "max_ood_images": (self.max_images, MIN_SIZE)}
        for name, (value, least) in flags.items():
            if value < least:
                raise RunError(f"--{name}={value} must be at least {least}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separation:
    """How well one score tells a set from the run's own images; those from elsewhere are the positives.

    Attributes:
      auprc: with half of the weight on either side.
      fpr_at_80_tpr: the share of own images that are flagged where 80 % of the set are.
    """

    auroc: Estimate
    auprc: Estimate
    fpr_at_80_tpr: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfScore:
    """By one score of `ood.scores`: beside the validation split, where there is one, and the test split."""

    score: str
    valid: Separation | None = None
    test: Separation


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfSet:
    """Of one set from elsewhere.

    Attributes:
      num_images: that stand beside each split.
    """

    name: str
    num_images: PerSplit[int]
    scores: tuple[OfScore, ...]

    def by(self, score: str) -> OfScore:
        """The entry of a score."""
        return next(entry for entry in self.scores if entry.score == score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """Content of ood.json, without the settings that made it.

    Attributes:
      num_images: of the run's own, of each split.
      num_draws: of each image.
      layers: the k of L^{>k}.
      chosen: the score with the best mean AUROC over the sets, by the validation split; None without one.
      mean_auroc: of that score over the sets. That of the validation split is a maximum over scores, whose
        error is not estimated.
    """

    num_images: PerSplit[int]
    num_draws: int
    layers: tuple[int, ...]
    sets: tuple[OfSet, ...]
    chosen: str | None = None
    mean_auroc: PerSplit[Score] | None = None


class Found(NamedTuple):
    """What `Detector.detect` finds.

    Attributes:
      detection: for ood.json.
      scores: for ood.npz: `inside_SPLIT` and `outside_n_SPLIT`, n from 1 in the order of the sets, each
        `[N, S]` with a column for each score, in the order of `Detection`.
    """

    detection: Detection
    scores: dict[str, np.ndarray]


class Detector:
    """Measures models that share data and network; everything compiles once for all of them."""

    def __init__(
        self,
        model: HVAE,
        dataset: Dataset,
        preprocess_fn: PreprocessFn,
        sources: Sequence[str | Source],
        sizes: DetectionSizes,
        grouped: NamedGroups | None = None,
    ) -> None:
        """Puts all images on the devices, unless the data are streamed or these are too many.

        Args:
          model: the network, without parameters.
          dataset: the run's own.
          preprocess_fn: that of the models.
          sources: of `ood_sets.read`.
          sizes: how much to do.
          grouped: layers that share a beta, see `ood.layers_below`.

        Raises:
          RunError: images of another shape, or fewer than two of the run's own.
        """
        self._num_draws, self.layers = sizes.num_draws, ood.layers_below(model, grouped)
        own = ood_sets.inside(dataset, sizes.max_images)
        self.outside = [ood_sets.make(source, own) for source in sources]
        self._splits: list[Split] = [split for split in SPLITS if split == "test" or own.valid is not None]
        # The run's own come first: their draws, which follow from their places, are the same whatever set
        # they stand beside.
        populations = [own, *(of.images for of in self.outside)]
        samples = [_of(images, split) for images in populations for split in self._splits]
        self._ends = np.cumsum([len(images) for images in samples])
        joined = np.concatenate(samples)
        is_streamed = parts.is_streamed(dataset) or joined.nbytes > STREAM_BYTES
        self._images = SplitEvaluator(HostArray(joined) if is_streamed else joined, preprocess_fn)
        self._bounds_fn = ood.make_bounds_fn(model, sizes.num_draws, self.layers)

    def described(self) -> dict[str, dict[str, dict[str, int | str]]]:
        """What the sets are: name → split → number of images and their fingerprint."""
        return {
            of.name: {split: _describe(_of(of.images, split)) for split in self._splits}
            for of in self.outside
        }

    def detect(self, params: Params, seed: int) -> Found:
        """All scores of all images, and how well each tells the sets; the draws depend on `seed`."""
        key = jax.random.fold_in(make_key(seed), _KEY)
        bounds = ood.measure_bounds(self._bounds_fn, self._images, params, key)
        samples = iter(np.split(np.arange(self._ends[-1]), self._ends[:-1]))

        def take() -> Scores:
            places = next(samples)
            return ood.scores(jax.tree.map(lambda nats: nats[places], bounds), self.layers)

        inside: dict[Split, Scores] = {split: take() for split in self._splits}
        outside: list[dict[Split, Scores]] = [{split: take() for split in self._splits} for _ in self.outside]
        arrays = {f"inside_{split}": _columns(found) for split, found in inside.items()}
        for number, of_set in enumerate(outside, start=1):
            arrays |= {f"outside_{number}_{split}": _columns(found) for split, found in of_set.items()}
        names, pairs = [of.name for of in self.outside], [of.are_pairs for of in self.outside]
        return Found(compare(inside, outside, names, pairs, self._num_draws, self.layers), arrays)


def compare(
    inside: Mapping[Split, Scores],
    outside: Sequence[Mapping[Split, Scores]],
    names: Sequence[str],
    are_pairs: Sequence[bool],
    num_draws: int,
    layers: Sequence[int],
) -> Detection:
    """Every statistic of scores, and the score that the validation split chooses.

    Args:
      inside: by split, "test" and perhaps "valid", the scores of the run's own images.
      outside: of each set, the scores of the images that stand beside each of these splits.
      names: of the sets.
      are_pairs: of each set, whether its image n is made from the run's own image n.
      num_draws, layers: to be kept beside them.
    """

    def of_score(number: int, score: str) -> OfScore:
        separations = {
            split: separate(inside[split][score], outside[number][split][score], are_pairs[number])
            for split in inside
        }
        return OfScore(score=score, **separations)

    def mean(split: Split, score: str) -> Estimate:
        return ood.mean_auroc(inside[split][score], [of[split][score] for of in outside], are_pairs)

    sets = tuple(
        OfSet(
            name=name,
            num_images=_counts(outside[number]),
            scores=tuple(of_score(number, score) for score in inside["test"]),
        )
        for number, name in enumerate(names)
    )
    chosen = mean_auroc = None
    if "valid" in inside:
        chosen = ood.best_score(inside["valid"], [of["valid"] for of in outside], are_pairs)
        mean_auroc = PerSplit(valid=Score(mean("valid", chosen).value), test=Score(*mean("test", chosen)))
    return Detection(
        num_images=_counts(inside), num_draws=num_draws, layers=tuple(layers), sets=sets, chosen=chosen,
        mean_auroc=mean_auroc,
    )  # fmt: skip


def separate(inside: np.ndarray, outside: np.ndarray, are_pairs: bool = False) -> Separation:
    """All statistics of one score; arguments as in `ood.auroc`."""
    return Separation(
        auroc=ood.auroc(inside, outside, are_pairs),
        auprc=ood.auprc(inside, outside, are_pairs),
        fpr_at_80_tpr=ood.fpr_at_tpr(inside, outside, are_pairs),
    )


def _of(images: PerSplit[np.ndarray], split: Split) -> np.ndarray:
    found = images.valid if split == "valid" else images.test
    assert found is not None
    return found


def _describe(images: np.ndarray) -> dict[str, int | str]:
    return {"num_images": len(images), "fingerprint": ood_sets.fingerprint(images)}


def _counts(samples: Mapping[Split, Scores]) -> PerSplit[int]:
    counts = {split: len(next(iter(scores.values()))) for split, scores in samples.items()}
    return PerSplit(valid=counts.get("valid"), test=counts["test"])


def _columns(scores: Scores) -> np.ndarray:
    return np.stack(list(scores.values()), axis=1).astype(np.float32)
