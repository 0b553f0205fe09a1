"""A grid of 5 × 5 betas of the reference GHVAE on Fashion-MNIST binarised by rounding: 25 models.

Data: as experiments/fashion.py says.
Command: python -m experiments.grid --config=experiments/fashion_grid.py
"""

from ml_collections import ConfigDict

from experiments import fashion

BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)


def get_config() -> ConfigDict:
    """The single model's config, and which betas."""
    config = fashion.get_config().unlock()
    config.update(
        {
            "grid": {
                "betas": (BETAS, BETAS),
                "points": (),
                "seeds": (0,),
                "data_order": "shared",
                "chunk_size": 0,
                "memory_gib": 0.0,
            }
        }
    )
    return config.lock()
