"""A grid of 5 × 5 target rates of the small GHVAE on digits: a map that is even in rate space.

Shows: models where you ask for them. An even grid of betas crowds where a layer is nearly empty and is
thin elsewhere; here R_1 and R_2 are 4, 8 … 20 nats, and `figures/target_map.png` what the models reached.
Command: python -m experiments.grid --config=experiments/digits_targets_grid.py
"""

from ml_collections import ConfigDict

from experiments import cifar_grid, digits_targets

TARGETS = (4.0, 8.0, 12.0, 16.0, 20.0)


def get_config() -> ConfigDict:
    """The digits run that asks for rates, and which rates."""
    config = digits_targets.get_config().unlock()
    config.update(
        {
            "grid": {
                **cifar_grid.get_config().to_dict()["grid"],
                "betas": (),
                "targets_nats": (TARGETS, TARGETS),
            },
        }
    )
    return config.lock()
