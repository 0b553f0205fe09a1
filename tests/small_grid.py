"""A data set, untrained models and their folders: small, but laid out as real ones are."""

import pathlib
from typing import Any

import jax
import numpy as np

from experiments import digits
from hvae_jax import experiment, records
from hvae_jax.training.checkpoints import Checkpoints


def make_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Three classes of 8×8 images: a bright half or quarter, in noise."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for split, num in (("train", 240), ("test", 90)):
        labels = np.arange(num) % 3
        images = generator.integers(0, 150, (num, 8, 8))
        images[labels == 0, :4] += 100
        images[labels == 1, :, :4] += 100
        images[labels == 2, 4:, 4:] += 100
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    return arrays


def write_data(folder: pathlib.Path) -> pathlib.Path:
    """`make_arrays` as a file."""
    np.savez(folder / "classes.npz", **make_arrays())  # type: ignore[arg-type]
    return folder / "classes.npz"


def make_run(folder: pathlib.Path, data_file: pathlib.Path, betas: tuple[float, ...], seed: int) -> None:
    """The folder of a run of no steps; its model is as it was drawn, with a wider posterior mean."""
    config: dict[str, Any] = digits.get_config().to_dict()
    config["data"].update(name=f"npz:{data_file}", num_valid=60)
    config["model"].update(channels=4, latent_shapes=((4, 4, 1), (2, 2, 2), (3,))[-len(betas) :])
    config["objective"].update(betas=betas)
    config["training"].update(seed=seed)
    records.open_run(folder, config)
    built = experiment.from_folder(folder)
    state = built.init_state()
    checkpoints = Checkpoints(folder / records.CHECKPOINTS_FOLDER, 1)
    # Larger weights, so that latents say something of the image.
    checkpoints.save(1, state._replace(params=jax.tree.map(lambda leaf: 2.5 * leaf, state.params)))
    checkpoints.wait()
    checkpoints.close()
