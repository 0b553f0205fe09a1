"""How much an evaluation draws, fits and scores, and whether that fits into memory."""

import dataclasses
import math

from hvae_jax.errors import RunError
from hvae_jax.training.memory import machine_bytes

# What pictures.npz keeps of a model: images, and points of each layer's plane.
NUM_PICTURES, NUM_POINTS = 10, 1000
# Samples, and images of the test split, whose nearest training images are found.
NUM_COMPARED = 500
# Of one number, and copies of a large array at a time: on the device, on the host, in float64.
_NUMBER_BYTES, _COPIES = 4, 3


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is drawn, fitted and scored.

    Attributes:
      num_draws: posterior draws per image, for the probes' error bars. Rates and information take as many of
        them as say something, see `measuring.ENOUGH_DRAWS`.
      num_samples: generated images per split.
      num_splits: parts of them for the score's error bar.
      max_fit_images: training images that the probes are fitted on, drawn once by a fixed seed.
      max_scored_images: images of a split that probes, the information which bounds them, precision and
        recall read, and whose reconstructions a classifier judges, drawn once by a fixed seed.
    """

    num_draws: int
    num_samples: int
    num_splits: int
    max_fit_images: int
    max_scored_images: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise RunError(f"--{field.name}={value!r} must be an integer")
        least = {"num_draws": 1, "num_splits": 2, "num_samples": 2 * self.num_splits}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < least.get(field.name, 50):
                raise RunError(f"--{field.name}={value} must be at least {least.get(field.name, 50)}")

    def check_memory(
        self, num_dims: int, num_latents: int, num_features: int, available: int | None = None
    ) -> None:
        """Refuses what this machine cannot hold, before it is tried.

        Args:
          num_dims: numbers in an image.
          num_latents: numbers in one draw of all latents that are kept.
          num_features: of the classifier.
          available: bytes; those of this machine by default.

        Raises:
          RunError: samples or draws need more.
        """
        available = machine_bytes() if available is None else available
        for name, count in (
            ("num_samples", self.num_samples * num_features + min(self.num_samples, NUM_COMPARED) * num_dims),
            ("num_draws", self.num_draws * num_latents),
        ):
            needed = _NUMBER_BYTES * _COPIES * count
            if needed > available:
                raise RunError(
                    f"--{name}={getattr(self, name)} needs about {_gib(needed)} of memory, this machine has "
                    f"{_gib(available)}; ask for at most {max(1, getattr(self, name) * available // needed)}"
                )


def _gib(num_bytes: int) -> str:
    return f"{math.ceil(10 * num_bytes / 2**30) / 10:,.1f} GiB"
