"""How well images come back, from all layers and from those above one."""

from collections.abc import Sequence

import numpy as np

from hvae_jax import bounds
from hvae_jax.evaluation.measuring import Measured, Read
from hvae_jax.evaluation.metrics import (
    DataEntropy,
    JudgedReconstruction,
    Reconstruction,
    ReconstructionScores,
)
from hvae_jax.evaluation.parts import Part
from hvae_jax.evaluation.rates import mean


def score(
    found: Measured,
    read: Read,
    part: Part,
    data_entropy: float | None,
    from_layers: Sequence[int] | None = None,
) -> Reconstruction:
    """The section of one split.

    Args:
      found: of its images.
      read: whose reconstructions a classifier judges, those at `part.scored`.
      part: the split.
      data_entropy: of the images as a population of their own, nats; None where they have none.
      from_layers: that reconstructions are from; None is each layer.
    """
    scored, labels = part.among_read(part.scored), part.labels[part.scored]
    judged: list[JudgedReconstruction | None] = [
        JudgedReconstruction(
            classifier_accuracy=mean(one.predicted[scored] == labels),
            prediction_entropy_nats=mean(one.entropy[scored]),
        )
        for one in read.judged
    ]
    layers = [
        ReconstructionScores(psnr_db=mean(one.psnr_db), ssim=mean(one.ssim), judged=of_one)
        for one, of_one in zip(found.reconstructed, judged or [None] * len(found.reconstructed), strict=True)
    ]
    entropy = None
    if data_entropy is not None:
        total_rate = np.asarray(found.terms.rates).sum(axis=1, dtype=np.float64).mean()
        least = float(bounds.min_distortion(data_entropy, total_rate))
        entropy = DataEntropy(empirical_data_entropy_nats=data_entropy, min_distortion_nats=least)
    below = None if from_layers is None else tuple(from_layers)
    return Reconstruction(
        from_layer=tuple(layers), layers=below, num_images_ssim=len(part.labels), entropy=entropy
    )
