"""A grid of 7 × 7 betas of the reference GHVAE on Fashion-MNIST binarised by rounding: 49 models, 10 epochs.

Shows: the published study, over the published range of betas, on images that need no download. Its parts:
the ladder, `--config.model.inference=ladder`; a second seed over a part of the betas,
`--config.grid.seeds="(1,)" --config.grid.betas="((0.1,1.0,10.0),(0.1,1.0,10.0))"`; and the single-layer
baseline, `--config.model.latent_shapes="((4,4,16),)"
--config.grid.betas="((0.1,0.2154,0.4642,1.0,2.1544,4.6416,10.0),)"`; each with a `--workdir` of its own.
experiments/results/README.md has all commands in order, with what they take.
Data: as experiments/fashion.py says.
Command: python -m experiments.grid --config=experiments/fashion_grid.py
"""

from ml_collections import ConfigDict

from experiments import cifar_grid, fashion

BETAS = tuple(round(10.0 ** (-1 + k / 3), 4) for k in range(7))


def get_config() -> ConfigDict:
    """The single model's config, and which betas."""
    config = fashion.get_config().unlock()
    config.update({"grid": {**cifar_grid.get_config().to_dict()["grid"], "betas": (BETAS, BETAS)}})
    return config.lock()
