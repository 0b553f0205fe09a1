"""The published grid on CIFAR-10: 21 × 21 betas of the two-layer GHVAE, 441 models.

Shows: β_1, β_2 ∈ {10^(−1 + 0.1 k), k = 0 … 20}, as Xiao and Bamler (2023) trained them one at a time.
Data: TFDS `cifar10`, prepared once (the error of a first run gives the command).
What it takes here: python -m experiments.grid --config=experiments/cifar_grid.py --dry_run
Command: python -m experiments.grid --config=experiments/cifar_grid.py
"""

from ml_collections import ConfigDict

from experiments import cifar

BETAS = tuple(round(10.0 ** (-1 + k / 10), 4) for k in range(21))


def get_config() -> ConfigDict:
    """The single model's config, and which betas."""
    config = cifar.get_config().unlock()
    config.update(
        {
            "grid": {
                "betas": (BETAS, BETAS),
                "points": (),
                "targets_nats": (),
                "target_points": (),
                "seeds": (0,),
                "data_order": "shared",
                "chunk_size": 0,
                "memory_gib": 0.0,
            }
        }
    )
    return config.lock()
