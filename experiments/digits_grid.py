"""A grid of 9 × 9 betas, three seeds each, of the small GHVAE on scikit-learn's digits: 243 models.

Shows: where the information goes, and what it buys, over β_1, β_2 = 0.1 … 10. The single-layer baseline
of its rate–distortion figure, given as `--baseline=runs/digits_grid_1`, is the same command with
`--config.model.latent_shapes="((2,2,16),)" --config.grid.betas="((0.1,0.3,1.0,3.0,10.0),)"
--workdir=runs/digits_grid_1`.
Command: python -m experiments.grid --config=experiments/digits_grid.py
"""

from ml_collections import ConfigDict

from experiments import cifar_grid, digits

BETAS = tuple(round(10.0 ** (-1 + k / 4), 4) for k in range(9))


def get_config() -> ConfigDict:
    """The digits model for half as long, and which betas."""
    config = digits.get_config().unlock()
    config.update(
        {
            "training": {"num_epochs": 75.0},
            "grid": {
                **cifar_grid.get_config().to_dict()["grid"],
                "betas": (BETAS, BETAS),
                "seeds": (0, 1, 2),
            },
        }
    )
    return config.lock()
