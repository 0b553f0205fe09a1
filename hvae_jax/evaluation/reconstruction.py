"""How well images come back: PSNR and SSIM, on values clipped to [0, 1]."""

from collections.abc import Sequence

import numpy as np

from hvae_jax import bounds
from hvae_jax.evaluation.measuring import Measured
from hvae_jax.evaluation.metrics import (
    DataEntropy,
    JudgedReconstruction,
    Reconstruction,
    ReconstructionScores,
)
from hvae_jax.evaluation.parts import Part
from hvae_jax.evaluation.rates import mean

# A mean squared error below this counts as this: 100 dB instead of infinity, so that means exist.
MIN_SQUARED_ERROR = 1e-10


def psnr(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio, 10 log10(1 / mean squared error), of each image.

    Args:
      images, reconstructions: `[N, H, W, C]`, clipped to [0, 1] first.

    Returns:
      `[N]`, dB, at most 100.

    Raises:
      ValueError: shapes differ.
    """
    images, reconstructions = _clipped(images, reconstructions)
    error = np.square(images - reconstructions).reshape(len(images), -1).mean(axis=1)
    return -10 * np.log10(np.maximum(error, MIN_SQUARED_ERROR))


def ssim(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al., 2004) of each image, by scikit-image.

    Its window is 7 × 7 as usual, and 3 × 3 for images of less than 16 pixels a side: inside 8 × 8 the
    usual window has four places only.

    Args:
      images, reconstructions: `[N, H, W, C]`, clipped to [0, 1] first.

    Returns:
      `[N]`, at most 1; channels are averaged.

    Raises:
      ValueError: shapes differ.
    """
    from skimage.metrics import structural_similarity  # here: in the extra `evaluation`, slow to import

    images, reconstructions = _clipped(images, reconstructions)
    window = 7 if min(images.shape[1:3]) >= 16 else 3
    return np.asarray(
        [
            structural_similarity(x, y, win_size=window, data_range=1.0, channel_axis=-1)
            for x, y in zip(images, reconstructions, strict=True)
        ]
    )


def score(
    found: Measured, part: Part, is_discrete: bool, from_layers: Sequence[int] | None = None
) -> Reconstruction:
    """The section of one split.

    Args:
      found: of its images.
      part: the split.
      is_discrete: whether the images, as a population of their own, have an entropy.
      from_layers: that reconstructions are from; None is each layer.
    """
    x, layers = np.asarray(found.x), []
    for index, picture in enumerate(found.reconstructions):
        judged = None
        if found.judged:
            probs = found.judged.probs[index]
            judged = JudgedReconstruction(
                classifier_accuracy=mean(probs.argmax(axis=1) == part.labels),
                prediction_entropy_nats=mean(bounds.prediction_entropy(probs)),
            )
        similarity = ssim(x[part.scored], picture[part.scored])
        scores = ReconstructionScores(psnr_db=mean(psnr(x, picture)), ssim=mean(similarity), judged=judged)
        layers.append(scores)
    entropy = _entropy(x, np.asarray(found.terms.rates)) if is_discrete else None
    num_images, below = len(part.scored), None if from_layers is None else tuple(from_layers)
    return Reconstruction(from_layer=tuple(layers), layers=below, num_images_ssim=num_images, entropy=entropy)


def _entropy(x: np.ndarray, rates: np.ndarray) -> DataEntropy:
    _, counts = np.unique(x.reshape(len(x), -1), axis=0, return_counts=True)
    entropy = bounds.label_entropy(counts)
    total_rate = rates.sum(axis=1, dtype=np.float64).mean()
    least = float(bounds.min_distortion(entropy, total_rate))
    return DataEntropy(empirical_data_entropy_nats=entropy, min_distortion_nats=least)


def _clipped(images: np.ndarray, reconstructions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.shape != reconstructions.shape or images.ndim != 4:
        raise ValueError(
            f"images and reconstructions must both be [N, H, W, C], got {images.shape} and "
            f"{reconstructions.shape}"
        )
    return np.clip(images, 0.0, 1.0, dtype=np.float64), np.clip(reconstructions, 0.0, 1.0, dtype=np.float64)
