"""What guidance chooses among, and what guidance.json holds of the choice."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from hvae_jax.evaluation.metrics import AnyApplication, PerApplication, PerSplit, Pixels, Score
from hvae_jax.evaluation.seeds import SeedSpread


class Scored(NamedTuple):
    """What is to be known of a trained model to choose among such.

    Attributes:
      rates_nats: R_1 … R_L, on the test split.
      pixels: what the samples are that generation is scored with; None where it is not.
      left_out: why there is no number for an application: "applications.NAME" → reason.
      active_units: of each layer, on the test split; None where they were not counted.
      outside: names of the sets of images from elsewhere that detection tells.
      network: which conditioned network was asked at these betas; "" of one that was trained for them.
    """

    name: str
    betas: tuple[float, ...]
    seed: int
    rates_nats: tuple[float, ...]
    scores: PerSplit[PerApplication[Score]]
    pixels: Pixels | None = None
    left_out: Mapping[str, str] = {}
    active_units: tuple[int, ...] | None = None
    outside: tuple[str, ...] = ()
    network: str = ""

    def serves(self, application: AnyApplication) -> bool:
        """Whether it has a number for an application, to choose by and to report."""
        return all(split and split.get(application) for split in (self.scores.valid, self.scores.test))

    def reason(self, application: AnyApplication) -> str:
        """Why it has none."""
        return self.left_out.get(f"applications.{application}", "it was not evaluated")

    def valid(self, application: AnyApplication) -> float:
        """The number that stands for an application on the validation split; NaN where there is none."""
        score = self.scores.valid and self.scores.valid.get(application)
        return score.value if score else math.nan

    def test(self, application: AnyApplication) -> float:
        """That on the test split."""
        score = self.scores.test.get(application)
        return score.value if score else math.nan


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Models of the same betas, one for each seed: means over them, on both splits.

    Attributes:
      test_standard_error: of both parts together.
      standard_error_of_seeds: None where no spread over seeds is known.
      active_units: of each layer; None where they were not counted in every model.
    """

    betas: tuple[float, ...]
    rates_nats: tuple[float, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    valid: float
    test: float
    test_standard_error: float
    standard_error_of_images_and_draws: float
    standard_error_of_seeds: float | None
    active_units: tuple[float, ...] | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Rival(Candidate):
    """A candidate that the best one is compared with: by how much that is ahead on the test split."""

    is_best: bool
    difference: float
    difference_standard_error: float
    num_standard_errors: float | None


@dataclasses.dataclass(frozen=True)
class KnownSpread(SeedSpread):
    """The spread over seeds, of "these models" or of "other models"."""

    of: str


@dataclasses.dataclass(frozen=True)
class Explained:
    """The part of the variance over models that the best monotone function of one rate explains.

    Attributes:
      share: in [0, 1]; None where all models score the same.
      rises: whether that function increases.
    """

    share: float | None
    rises: bool


@dataclasses.dataclass(frozen=True)
class Entry:
    """Of one application: the best betas and what they compete with, None where there is no such model.

    Attributes:
      difference_spread: of the models of several conditioned networks, what is left of the spread over seeds
        when two betas of the same networks are compared; see `seeds.pool_within`.
    """

    metric: str
    unit: str
    num_candidates: int
    seed_spread: KnownSpread | None
    best: Candidate
    equal_betas: Rival | None
    unit_betas: Rival | None
    baseline: Rival | None
    explained_by: dict[str, Explained]
    difference_spread: SeedSpread | None = None

    def rivals(self) -> dict[str, Rival | None]:
        """What the best competes with, in words."""
        return {
            "best with equal betas": self.equal_betas,
            "all betas 1 (the ELBO)": self.unit_betas,
            "one layer (β-VAE)": self.baseline,
        }


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Content of guidance.json; applications that no model has a number for are left out, with the reason.

    Attributes:
      num_networks: how many conditioned networks all models are of, each at betas of its own; None where
        every model was trained.
    """

    num_models: int
    num_layers: int
    pixels: Pixels | None
    applications: PerApplication[Entry]
    left_out: dict[str, str]
    num_networks: int | None = None
