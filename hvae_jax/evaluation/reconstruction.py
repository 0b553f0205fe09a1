"""How well images come back, from all layers and from those above one."""

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
from hvae_jax.evaluation.rates import mean


def score(
    found: Measured,
    labels: np.ndarray,
    data_entropy: float | None,
    from_layers: Sequence[int] | None = None,
) -> Reconstruction:
    """The section of one split.

    Args:
      found: of its images.
      labels: theirs, `[N]`.
      data_entropy: of the images as a population of their own, nats; None where they have none.
      from_layers: that reconstructions are from; None is each layer.
    """
    layers = []
    for one in found.reconstructed:
        judged = None
        if one.judged:
            judged = JudgedReconstruction(
                classifier_accuracy=mean(one.judged.predicted == labels),
                prediction_entropy_nats=mean(one.judged.entropy),
            )
        layers.append(ReconstructionScores(psnr_db=mean(one.psnr_db), ssim=mean(one.ssim), judged=judged))
    entropy = None
    if data_entropy is not None:
        total_rate = np.asarray(found.terms.rates).sum(axis=1, dtype=np.float64).mean()
        least = float(bounds.min_distortion(data_entropy, total_rate))
        entropy = DataEntropy(empirical_data_entropy_nats=data_entropy, min_distortion_nats=least)
    below = None if from_layers is None else tuple(from_layers)
    return Reconstruction(
        from_layer=tuple(layers), layers=below, num_images_ssim=len(labels), entropy=entropy
    )
